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
        for &steps in &recipe.seed_steps {
            let seed = match steps {
                0 => None,
                _ => {
                    let name = format!("seed-{steps}");
                    Some(builder.pretraining(&name, steps, None, &Turn::default())?)
                }
            };
            let of = builder.experts(steps, seed)?;
            distances.extend(builder.distances(&of));
            experts.push(of);
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
    /// One model with a copy per modality, or several models.
    pub(super) models: Vec<(String, Place)>,
}

/// In what pre-training differs from that of the seed.
#[derive(Default)]
struct Turn {
    /// Copies per modality.
    expand: Option<ExpertForm>,
    /// Settings of training.
    settings: Map<String, Value>,
}

impl Builder<'_> {
    /// Adds a step, or takes the one of this name that is there.
    pub(super) fn add(&mut self, step: Step) {
        self.plan.add(step);
    }

    /// The arguments of every verb that runs a model on a split.
    pub(super) fn on(&self, task: &StudyTask, split: &str) -> Vec<Word> {
        self.plan.on(On {
            task: task.task,
            dataset: task.dataset(),
            split,
        })
    }

    /// Plans the experts after a seed: together they have the rest of the budget.
    fn experts(&mut self, steps: u64, seed: Option<Place>) -> Result<Experts> {
        let recipe = self.recipe;
        let rest = recipe.budget_steps - steps;
        let mut models = Vec::new();
        if recipe.experts.is_empty() {
            let turn = Turn {
                expand: Some(recipe.specific.unwrap_or(ExpertForm::AllSpecific)),
                ..Turn::default()
            };
            let weights =
                self.pretraining(&format!("specific-{steps}"), rest, seed.clone(), &turn)?;
            models.push(("modality-specific".to_owned(), weights));
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
            models,
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
            .find(|e| e.steps == self.recipe.main_seed_steps);
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
        for of in experts {
            for point in &of_seeds {
                let merged = self.merge(task, point, of)?;
                let slug = format!("{}-{}", of.steps, point.name().replace([' ', '/'], "-"));
                let weights = self.finished(task, &slug, &merged)?;
                let name = match of.steps {
                    0 => format!("{} without a seed", point.name()),
                    steps => format!("{} after {steps} seed steps", point.name()),
                };
                let seed = Model {
                    name,
                    origin: Origin::Seed(of.steps),
                    weights,
                };
                by_seed.push((of.steps, seed));
            }
        }
        by_seed.push((self.recipe.budget_steps, baseline));
        let seeds: Vec<Model> = by_seed.iter().map(|(_, model)| model.clone()).collect();
        Ok(Measured {
            validation: self.evaluate(task, "validation", &task.validation, &models),
            test: self.evaluate(task, "test", &task.test, &models),
            seeds: self.evaluate(task, "seeds", &task.test, &seeds),
            task: task.clone(),
            models,
            by_seed,
        })
    }

    fn evaluate(&mut self, task: &StudyTask, what: &str, split: &str, models: &[Model]) -> Place {
        let words = self.on(task, split);
        let models = models.iter();
        let models = models.map(|model| (model.name.as_str(), &model.weights));
        let name = format!("evaluate-{}-{what}", task.dataset());
        self.plan.evaluate(name, models, words)
    }
}
