//! From a recipe to the steps of the study.
//!
//! ```text
//! data → seed of each length → experts → distances, grams, merges ┐
//!      → agnostic baseline with the whole budget ─────────────────┴→ fine-tuning → measuring
//! ```

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use train::recipe::{ExpertForm, Span};

use super::recipe::{MergePoint, StudyRecipe, StudyTask};
use super::results::{self, Findings};
use super::step::{Place, Step, Word};
use super::step_plan::{On, StepPlan};
use super::{Store, Study};

/// Weights that are measured on a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its name in tables.
    pub name: String,
    /// The origin of its weights.
    pub origin: Origin,
    /// The weights that are measured.
    weights: Place,
}

/// The origins of measured weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// One set of weights, the whole budget.
    Agnostic,
    /// Experts that were not merged.
    Specific,
    /// A merge of the main seed's experts.
    Merge(MergePoint),
    /// The merge of another seed's experts.
    Seed(u64),
    /// Of a form of experts: unmerged, or merged.
    Form,
}

/// A task with the weights that are measured on it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The task.
    pub task: StudyTask,
    /// Its weights: the agnostic baseline first.
    pub models: Vec<Model>,
    /// Weights by the length of their seed, shortest first; the last one is the baseline.
    pub by_seed: Vec<(u64, Model)>,
    /// The step that measures `models` on the validation split.
    pub validation: Place,
    /// The step that measures `models` on the test split.
    pub test: Place,
    /// The step that measures `by_seed` on the test split.
    pub seeds: Place,
    /// Experts of every form, as they are and merged, if there are several forms.
    pub by_form: Vec<Model>,
    /// The step that measures `by_form` on the test split, and the baseline before them.
    pub forms: Option<Place>,
    /// The steps that measure `models` on further data.
    pub also: Vec<Place>,
    /// The merges of one kind after every seed and of every form, by the place of their experts' distances.
    pub apart: Vec<(Place, Model)>,
}

/// All steps of a study of merging, and what of them goes into the report.
#[derive(Debug)]
pub struct Graph {
    recipe: StudyRecipe,
    steps: Vec<Step>,
    /// Measurements, by task.
    pub measured: Vec<Measured>,
    /// Files of distances.
    pub distances: Vec<Apart>,
}

/// Distances between weights.
#[derive(Clone, Debug)]
pub struct Apart {
    /// Their common name.
    pub label: String,
    /// The names of the first weights and of the others, if their own parts are not compared.
    pub names: (String, Option<String>),
    /// The file.
    pub place: Place,
}

pub(super) struct Builder<'a> {
    pub(super) recipe: &'a StudyRecipe,
    plan: StepPlan<'a>,
}

impl Graph {
    /// Reads a recipe, with settings changed, and plans the study; every training recipe in it is checked.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        Self::new(StudyRecipe::open(path, settings)?)
    }

    fn new(of: StudyRecipe) -> Result<Self> {
        let recipe = &of;
        let mut builder = Builder {
            recipe,
            plan: StepPlan::new(&recipe.data, &recipe.model),
        };
        let whole = recipe.budget_steps;
        let agnostic = builder.pretraining("agnostic", whole, None, &Turn::default())?;
        let mut experts = Vec::new();
        let mut distances = Vec::new();
        let forms = recipe.forms();
        for &steps in &recipe.seed_steps {
            let seed = match steps {
                0 => None,
                _ => {
                    let name = format!("seed-{steps}");
                    Some(builder.pretraining(&name, steps, None, &Turn::default())?)
                }
            };
            let is_main = steps == recipe.main_seed_steps;
            let others = forms.get(1..).filter(|_| is_main).unwrap_or_default();
            for form in std::iter::once(forms.first()).chain(others.iter().map(Some)) {
                let is_main = form == forms.first();
                let mut of = builder.experts(steps, seed.clone(), form.copied(), is_main)?;
                of.distances = builder.distances(&of);
                distances.extend(of.distances.iter().cloned());
                experts.push(of);
            }
        }
        let mut measured = Vec::new();
        for task in &recipe.tasks {
            measured.push(builder.task(task, &agnostic, &experts)?);
        }
        Ok(Self {
            steps: builder.plan.into_steps(),
            measured,
            distances,
            recipe: of,
        })
    }
}

impl Study for Graph {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn join(&self, store: &Store) -> Result<Findings> {
        results::join(&self.recipe, self, store)
    }
}

/// The experts, merges and distances after a seed of some length.
pub(super) struct Experts {
    /// The length of the seed.
    pub(super) steps: u64,
    /// The seed, unless its length is 0.
    pub(super) seed: Option<Place>,
    /// Their form; none of models that go on by themselves.
    pub(super) form: Option<ExpertForm>,
    /// Whether their form is the one that is studied whole.
    pub(super) is_main: bool,
    /// One model with a copy per modality, or several models.
    pub(super) models: Vec<(String, Place)>,
    /// Distances between them.
    distances: Vec<Apart>,
}

