//! From a recipe to the steps of the study.
//!
//! ```text
//! data → seed of each length → experts → distances, grams, merges ┐
//!      → agnostic baseline with the whole budget ─────────────────┴→ fine-tuning → measuring
//! ```

use anyhow::Result;
use evaluate::tasks::TaskOption;
use serde_json::{Map, Value, json};
use train::recipe::{ExpertForm, Span, overlay};

use super::recipe::{MergePoint, StudyRecipe, StudyTask, Training, checked};
use super::step::{Draft, Kind, Place, Step, Word};

/// Weights that are measured on a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What it is called in tables.
    pub name: String,
    /// Where it comes from.
    pub origin: Origin,
    /// The weights that are measured.
    weights: Place,
}

/// Where measured weights come from.
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

/// All steps, and what of them goes into the report.
#[derive(Debug)]
pub struct Graph {
    /// Every step stands behind those that it needs.
    pub steps: Vec<Step>,
    /// Measurements, by task.
    pub measured: Vec<Measured>,
    /// Files of distances.
    pub distances: Vec<Apart>,
}

/// Distances between weights.
#[derive(Clone, Debug)]
pub struct Apart {
    /// What they are called together.
    pub label: String,
    /// What the first weights are called, and the others, if their own parts are not compared.
    pub names: (String, Option<String>),
    /// The file.
    pub place: Place,
}

/// The weights that a run leaves, by its recipe.
fn weights_of(document: &Value) -> &'static str {
    match document.get("validation").is_some_and(|v| !v.is_null()) {
        true => "run/best.safetensors",
        false => "run/model.safetensors",
    }
}

pub(super) struct Builder<'a> {
    pub(super) recipe: &'a StudyRecipe,
    steps: Vec<Step>,
}

impl Graph {
    /// Plans a study; every training recipe in it is checked.
    pub fn new(recipe: &StudyRecipe) -> Result<Self> {
        let mut builder = Builder {
            recipe,
            steps: Vec::new(),
        };
        builder.data();
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
            steps: builder.steps,
            measured,
            distances,
        })
    }
}

