//! The recipe of a study of merges of many tasks, as written in YAML.

use std::path::{Path, PathBuf};

use anyhow::Result;
use evaluate::metrics::bootstrap::Bootstrap;
use merge::methods::{Base, Needs};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use train::recipe::{Init, ModelSettings, open_document};

use crate::output::UsageError;
use crate::study::recipe::{GramSettings, MergePoint, MergeSettings, StudyData, Training};

/// The key that tells such a recipe from others.
pub const KEY: &str = "methods";

/// Rows that are no merges: their names are taken.
pub const PRETRAINED: &str = "pretrained";
pub const FINE_TUNED: &str = "fine-tuned";

/// Everything from fresh weights, or from a checkpoint, to a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiTaskRecipe {
    /// Heading of the report.
    pub title: String,
    /// The tokenizer, and captions if `pretrain` learns from some.
    pub data: StudyData,
    /// Folder of the tasks' data sets, each with folders of classes.
    pub classes: PathBuf,
    /// The start of pre-training; without `pretrain` the pretrained checkpoint.
    pub init: Init,
    /// Facts about the model that its checkpoint lacks.
    #[serde(default)]
    pub model: ModelSettings,
    /// The pre-training; without it `init.checkpoint` is the pretrained model.
    #[serde(default)]
    pub pretrain: Option<Training>,
    /// The fine-tuning of the copies; not needed where every task has a `model`.
    #[serde(default)]
    pub finetune: Option<Training>,
    /// The tasks, each with a copy of its own.
    pub tasks: Vec<CopyTask>,
    /// Ways to merge the copies; a parameter with a list of values is chosen on validation data.
    pub methods: Vec<NamedMethod>,
    /// The row that all other merges are tested against: a method's name, or `pretrained`.
    pub baseline: String,
    /// The examples over which gram matrices are summed.
    #[serde(default)]
    pub grams: GramSettings,
    /// First pictures of a split alone, as even over its classes as can be.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Draws of the bootstrap: the smallest p-value is 2 over them and one more.
    #[serde(default = "draws")]
    pub resamples: usize,
}

/// A task and its copy of the model.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyTask {
    /// The data set, by its folder.
    pub dataset: String,
    /// A copy that was fine-tuned elsewhere, in place of fine-tuning one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// In what the fine-tuning of this copy differs from `finetune`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Training>,
    /// The split that the copy learns from, and whose gram matrices are summed.
    #[serde(default = "train")]
    pub train: String,
    /// The split that parameters are chosen on.
    #[serde(default = "val")]
    pub validation: String,
    /// The split of the table.
    #[serde(default = "test")]
    pub test: String,
}

/// A way to merge, and what the table calls it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NamedMethod {
    /// Its name in the table; that of the method unless given.
    #[serde(default)]
    pub name: Option<String>,
    /// Method and parameters.
    #[serde(flatten)]
    pub settings: MergeSettings,
}

/// A merge, as planned.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The method, by its place in the recipe.
    pub method: usize,
    /// Its parameters.
    pub point: MergePoint,
    /// The statistics that it needs.
    pub needs: Needs,
    /// Whether gram matrices over data are summed for it.
    pub has_grams: bool,
    /// Whether it makes a model of each task.
    pub has_masks: bool,
}

impl NamedMethod {
    /// Its name in the table.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.settings.method)
    }
}