impl Experts {
    /// The words for it in names of steps.
    pub(super) fn slug(&self) -> String {
        match self.form {
            Some(form) if !self.is_main => format!("{}-{}", name_of(form), self.steps),
            _ => self.steps.to_string(),
        }
    }

    /// The words for the seed in names of rows.
    pub(super) fn after(&self) -> String {
        match self.steps {
            0 => "without a seed".to_owned(),
            steps => format!("after {steps} seed steps"),
        }
    }
}

/// A form as recipes have it, `all-specific` for one.
fn name_of(form: ExpertForm) -> String {
    json!(form).as_str().unwrap_or_default().to_owned()
}

/// In what pre-training differs from that of the seed.
#[derive(Default)]
struct Turn {
    /// Copies per modality.
    expand: Option<ExpertForm>,
    /// Settings of training.
    settings: Map<String, Value>,
}

fn on<'t>(task: &'t StudyTask, split: &'t str) -> On<'t> {
    On {
        task: task.task,
        dataset: task.dataset(),
        split,
    }
}

impl Builder<'_> {
    /// Adds a step, or takes the one of this name that is there.
    pub(super) fn add(&mut self, step: Step) {
        self.plan.add(step);
    }

    /// The arguments of every verb that runs a model on a split.
    pub(super) fn on(&self, task: &StudyTask, split: &str) -> Vec<Word> {
        self.plan.on(on(task, split))
    }

    /// Plans the experts after a seed: together they have the rest of the budget.
    fn experts(
        &mut self,
        steps: u64,
        seed: Option<Place>,
        form: Option<ExpertForm>,
        is_main: bool,
    ) -> Result<Experts> {
        let recipe = self.recipe;
        let rest = recipe.budget_steps - steps;
        let mut models = Vec::new();
        if let Some(form) = form {
            let turn = Turn {
                expand: Some(form),
                ..Turn::default()
            };
            let (step, name) = match is_main {
                true => ("specific".to_owned(), "modality-specific".to_owned()),
                false => (name_of(form), name_of(form)),
            };
            let weights =
                self.pretraining(&format!("{step}-{steps}"), rest, seed.clone(), &turn)?;
            models.push((name, weights));
        }
        for expert in &recipe.experts {
            let share = rest / recipe.experts.len() as u64;
            let turn = Turn {
                settings: expert.settings.clone(),
                ..Turn::default()
            };
            let name = format!("expert-{}-{steps}", expert.name);
            let weights = self.pretraining(&name, share, seed.clone(), &turn)?;
            models.push((expert.name.clone(), weights));
        }
        Ok(Experts {
            steps,
            seed,
            form,
            is_main,
            models,
            distances: Vec::new(),
        })
    }

    /// Plans pre-training for `steps` steps, from the seed, or from the start of the study.
    fn pretraining(
        &mut self,
        name: &str,
        steps: u64,
        seed: Option<Place>,
        turn: &Turn,
    ) -> Result<Place> {
        let mut over = json!(turn.settings);
        over["length"] = json!(Span::Steps(steps));
        let (plan, recipe) = (&mut self.plan, self.recipe);
        let mut draft = match &seed {
            Some(seed) => plan.recipe_from(&recipe.pretrain, &over, seed)?,
            None => plan.recipe_from_start(&recipe.pretrain, &over, &recipe.init)?,
        };
        if let Some(form) = turn.expand {
            draft.document["init"]["expand"] = json!(form);
        }
        plan.run("pretrain", name, "pretrain", draft)
    }

    /// Weights as they are measured: fine-tuned, if the task says how.
    fn finished(&mut self, task: &StudyTask, of: &str, weights: &Place) -> Result<Place> {
        let Some(finetune) = &task.finetune else {
            return Ok(weights.clone());
        };
        let draft = self.plan.recipe_from(finetune, &json!({}), weights)?;
        let name = format!("finetune-{}-{of}", task.dataset());
        let of = format!("finetune on {}", task.dataset());
        self.plan.run("finetune", &name, &of, draft)
    }

    fn task(
        &mut self,
        task: &StudyTask,
        agnostic: &Place,
        experts: &[Experts],
    ) -> Result<Measured> {
        let mut models = Vec::new();
        let mut model = |builder: &mut Self, name: String, origin, slug: &str, from: &Place| {
            let weights = builder.finished(task, slug, from)?;
            let model = Model {
                name,
                origin,
                weights,
            };
            models.push(model.clone());
            anyhow::Ok(model)
        };
        let main = experts
            .iter()
            .find(|e| e.is_main && e.steps == self.recipe.main_seed_steps);
        let baseline = model(
            self,
            "agnostic".into(),
            Origin::Agnostic,
            "agnostic",
            agnostic,
        )?;
        let of_seeds = self.recipe.merge_of_seeds.points()?;
        let mut by_seed = Vec::new();
        if let Some(main) = main {
            for (name, weights) in &main.models {
                let slug = match main.models.len() {
                    1 => "specific".to_owned(),
                    _ => format!("expert-{name}"),
                };
                model(self, name.clone(), Origin::Specific, &slug, weights)?;
            }
            let mut points = Vec::new();
            for merge in &self.recipe.merges {
                points.extend(merge.points()?);
            }
            for point in &points {
                let merged = self.merge(task, point, main)?;
                let name = point.name();
                let slug = format!("{}-{}", main.steps, name.replace([' ', '/'], "-"));
                let origin = Origin::Merge(point.clone());
                model(self, name, origin, &slug, &merged)?;
            }
        }
        let mut experts: Vec<&Experts> = experts.iter().collect();
        experts.sort_by_key(|experts| experts.steps);
        let mut apart = Vec::new();
        for of in &experts {
            for point in of_seeds.iter().filter(|_| of.is_main) {
                let seed = Model {
                    name: format!("{} {}", point.name(), of.after()),
                    origin: Origin::Seed(of.steps),
                    weights: self.merged(task, point, of)?,
                };
                // Experts that are several models are apart in several ways.
                if let [distances] = of.distances.as_slice() {
                    apart.push((distances.place.clone(), seed.clone()));
                }
                by_seed.push((of.steps, seed));
            }
        }
        by_seed.push((self.recipe.budget_steps, baseline.clone()));
        let seeds: Vec<Model> = by_seed.iter().map(|(_, model)| model.clone()).collect();
        let by_form = match self.recipe.forms().len() {
            0 | 1 => Vec::new(),
            _ => self.by_form(task, &experts, &of_seeds, &mut apart)?,
        };
        let forms = (!by_form.is_empty()).then(|| {
            let all: Vec<Model> = std::iter::once(&baseline)
                .chain(&by_form)
                .cloned()
                .collect();
            self.evaluate(task, "forms", &task.test, &all)
        });
        let mut also = Vec::new();
        for other in &task.also {
            let slug = other
                .name
                .replace(|c: char| !c.is_ascii_alphanumeric(), "-");
            let (folder, build) = (&other.data.folder, &other.data.build);
            let data = self.plan.arrow_of(&slug, folder.as_deref(), build.as_ref());
            let words = self.plan.on_folder(on(task, &other.test), data);
            also.push(self.measure(task, &format!("also-{slug}"), &models, words));
        }
        Ok(Measured {
            validation: self.evaluate(task, "validation", &task.validation, &models),
            test: self.evaluate(task, "test", &task.test, &models),
            seeds: self.evaluate(task, "seeds", &task.test, &seeds),
            task: task.clone(),
            models,
            by_seed,
            by_form,
            forms,
            also,
            apart,
        })
    }

    /// Plans a merge for a task, finished as its models are.
    fn merged(&mut self, task: &StudyTask, point: &MergePoint, of: &Experts) -> Result<Place> {
        let merged = self.merge(task, point, of)?;
        let slug = format!("{}-{}", of.slug(), point.name().replace([' ', '/'], "-"));
        self.finished(task, &slug, &merged)
    }

    /// Plans the experts of every form after the main seed, unmerged and merged.
    fn by_form(
        &mut self,
        task: &StudyTask,
        experts: &[&Experts],
        of_seeds: &[MergePoint],
        apart: &mut Vec<(Place, Model)>,
    ) -> Result<Vec<Model>> {
        let recipe = self.recipe;
        let points = recipe.points_of_forms()?;
        let mut by_form = Vec::new();
        let of_main_seed = experts.iter();
        let of_main_seed = of_main_seed.filter(|of| of.steps == recipe.main_seed_steps);
        for of in of_main_seed {
            let (Some(form), Some((_, weights))) = (of.form, of.models.first()) else {
                continue;
            };
            let form_name = name_of(form);
            let slug = match of.is_main {
                true => "specific",
                false => form_name.as_str(),
            };
            by_form.push(Model {
                name: form_name.clone(),
                origin: Origin::Form,
                weights: self.finished(task, slug, weights)?,
            });
            for point in &points {
                // Of norms alone there is no linear layer to weigh by its inputs; the report says so.
                if form == ExpertForm::LnSpecific && point.method()?.1 {
                    continue;
                }
                let model = Model {
                    name: format!("{form_name}, {}", point.name()),
                    origin: Origin::Form,
                    weights: self.merged(task, point, of)?,
                };
                if let [distances] = of.distances.as_slice()
                    && !of.is_main
                    && of_seeds.contains(point)
                {
                    apart.push((distances.place.clone(), model.clone()));
                }
                by_form.push(model);
            }
        }
        Ok(by_form)
    }

    fn evaluate(&mut self, task: &StudyTask, what: &str, split: &str, models: &[Model]) -> Place {
        let words = self.on(task, split);
        self.measure(task, what, models, words)
    }

    fn measure(
        &mut self,
        task: &StudyTask,
        what: &str,
        models: &[Model],
        words: Vec<Word>,
    ) -> Place {
        let models = models.iter();
        let models = models.map(|model| (model.name.as_str(), &model.weights));
        let name = format!("evaluate-{}-{what}", task.dataset());
        self.plan.evaluate(name, models, words)
    }
}
