//! The recipe of a study, as written in YAML.

use std::path::{Path, PathBuf};

use anyhow::Result;
use evaluate::tasks::{TaskOption, TaskSpec};
use merge::methods::{self, MergeMethod};
use merge::recipe::Parameters;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use train::recipe::{
    CheckedRecipe, ExpertForm, Init, ModelSettings, Synth, SynthFamily, TrainRecipe, open_document,
    overlay,
};

use crate::output::UsageError;

/// Everything from fresh weights to a table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyRecipe {
    /// Heading of the report.
    pub title: String,
    /// The data to learn from and to measure on.
    pub data: StudyData,
    /// The start of all pre-training: a modality-agnostic checkpoint, or fresh weights.
    pub init: Init,
    /// Facts about the model that its checkpoint lacks.
    #[serde(default)]
    pub model: ModelSettings,
    /// The parts of a block that get a copy per modality after the seed: all, unless there are `experts`. Of several forms the
    /// first is studied whole, the others after the main seed alone.
    #[serde(default)]
    pub specific: Option<Forms>,
    /// Models that go on from the seed each by itself, in place of copies per modality.
    #[serde(default)]
    pub experts: Vec<ExpertTraining>,
    /// The settings of pre-training, for seed and experts alike.
    pub pretrain: Training,
    /// Steps of pre-training, of the seed and of the experts together.
    pub budget_steps: u64,
    /// Steps of the seed, each of which is a model of its own; 0 is no seed.
    pub seed_steps: Vec<u64>,
    /// Steps of the seed whose experts are merged in every way.
    pub main_seed_steps: u64,
    /// The examples over which gram matrices are summed.
    #[serde(default)]
    pub grams: GramSettings,
    /// Ways to merge; a parameter with a list of values is a sweep.
    pub merges: Vec<MergeSettings>,
    /// The way to merge after every other length of the seed.
    pub merge_of_seeds: MergeSettings,
    /// The ways to merge experts of every form, where `specific` lists several: `merge_of_seeds`, unless given.
    #[serde(default)]
    pub merges_of_forms: Vec<MergeSettings>,
    /// The tasks on which models are measured, fine-tuned or as they are.
    pub tasks: Vec<StudyTask>,
}

/// One form of experts or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a form of experts, such as `all-specific`, or a list of forms"
)]
pub enum Forms {
    /// One.
    One(ExpertForm),
    /// Several, the one that is studied whole first.
    Several(Vec<ExpertForm>),
}

impl Forms {
    /// As a list.
    pub fn list(&self) -> &[ExpertForm] {
        match self {
            Self::One(form) => std::slice::from_ref(form),
            Self::Several(forms) => forms,
        }
    }
}

/// The data to learn from and to measure on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyData {
    /// Folder of arrow files.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Instead of one: make it of downloads.
    #[serde(default)]
    pub build: Option<BuildSettings>,
    /// A vocab.txt or tokenizer.json, a folder with one, or a name on the hub.
    #[serde(default = "bert_name")]
    pub tokenizer: String,
}

impl StudyData {
    /// Checks the settings.
    pub fn check(&self) -> Result<()> {
        one_of(&self.folder, &self.build, "data")
    }
}

fn one_of(folder: &Option<PathBuf>, build: &Option<BuildSettings>, key: &str) -> Result<()> {
    match folder.is_some() == build.is_some() {
        true => Err(UsageError(format!("`{key}`: give a `folder`, or `build` one")).into()),
        false => Ok(()),
    }
}

/// Arrow files from downloads, as `vlmerge data build` makes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildSettings {
    /// Folder of the downloads.
    pub raw: PathBuf,
    /// Names of data sets.
    pub sets: Vec<String>,
}

/// A training recipe, or the settings that differ from one; the study adds start, model, data and length.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Training {
    /// The recipe that is changed.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// Settings of it.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

impl Training {
    /// The recipe with the settings in it.
    pub fn document(&self) -> Result<Value> {
        let mut document = match &self.recipe {
            Some(path) => open_document(path, &[])?,
            None => Value::Object(Map::new()),
        };
        overlay(&mut document, &Value::Object(self.settings.clone()));
        Ok(document)
    }
}