impl MultiTaskRecipe {
    /// Reads a recipe, with settings changed, and checks it.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        let recipe: Self = open_document(path, settings)?;
        recipe.check()?;
        Ok(recipe)
    }

    /// All merges, method by method; a method whose parameter has a list makes several.
    pub fn merges(&self) -> Result<Vec<Merge>> {
        let mut merges = Vec::new();
        for (method, named) in self.methods.iter().enumerate() {
            for point in named.settings.points()? {
                let (found, has_grams) = point.method()?;
                merges.push(Merge {
                    method,
                    point,
                    needs: found.needs(),
                    has_grams,
                    has_masks: found.needs_masks(),
                });
            }
        }
        Ok(merges)
    }

    fn check(&self) -> Result<()> {
        self.init.check()?;
        match &self.pretrain {
            Some(pretrain) => {
                self.data.check()?;
                owned("pretrain", &pretrain.settings, &["init", "model"])?;
            }
            None => self.check_pretrained()?,
        }
        if self.limit == Some(0) {
            return bad("`limit`: at least one picture is measured");
        }
        Bootstrap::new(self.resamples, 0)
            .map_err(|error| UsageError(format!("`resamples`: {error}")))?;
        self.check_tasks()?;
        self.check_methods()
    }

    fn check_pretrained(&self) -> Result<()> {
        if self.init.checkpoint.is_none() || self.init.expand.is_some() {
            return bad(
                "`init`: without `pretrain` give the pretrained model as `checkpoint`, and nothing else",
            );
        }
        if self.data.folder.is_some() || self.data.build.is_some() {
            return bad(
                "`data`: captions are for `pretrain`, and there is none; give `tokenizer` alone",
            );
        }
        Ok(())
    }

    fn check_tasks(&self) -> Result<()> {
        if self.tasks.len() < 2 {
            return bad("`tasks`: one alone has nothing to be merged with");
        }
        for (index, task) in self.tasks.iter().enumerate() {
            let name = &task.dataset;
            if !is_plain(name) {
                return bad(format!(
                    "`tasks`: {name:?} names no data set; give letters, digits, `_` and `-`"
                ));
            }
            if self.tasks[..index]
                .iter()
                .any(|other| other.dataset == *name)
            {
                return bad(format!("`tasks`: {name} comes twice"));
            }
            for (what, split) in [
                ("learned from", &task.train),
                ("chosen on", &task.validation),
            ] {
                if *split == task.test {
                    return bad(format!(
                        "`tasks`: the test split `{split}` of {name} is {what}"
                    ));
                }
            }
            match (&task.model, &task.finetune, &self.finetune) {
                (Some(_), Some(_), _) => {
                    return bad(format!(
                        "`tasks`: {name} has a `model`, which is not fine-tuned; leave out its `finetune`"
                    ));
                }
                (None, None, None) => {
                    return bad(format!(
                        "`tasks`: nothing says how the copy of {name} is fine-tuned; give `finetune`, or its `model`"
                    ));
                }
                _ => {}
            }
            if let Some(own) = &task.finetune {
                owned("tasks.finetune", &own.settings, &["init", "model", "data"])?;
            }
        }
        match &self.finetune {
            Some(finetune) => owned("finetune", &finetune.settings, &["init", "model", "data"]),
            None => Ok(()),
        }
    }

    fn check_methods(&self) -> Result<()> {
        if self.methods.is_empty() {
            return bad("`methods`: there is none");
        }
        for (index, method) in self.methods.iter().enumerate() {
            let name = method.name();
            if name.is_empty() || name.chars().any(char::is_control) {
                return bad(format!("`methods`: {name:?} cannot be the name of a row"));
            }
            if name == PRETRAINED
                || name == FINE_TUNED
                || self.tasks.iter().any(|t| t.dataset == name)
            {
                return bad(format!(
                    "`methods`: {name} is the name of another row; choose another `name`"
                ));
            }
            if self.methods[..index]
                .iter()
                .any(|other| other.name() == name)
            {
                return bad(format!("`methods`: {name} comes twice; give one a `name`"));
            }
        }
        for merge in self.merges()? {
            let (name, n) = (self.methods[merge.method].name(), self.tasks.len());
            if let Some(parameter) = merge.needs.paired {
                return bad(format!(
                    "`methods`: {name} needs a file beside each model (`{parameter}`), which a study does not make; leave it out"
                ));
            }
            if !merge.needs.takes(n, merge.needs.base != Base::None) {
                let takes = merge.needs.in_words();
                return bad(format!(
                    "`methods`: {name} takes {takes}, and there are {n} copies"
                ));
            }
        }
        let is_known = self.baseline == PRETRAINED
            || self
                .methods
                .iter()
                .any(|method| method.name() == self.baseline);
        if !is_known {
            let names: Vec<&str> = self.methods.iter().map(NamedMethod::name).collect();
            return bad(format!(
                "`baseline`: {} is no row; give {PRETRAINED} or a method: {}",
                self.baseline,
                names.join(", ")
            ));
        }
        Ok(())
    }
}

/// Whether a name can be that of a folder.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !name.is_empty() && name.chars().all(is_plain)
}

fn owned(key: &str, settings: &Map<String, Value>, owned: &[&str]) -> Result<()> {
    match owned.iter().find(|owned| settings.contains_key(**owned)) {
        Some(owned) => bad(format!("`{key}.{owned}`: the study says that itself")),
        None => Ok(()),
    }
}

fn bad<T>(what: impl Into<String>) -> Result<T> {
    Err(UsageError(what.into()).into())
}

fn draws() -> usize {
    10_000
}

fn train() -> String {
    "train".into()
}

fn val() -> String {
    "val".into()
}

fn test() -> String {
    "test".into()
}
