//! Steps between pre-training and measuring: distances of experts, gram matrices, merges.

use anyhow::Result;
use merge::methods::Base;
use serde_json::json;
use train::recipe::ExpertForm;

use super::graph::{Apart, Builder, Experts};
use super::recipe::{GRAM_FILE, MergePoint, StudyTask};
use super::step::{Draft, Kind, Place, Step, Word};
use crate::output::UsageError;

impl Builder<'_> {
    /// Distances between the copies of a model, or between every two models.
    pub(super) fn distances(&mut self, of: &Experts) -> Vec<Apart> {
        let after = of.after();
        if let [(model, only)] = of.models.as_slice() {
            let name = format!("distances-{}", of.slug());
            return vec![Apart {
                label: match of.is_main {
                    true => format!("experts {after}"),
                    false => format!("{model} experts {after}"),
                },
                names: (format!("{model} {after}"), None),
                place: self.distance(name, [Some(only), None], of.seed.as_ref()),
            }];
        }
        let mut found = Vec::new();
        for (index, (one, first)) in of.models.iter().enumerate() {
            for (other, second) in &of.models[index + 1..] {
                let name = format!("distances-{}-{one}-{other}", of.slug());
                found.push(Apart {
                    label: format!("{one} and {other} {after}"),
                    names: (format!("{one} {after}"), Some(format!("{other} {after}"))),
                    place: self.distance(name, [Some(first), Some(second)], of.seed.as_ref()),
                });
            }
        }
        found
    }

    fn distance(
        &mut self,
        name: String,
        models: [Option<&Place>; 2],
        seed: Option<&Place>,
    ) -> Place {
        let step = Step::new(name, Kind::Plain, &["stdout.txt"]);
        let mut words = vec!["distance".into()];
        words.extend(
            models
                .into_iter()
                .flatten()
                .map(|model| model.clone().into()),
        );
        words.push("--json".into());
        if let Some(seed) = seed {
            words.extend(["--seed-checkpoint".into(), seed.clone().into()]);
        }
        let step = step.command(words);
        let output = step.output("stdout.txt");
        self.add(step);
        output
    }

    /// Gram matrices of the `index`-th expert.
    fn grams(&mut self, task: &StudyTask, of: &Experts, index: usize) -> Place {
        let (expert, weights) = &of.models[index];
        let name = format!("grams-{}-{}", of.slug(), task.dataset());
        let (name, has_copies) = match of.models.len() {
            1 => (name, true),
            _ => (format!("{name}-{expert}"), false),
        };
        let mut words: Vec<Word> = vec![
            "gram".into(),
            "--checkpoint".into(),
            weights.clone().into(),
            "--out".into(),
            Place::Own("gram.safetensors".into()).into(),
            "--force".into(),
        ];
        if !has_copies {
            words.push("--shared".into());
        }
        words.extend(self.on(task, &task.grams));
        if let Some(limit) = self.recipe.grams.limit {
            words.extend(["--limit".into(), limit.to_string().into()]);
        }
        let step = Step::new(name, Kind::Run, &["gram.safetensors"]).command(words);
        let output = step.output("gram.safetensors");
        self.add(step);
        output
    }

    /// A merge of experts for a task.
    pub(super) fn merge(
        &mut self,
        task: &StudyTask,
        point: &MergePoint,
        of: &Experts,
    ) -> Result<Place> {
        let seed = &of.seed;
        let mut document = json!({
            "merge_method": point.method,
            "models": of.models.iter().map(|_| json!({ "model": "weights" })).collect::<Vec<_>>(),
            "parameters": point.parameters,
        });
        let has_copies = of.models.len() == 1;
        if has_copies {
            document["for"] = json!(task.task.published_experts);
        }
        let models = of.models.iter().enumerate();
        let models = models.map(|(at, (_, weights))| (format!("/models/{at}/model"), weights));
        let mut paths: Vec<(String, Place)> =
            models.map(|(at, weights)| (at, weights.clone())).collect();
        let (method, is_of_grams) = point.method()?;
        if method.needs_masks() {
            let name = &point.method;
            let what = format!(
                "`merges`: {name} makes no model by itself, only one of each task; leave it out, or study copies that are fine-tuned on tasks (`methods`)"
            );
            return Err(UsageError(what).into());
        }
        if is_of_grams && of.form == Some(ExpertForm::LnSpecific) {
            let name = &point.method;
            let what = format!(
                "`merges`: {name} weighs linear layers by their inputs, and of `ln-specific` experts only norms have copies; leave it out"
            );
            return Err(UsageError(what).into());
        }
        if is_of_grams && has_copies {
            document["parameters"]["grams"] = json!(GRAM_FILE);
            let grams = self.grams(task, of, 0);
            paths.push(("/parameters/grams".into(), grams));
        }
        if is_of_grams && !has_copies {
            for at in 0..of.models.len() {
                document["models"][at]["parameters"] = json!({ "grams": GRAM_FILE });
                let grams = self.grams(task, of, at);
                paths.push((format!("/models/{at}/parameters/grams"), grams));
            }
        }
        if method.needs().base != Base::None
            && let Some(seed) = seed
        {
            document["base_model"] = json!({ "model": "seed.safetensors" });
            paths.push(("/base_model/model".into(), seed.clone()));
        }
        let slug = point.name().replace([' ', '/'], "-");
        let name = format!("merge-{}-{}-{slug}", task.dataset(), of.slug());
        let mut step = Step::new(name, Kind::Plain, &["merged.safetensors"]);
        step.drafts.push(Draft {
            paths,
            ..Draft::new("recipe.yaml", document)
        });
        let step = step.command([
            "merge".into(),
            Place::Own("recipe.yaml".into()).into(),
            "--out".into(),
            Place::Own("merged.safetensors".into()).into(),
            "--force".into(),
        ]);
        let output = step.output("merged.safetensors");
        self.add(step);
        Ok(output)
    }
}