/// A model that goes on from the seed by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExpertTraining {
    /// Its name.
    pub name: String,
    /// The settings in which its training differs from that of the seed, such as its data.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// The examples over which gram matrices are summed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GramSettings {
    /// The first ones alone.
    pub limit: Option<usize>,
}

/// A way to merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeSettings {
    /// Its name, as in merge recipes.
    pub method: String,
    /// Its parameters, of which one may be a list.
    #[serde(flatten)]
    pub parameters: Map<String, Value>,
    /// More of them, as merge recipes have them: for those whose names mean something else here, such as `method`.
    #[serde(default, rename = "parameters", skip_serializing_if = "Map::is_empty")]
    pub nested: Map<String, Value>,
}

/// A task on which models are measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudyTask {
    /// The task.
    pub task: &'static TaskSpec,
    /// The data set of a task that works on several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// The split that parameters are chosen on.
    pub validation: String,
    /// The split of the table.
    pub test: String,
    /// The split whose gram matrices are summed.
    #[serde(default = "train_name")]
    pub grams: String,
    /// The fine-tuning of models; without it they are measured as they come.
    #[serde(default)]
    pub finetune: Option<Training>,
    /// Further data that the same models are measured on. Nothing is chosen there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<OtherTest>,
}

/// Further data that the models of a task are measured on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherTest {
    /// Its name in tables.
    pub name: String,
    /// The data.
    pub data: OtherData,
    /// The split of the table.
    pub test: String,
}

/// Data to measure on, beside that of the study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtherData {
    /// Folder of arrow files.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Instead of one: make it of downloads.
    #[serde(default)]
    pub build: Option<BuildSettings>,
}

impl StudyTask {
    /// The data set.
    pub fn dataset(&self) -> &str {
        self.dataset.as_deref().unwrap_or(self.task.dataset)
    }
}

