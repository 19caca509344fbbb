//! From a recipe to the steps of a table.
//!
//! ```text
//! data → pre-training → head of class texts → fine-tuning → copy without its head   (of each task)
//!                                                                ├→ advice, before anything is measured
//!        grams of each copy ─────────────────────────────────────┴→ merges → measuring on every task
//! ```

use std::path::Path;

use anyhow::{Context, Result};
use evaluate::tasks::{TaskSpec, zero_shot_classes};
use merge::methods::Base;
use serde_json::{Value, json};
use train::recipe::overlay;

use super::recipe::{CopyTask, FINE_TUNED, Merge, MultiTaskRecipe, PRETRAINED};
use crate::study::recipe::GRAM_FILE;
use crate::study::results::Findings;
use crate::study::step::{Draft, Kind, Place, Step, Word};
use crate::study::step_plan::{On, StepPlan};
use crate::study::{Store, Study};

/// The task by which models are measured.
const TASK: &TaskSpec = &zero_shot_classes::SPEC;

/// The file that a step leaves.
const COPY: &str = "model.safetensors";
const MERGED: &str = "merged.safetensors";
const MASKS: &str = "masks.safetensors";
/// The part of a step's standard output that the runner keeps.
const SAID: &str = "stdout.txt";

/// A row of the table: measured weights.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in reports; no two rows share one.
    pub name: String,
    /// The origin of its weights.
    pub origin: Origin,
    /// The weights by task: one model, or a model of each task.
    weights: Vec<Place>,
}

/// The origins of the weights of a row.
#[derive(Clone, Debug)]
pub enum Origin {
    /// The model that all copies started from.
    Pretrained,
    /// Each copy on its own task.
    FineTuned,
    /// The copy of one task, on all tasks.
    Copy,
    /// A merge of all copies, and the steps that only it needs.
    Merge(Box<Merge>, Vec<String>),
}

/// A task with the steps that measure all rows on it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The report of the test split.
    pub test: Place,
    /// Its predictions.
    pub predictions: Place,
    /// The report of the validation split, of those merges between which is chosen.
    pub validation: Option<Place>,
}

/// A study of merges of many tasks, planned.
#[derive(Debug)]
pub struct MultiTask {
    /// The recipe.
    pub recipe: MultiTaskRecipe,
    steps: Vec<Step>,
    /// The weights measured on the test splits.
    pub rows: Vec<Row>,
    /// Those of them that are measured on validation splits, by their places.
    pub swept: Vec<usize>,
    /// Measurements, by task.
    pub judged: Vec<Judged>,
    /// The result of `advise` for base and copies, as JSON.
    pub advice: Place,
}

impl MultiTask {
    /// Reads a recipe, with settings changed, and plans the study; every training recipe in it is checked.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        let recipe = MultiTaskRecipe::open(path, settings)?;
        let mut builder = Builder {
            recipe: &recipe,
            plan: StepPlan::new(&recipe.data, &recipe.model),
        };
        let base = builder.base()?;
        let mut copies = Vec::new();
        for task in &recipe.tasks {
            copies.push(builder.copy(task, &base)?);
        }
        let advice = builder.advice(&base, &copies);
        let rows = builder.rows(&base, &copies)?;
        let swept = recipe_swept(&rows);
        let mut judged = Vec::new();
        for (index, task) in recipe.tasks.iter().enumerate() {
            judged.push(builder.judge(index, task, &rows, &swept));
        }
        let steps = builder.plan.into_steps();
        Ok(Self {
            recipe,
            steps,
            rows,
            swept,
            judged,
            advice,
        })
    }
}

impl Study for MultiTask {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn join(&self, store: &Store) -> Result<Findings> {
        super::results::join(self, store)
    }
}

/// The rows of methods that have a list.
fn recipe_swept(rows: &[Row]) -> Vec<usize> {
    let is_swept = |row: &Row| match &row.origin {
        Origin::Merge(merge, _) => merge.point.at.is_some(),
        _ => false,
    };
    let swept = rows.iter().enumerate().filter(|(_, row)| is_swept(row));
    swept.map(|(index, _)| index).collect()
}

struct Builder<'a> {
    recipe: &'a MultiTaskRecipe,
    plan: StepPlan<'a>,
}