/// What is merged after a seed of some length.
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
        if self.steps.iter().all(|known| known.name != step.name) {
            self.steps.push(step);
        }
    }

    fn data(&mut self) {
        let Some(build) = &self.recipe.data.build else {
            return;
        };
        let mut step = Step::new("data", Kind::Plain, &["arrow"]);
        for set in &build.sets {
            step = step.command([
                "data".into(),
                "build".into(),
                set.as_str().into(),
                "--raw".into(),
                Place::Outside(build.raw.clone()).into(),
                "--out".into(),
                Place::Own("arrow".into()).into(),
                "--force".into(),
            ]);
        }
        self.add(step);
    }

    fn arrow(&self) -> Place {
        match &self.recipe.data.folder {
            Some(folder) => Place::Outside(folder.clone()),
            None => Place::Of("data".into(), "arrow".into()),
        }
    }

    fn tokenizer(&self) -> Word {
        let name = &self.recipe.data.tokenizer;
        match std::path::Path::new(name).exists() {
            true => Place::Outside(name.into()).into(),
            false => name.as_str().into(),
        }
    }

    /// A training recipe with what the study decides.
    fn training(&self, training: &Training, over: &Value) -> Result<(Value, Vec<(String, Place)>)> {
        let mut document = training.document()?;
        let tokenizer = &self.recipe.data.tokenizer;
        let ours = json!({
            "model": self.recipe.model,
            "data": { "folder": "arrow", "tokenizer": tokenizer },
        });
        overlay(&mut document, &ours);
        overlay(&mut document, over);
        let mut paths = vec![("/data/folder".to_owned(), self.arrow())];
        if let Word::Path(place) = self.tokenizer() {
            paths.push(("/data/tokenizer".to_owned(), place));
        }
        Ok((document, paths))
    }

    /// What goes on from a seed: together they have the rest of the budget.
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

    /// Pre-training for so many steps, from the seed, or from where the study starts.
    fn pretraining(
        &mut self,
        name: &str,
        steps: u64,
        seed: Option<Place>,
        turn: &Turn,
    ) -> Result<Place> {
        let start = self.recipe.init.clone();
        let mut init = match &seed {
            Some(_) => json!({ "checkpoint": "seed.safetensors" }),
            None => json!(start),
        };
        if let Some(form) = turn.expand {
            init["expand"] = json!(form);
        }
        let mut over = json!(turn.settings);
        over["length"] = json!(Span::Steps(steps));
        let (mut document, mut paths) = self.training(&self.recipe.pretrain, &over)?;
        document["init"] = init;
        checked(&document, "pretrain")?;
        if let Some(seed) = seed {
            paths.push(("/init/checkpoint".into(), seed));
        } else if let Some(checkpoint) = start.checkpoint {
            paths.push(("/init/checkpoint".into(), Place::Outside(checkpoint)));
        } else if let Some(recipe) = start.recipe {
            paths.push(("/init/recipe".into(), Place::Outside(recipe)));
        }
        Ok(self.run("pretrain", name, document, paths))
    }

    fn run(
        &mut self,
        verb: &str,
        name: &str,
        document: Value,
        paths: Vec<(String, Place)>,
    ) -> Place {
        let weights = weights_of(&document);
        let mut step = Step::new(name, Kind::Train, &[weights]);
        step.drafts.push(Draft {
            name: "recipe.yaml".into(),
            document,
            paths,
        });
        let recipe = Word::from(Place::Own("recipe.yaml".into()));
        let named = match verb {
            "finetune" => vec!["--recipe".into(), recipe],
            _ => vec![recipe],
        };
        let words = [verb.into()].into_iter().chain(named);
        let step = step.command(words.chain([
            "--out".into(),
            Place::Own("run".into()).into(),
            "--resume".into(),
        ]));
        let output = step.output(weights);
        self.add(step);
        output
    }

    /// What all verbs that run a model on a split are told.
    pub(super) fn on(&self, task: &StudyTask, split: &str) -> Vec<Word> {
        let mut words: Vec<Word> = vec![
            "--task".into(),
            task.task.name.into(),
            "--data".into(),
            self.arrow().into(),
            "--split".into(),
            split.into(),
            "--tokenizer".into(),
            self.tokenizer(),
        ];
        if task.task.takes(TaskOption::Dataset) {
            words.extend(["--dataset".into(), task.dataset().into()]);
        }
        let model = &self.recipe.model;
        for (flag, value) in [
            ("--heads", model.heads),
            ("--fusion-start", model.fusion_start),
            ("--text-table-len", model.text_table_len),
            ("--image-heads", model.image_heads),
            ("--text-heads", model.text_heads),
        ] {
            if let Some(value) = value {
                words.extend([flag.into(), value.to_string().into()]);
            }
        }
        if let Some(temperature) = model.temperature {
            words.extend(["--temperature".into(), temperature.to_string().into()]);
        }
        if let Some(how) = model.shallow_attention {
            let how = json!(how).as_str().unwrap_or_default().replace('_', "-");
            words.extend(["--shallow-attention".into(), how.into()]);
        }
        words
    }

    /// Weights as they are measured: fine-tuned, if the task says how.
    fn finished(&mut self, task: &StudyTask, of: &str, weights: &Place) -> Result<Place> {
        let Some(finetune) = &task.finetune else {
            return Ok(weights.clone());
        };
        let over = json!({ "init": { "checkpoint": "init.safetensors" } });
        let (mut document, mut paths) = self.training(finetune, &over)?;
        document["init"] = over["init"].clone();
        checked(&document, &format!("finetune on {}", task.dataset()))?;
        paths.push(("/init/checkpoint".into(), weights.clone()));
        let name = format!("finetune-{}-{of}", task.dataset());
        Ok(self.run("finetune", &name, document, paths))
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
        let mut words: Vec<Word> = vec!["evaluate".into()];
        for model in models {
            words.push(model.weights.clone().into());
            words.extend(["--name".into(), model.name.as_str().into()]);
        }
        words.extend(self.on(task, split));
        words.extend([
            "--out".into(),
            Place::Own("report.json".into()).into(),
            "--force".into(),
        ]);
        let name = format!("evaluate-{}-{what}", task.dataset());
        let step = Step::new(name, Kind::Run, &["report.json"]).command(words);
        let output = step.output("report.json");
        self.add(step);
        output
    }
}