impl StudyRecipe {
    /// Reads a recipe, with settings changed, and checks it.
    pub fn open(path: &Path, settings: &[String]) -> Result<Self> {
        let recipe: Self = open_document(path, settings)?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<()> {
        let bad = |what: String| Err(UsageError(what).into());
        self.init.check()?;
        if self.init.expand.is_some() {
            return bad("`init.expand`: a study starts from a modality-agnostic model".into());
        }
        self.data.check()?;
        if !self.seed_steps.contains(&self.main_seed_steps) {
            let main = self.main_seed_steps;
            return bad(format!("`main_seed_steps`: {main} is not in `seed_steps`"));
        }
        if self.main_seed_steps == 0 {
            return bad("`main_seed_steps`: experts without a seed have no base".into());
        }
        if let Some(steps) = self.seed_steps.iter().find(|&&s| s >= self.budget_steps) {
            let budget = self.budget_steps;
            return bad(format!(
                "`seed_steps`: after {steps} of {budget} steps nothing is left for the experts"
            ));
        }
        for (key, settings) in self.trainings() {
            for owned in ["init", "model", "length"] {
                let is_owned = owned != "length" || key != "tasks.finetune";
                if is_owned && settings.contains_key(owned) {
                    return bad(format!("`{key}.{owned}`: the study says that itself"));
                }
            }
        }
        self.check_experts()?;
        self.check_forms()?;
        if self.tasks.is_empty() {
            return bad("`tasks`: there is none".into());
        }
        for task in &self.tasks {
            let name = task.task.name;
            if task.task.open.is_none() {
                return bad(format!("`tasks`: no model is run on {name}"));
            }
            if task.dataset.is_some() && !task.task.takes(TaskOption::Dataset) {
                return bad(format!(
                    "`tasks`: {name} has one data set alone; leave out `dataset`"
                ));
            }
            if task.validation == task.test {
                let (data, split) = (task.dataset(), &task.test);
                return bad(format!(
                    "`tasks`: parameters of merges would be chosen on the test split `{split}` of {data}"
                ));
            }
            for (index, other) in task.also.iter().enumerate() {
                one_of(&other.data.folder, &other.data.build, "tasks.also.data")?;
                let name = &other.name;
                if name.is_empty() || task.also[..index].iter().any(|o| o.name == *name) {
                    return bad(format!(
                        "`tasks.also`: {name:?} names no data, or comes twice"
                    ));
                }
                let of_all = self.tasks.iter().flat_map(|task| &task.also);
                let mut same = of_all.filter(|o| o.name == *name);
                if same.any(|o| o.data != other.data) {
                    return bad(format!(
                        "`tasks.also`: {name:?} is other data in another task"
                    ));
                }
            }
            let same = |other: &&StudyTask| other.dataset() == task.dataset();
            if self.tasks.iter().filter(same).count() > 1 {
                return bad(format!("`tasks`: {} comes twice", task.dataset()));
            }
        }
        if self.merge_of_seeds.points()?.len() != 1 {
            return bad("`merge_of_seeds`: its parameters have one value each".into());
        }
        Ok(())
    }

    /// The forms of experts, the one that is studied whole first; none where there are `experts`.
    pub fn forms(&self) -> &[ExpertForm] {
        match (&self.specific, self.experts.is_empty()) {
            (Some(forms), _) => forms.list(),
            (None, true) => &[ExpertForm::AllSpecific],
            (None, false) => &[],
        }
    }

    /// The ways to merge experts of every form, one parameter each.
    pub fn points_of_forms(&self) -> Result<Vec<MergePoint>> {
        let settings = match self.merges_of_forms.as_slice() {
            [] => std::slice::from_ref(&self.merge_of_seeds),
            given => given,
        };
        let mut points = Vec::new();
        for settings in settings {
            points.extend(settings.points()?);
        }
        Ok(points)
    }

    fn check_forms(&self) -> Result<()> {
        let bad = |what: &str| Err(UsageError(what.into()).into());
        let forms = self.forms();
        if self.specific.is_some() && forms.is_empty() {
            return bad("`specific`: there is no form in the list");
        }
        if forms.contains(&ExpertForm::Agnostic) {
            return bad("`specific`: `agnostic` has no experts; it is every study's baseline");
        }
        let mut seen = Vec::new();
        for form in forms {
            if seen.contains(form) {
                return bad("`specific`: a form comes twice");
            }
            seen.push(*form);
        }
        if !self.merges_of_forms.is_empty() && forms.len() < 2 {
            return bad("`merges_of_forms`: `specific` lists no second form");
        }
        let lists = self.merges_of_forms.iter();
        for settings in lists {
            if settings.points()?.len() != 1 {
                return bad("`merges_of_forms`: their parameters have one value each");
            }
        }
        Ok(())
    }

    fn check_experts(&self) -> Result<()> {
        let bad = |what: String| Err(UsageError(what).into());
        let is_pair =
            |synth: &Synth| matches!(synth.family, SynthFamily::Zerovl | SynthFamily::Flm);
        if self.experts.is_empty() {
            return match self.init.synth.as_ref().is_some_and(is_pair) {
                true => bad(
                    "`experts`: models of zerovl and flm have no copies per modality that could be merged; list two models or more that go on from the seed, each with its own data"
                        .into(),
                ),
                false => Ok(()),
            };
        }
        if self.specific.is_some() {
            return bad("`specific`: `experts` take the place of copies per modality".into());
        }
        let n = self.experts.len();
        if n < 2 {
            return bad("`experts`: one alone has nothing to be merged with".into());
        }
        for (index, expert) in self.experts.iter().enumerate() {
            let name = &expert.name;
            let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(is_plain) || name == "agnostic" {
                return bad(format!(
                    "`experts`: {name:?} names no expert; give letters, digits, `_` and `-`, and not `agnostic`, which is the baseline"
                ));
            }
            if self.experts[..index].iter().any(|e| e.name == *name) {
                return bad(format!("`experts`: {name} comes twice"));
            }
        }
        let uneven = |&&steps: &&u64| !(self.budget_steps - steps).is_multiple_of(n as u64);
        if let Some(&steps) = self.seed_steps.iter().find(uneven) {
            let rest = self.budget_steps - steps;
            return bad(format!(
                "`seed_steps`: the {rest} steps after {steps} cannot be shared by {n} experts"
            ));
        }
        Ok(())
    }

    fn trainings(&self) -> Vec<(&str, &Map<String, Value>)> {
        let finetunes = self.tasks.iter().filter_map(|task| task.finetune.as_ref());
        let finetunes = finetunes.map(|training| ("tasks.finetune", &training.settings));
        let experts = self.experts.iter();
        [("pretrain", &self.pretrain.settings)]
            .into_iter()
            .chain(experts.map(|expert| ("experts", &expert.settings)))
            .chain(finetunes)
            .collect()
    }
}

/// The file of gram matrices that a step leaves.
pub const GRAM_FILE: &str = "gram.safetensors";

/// A merge of a sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct MergePoint {
    /// Name of the method.
    pub method: String,
    /// All parameters.
    pub parameters: Map<String, Value>,
    /// The one that a list was given for, and its value.
    pub at: Option<(String, f64)>,
}