impl Builder<'_> {
    fn classes(&self) -> Place {
        Place::Outside(self.recipe.classes.clone())
    }

    /// The pretrained model.
    fn base(&mut self) -> Result<Place> {
        let recipe = self.recipe;
        let Some(pretrain) = &recipe.pretrain else {
            let given = recipe.init.checkpoint.clone();
            return Ok(Place::Outside(given.context("no pretrained model")?));
        };
        let draft = self
            .plan
            .recipe_from_start(pretrain, &json!({}), &recipe.init)?;
        self.plan.run("pretrain", "pretrain", "pretrain", draft)
    }

    /// The copy of a task: fine-tuned with a frozen head of the class texts, which is left out in the end.
    fn copy(&mut self, task: &CopyTask, base: &Place) -> Result<Place> {
        if let Some(path) = &task.model {
            return Ok(Place::Outside(path.clone()));
        }
        let name = &task.dataset;
        let head = Step::new(format!("head-{name}"), Kind::Run, &["start.safetensors"]);
        let mut words: Vec<Word> = vec![
            "classifier".into(),
            base.clone().into(),
            Place::Own("start.safetensors".into()).into(),
            "--force".into(),
            "--data".into(),
            self.classes().into(),
            "--dataset".into(),
            name.as_str().into(),
            "--split".into(),
            task.train.as_str().into(),
            "--tokenizer".into(),
            self.plan.tokenizer(),
        ];
        words.extend(self.plan.of_model());
        let head = head.command(words);
        let start = head.output("start.safetensors");
        self.plan.add(head);

        let mut training = json!({ "objectives": [{ "name": "image_classification" }] });
        for part in [&self.recipe.finetune, &task.finetune]
            .into_iter()
            .flatten()
        {
            overlay(&mut training, &part.document()?);
        }
        let data = json!({
            "format": "folders",
            "folder": "classes",
            "train": [{ "dataset": name, "split": task.train }],
        });
        let draft = self
            .plan
            .recipe_of_classes(training, &data, &self.recipe.classes, &start);
        let of = format!("finetune on {name}");
        let tuned = self
            .plan
            .run("pretrain", &format!("finetune-{name}"), &of, draft)?;
        // All of the copy and nothing of the base, except for the head, which the base lacks.
        let document = json!({
            "merge_method": "linear",
            "models": [
                { "model": "tuned", "parameters": { "weight": 1.0 } },
                { "model": "base", "parameters": { "weight": 0.0 } },
            ],
            "on_missing": "skip",
        });
        let paths = vec![
            ("/models/0/model".into(), tuned),
            ("/models/1/model".into(), base.clone()),
        ];
        Ok(self.merged(format!("copy-{name}"), document, paths, COPY, false))
    }

    /// A step that merges by a recipe; its merged file.
    fn merged(
        &mut self,
        name: String,
        document: Value,
        paths: Vec<(String, Place)>,
        output: &str,
        has_masks: bool,
    ) -> Place {
        let mut step = Step::new(name, Kind::Plain, &[output]);
        step.drafts.push(Draft {
            paths,
            ..Draft::new("recipe.yaml", document)
        });
        let mut words: Vec<Word> = vec![
            "merge".into(),
            Place::Own("recipe.yaml".into()).into(),
            "--out".into(),
            Place::Own(output.into()).into(),
            "--force".into(),
        ];
        if has_masks {
            words.extend(["--masks".into(), Place::Own(MASKS.into()).into()]);
            step.outputs.push(MASKS.into());
        }
        let step = step.command(words);
        let place = step.output(output);
        self.plan.add(step);
        place
    }

    /// The merges that the task vectors speak for, before any merge is measured.
    fn advice(&mut self, base: &Place, copies: &[Place]) -> Place {
        let mut words: Vec<Word> = vec![
            "advise".into(),
            "--json".into(),
            "--base".into(),
            base.clone().into(),
        ];
        words.extend(copies.iter().map(|copy| copy.clone().into()));
        let step = Step::new("advise", Kind::Plain, &[SAID]).command(words);
        let place = step.output(SAID);
        self.plan.add(step);
        place
    }

    /// Everything that is measured: the pretrained model, the copies, the merges.
    fn rows(&mut self, base: &Place, copies: &[Place]) -> Result<Vec<Row>> {
        let n = copies.len();
        let row = |name: &str, origin, weights| Row {
            name: name.to_owned(),
            origin,
            weights,
        };
        let mut rows = vec![
            row(PRETRAINED, Origin::Pretrained, vec![base.clone(); n]),
            row(FINE_TUNED, Origin::FineTuned, copies.to_vec()),
        ];
        for (task, copy) in self.recipe.tasks.iter().zip(copies) {
            rows.push(row(&task.dataset, Origin::Copy, vec![copy.clone(); n]));
        }
        for merge in self.recipe.merges()? {
            rows.push(self.merge(merge, base, copies));
        }
        Ok(rows)
    }

    fn merge(&mut self, merge: Merge, base: &Place, copies: &[Place]) -> Row {
        let named = &self.recipe.methods[merge.method];
        let name = match &merge.point.at {
            None => named.name().to_owned(),
            Some((parameter, value)) => format!("{} at {parameter} {value}", named.name()),
        };
        let at = merge.point.at.as_ref();
        let slug = format!(
            "{}-{}{}",
            merge.method,
            slug(named.name()),
            at.map_or_else(String::new, |(parameter, value)| format!(
                "-{parameter}-{value}"
            ))
        );
        let mut document = json!({
            "merge_method": merge.point.method,
            "models": copies.iter().map(|_| json!({ "model": "copy" })).collect::<Vec<_>>(),
            "parameters": merge.point.parameters,
        });
        let of_models = copies.iter().enumerate();
        let mut paths: Vec<(String, Place)> = of_models
            .map(|(at, copy)| (format!("/models/{at}/model"), copy.clone()))
            .collect();
        if merge.needs.base != Base::None {
            document["base_model"] = json!({ "model": "base" });
            paths.push(("/base_model/model".into(), base.clone()));
        }
        let merge_step = format!("merge-{slug}");
        let mut steps = vec![merge_step.clone()];
        if merge.has_grams {
            for (at, (task, copy)) in self.recipe.tasks.iter().zip(copies).enumerate() {
                document["models"][at]["parameters"] = json!({ "grams": GRAM_FILE });
                paths.push((
                    format!("/models/{at}/parameters/grams"),
                    self.grams(task, copy),
                ));
                steps.push(format!("grams-{}", task.dataset));
            }
        }
        let merged = self.merged(merge_step.clone(), document, paths, MERGED, merge.has_masks);
        let weights = match merge.has_masks {
            false => vec![merged; copies.len()],
            true => {
                let masks = Place::Of(merge_step, MASKS.into());
                let tasks = 0..copies.len();
                tasks
                    .map(|task| self.restored(task, &slug, [&merged, &masks, base], &mut steps))
                    .collect()
            }
        };
        Row {
            name,
            origin: Origin::Merge(Box::new(merge), steps),
            weights,
        }
    }

    /// The model of one task, of a merge with masks.
    fn restored(
        &mut self,
        task: usize,
        slug: &str,
        [merged, masks, base]: [&Place; 3],
        steps: &mut Vec<String>,
    ) -> Place {
        let name = format!("task-{slug}-{}", self.recipe.tasks[task].dataset);
        steps.push(name.clone());
        let step = Step::new(name, Kind::Plain, &[COPY]).command([
            "task".into(),
            merged.clone().into(),
            "--masks".into(),
            masks.clone().into(),
            "--base".into(),
            base.clone().into(),
            "--task".into(),
            task.to_string().into(),
            "--out".into(),
            Place::Own(COPY.into()).into(),
            "--force".into(),
        ]);
        let place = step.output(COPY);
        self.plan.add(step);
        place
    }

    /// Gram matrices of a copy over its own pictures.
    fn grams(&mut self, task: &CopyTask, copy: &Place) -> Place {
        let mut words: Vec<Word> = vec![
            "gram".into(),
            "--checkpoint".into(),
            copy.clone().into(),
            "--out".into(),
            Place::Own(GRAM_FILE.into()).into(),
            "--force".into(),
            "--shared".into(),
        ];
        words.extend(self.on(task, &task.train));
        if let Some(limit) = self.recipe.grams.limit {
            words.extend(["--limit".into(), limit.to_string().into()]);
        }
        let step = Step::new(format!("grams-{}", task.dataset), Kind::Run, &[GRAM_FILE]);
        let step = step.command(words);
        let place = step.output(GRAM_FILE);
        self.plan.add(step);
        place
    }

    fn on(&self, task: &CopyTask, split: &str) -> Vec<Word> {
        let on = On {
            task: TASK,
            dataset: &task.dataset,
            split,
        };
        self.plan.on_folder(on, self.classes())
    }

    /// Measures all rows on the test split of a task, and those between which is chosen on its validation split.
    fn judge(&mut self, index: usize, task: &CopyTask, rows: &[Row], swept: &[usize]) -> Judged {
        let name = &task.dataset;
        let words = |split: &str| {
            let mut words = self.on(task, split);
            words.extend([
                "--resamples".into(),
                self.recipe.resamples.to_string().into(),
                // Tasks are drawn independently.
                "--seed".into(),
                index.to_string().into(),
            ]);
            if let Some(limit) = self.recipe.limit {
                words.extend(["--limit".into(), limit.to_string().into()]);
            }
            words
        };
        let mut of_test = words(&task.test);
        let of_validation = words(&task.validation);
        of_test.extend([
            "--predictions".into(),
            Place::Own("predictions".into()).into(),
        ]);
        let measured = rows.iter().enumerate();
        let models = measured.map(|(at, row)| (measured_as(at), &row.weights[index]));
        let models: Vec<(String, &Place)> = models.collect();
        let called = |at: &usize| (models[*at].0.as_str(), models[*at].1);
        let all: Vec<usize> = (0..rows.len()).collect();
        let test_step = format!("evaluate-{name}");
        let test = self
            .plan
            .evaluate(test_step.clone(), all.iter().map(called), of_test);
        let validation = (!swept.is_empty()).then(|| {
            let name = format!("validate-{name}");
            self.plan
                .evaluate(name, swept.iter().map(called), of_validation)
        });
        Judged {
            test,
            predictions: Place::Of(test_step, "predictions".into()),
            validation,
        }
    }
}

/// The name of a row in the report of a step: its place, which also names a file of predictions.
pub fn measured_as(row: usize) -> String {
    format!("row-{row}")
}

/// A name for a folder.
fn slug(name: &str) -> String {
    let plain = |c: char| match c.is_ascii_alphanumeric() || c == '_' {
        true => c,
        false => '-',
    };
    name.chars().map(plain).collect()
}