impl MergePoint {
    /// The method, and whether its gram matrices are files over data, which a study makes: they are named to it.
    pub fn method(&self) -> Result<(Box<dyn MergeMethod>, bool)> {
        let method = |parameters: &Map<String, Value>| -> Result<Box<dyn MergeMethod>> {
            let text = Value::Object(parameters.clone()).to_string();
            let parameters: Parameters = serde_saphyr::from_str(&text)?;
            Ok(methods::by_name(&self.method, &parameters, false)?)
        };
        if !self.parameters.contains_key("grams") {
            // Grams must be named before the method can be asked whether it needs them.
            let mut with_grams = self.parameters.clone();
            with_grams.insert("grams".into(), GRAM_FILE.into());
            if let Ok(found) = method(&with_grams)
                && found.needs().grams
            {
                return Ok((found, true));
            }
        }
        Ok((method(&self.parameters)?, false))
    }

    /// Its name.
    pub fn name(&self) -> String {
        let mut name = self.method.clone();
        for (key, value) in &self.parameters {
            name = format!("{name} {key} {value}");
        }
        name
    }
}

impl MergeSettings {
    /// A merge per value of the parameter with a list; one if there is none.
    pub fn points(&self) -> Result<Vec<MergePoint>> {
        let (mut all, method) = (self.parameters.clone(), &self.method);
        for (key, value) in &self.nested {
            if all.insert(key.clone(), value.clone()).is_some() {
                let what = format!("merges: `{method}` has `{key}` twice");
                return Err(UsageError(what).into());
            }
        }
        let lists = all.iter().filter(|(_, value)| value.is_array());
        let lists: Vec<_> = lists.collect();
        let point = |at: Option<(String, f64)>| {
            let mut parameters = all.clone();
            if let Some((key, value)) = &at {
                parameters.insert(key.clone(), Value::from(*value));
            }
            MergePoint {
                method: self.method.clone(),
                parameters,
                at,
            }
        };
        let Some((key, Value::Array(values))) = lists.first() else {
            return Ok(vec![point(None)]);
        };
        let numbers = values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        match numbers {
            Some(numbers) if lists.len() == 1 && !numbers.is_empty() => Ok(numbers
                .into_iter()
                .map(|number| point(Some(((*key).clone(), number))))
                .collect()),
            _ => {
                let what = format!("merges: `{method}` may have one list, of at least one number");
                Err(UsageError(what).into())
            }
        }
    }
}

/// The recipe of a run, checked.
pub fn checked(document: &Value, of: &str) -> Result<CheckedRecipe> {
    Ok(TrainRecipe::from_document(document.clone(), Path::new(of))?)
}

fn bert_name() -> String {
    "bert-base-uncased".into()
}

fn train_name() -> String {
    "train".into()
}
