//! Steps that studies of every kind plan alike: data, training runs, measuring.

use std::path::Path;

use anyhow::Result;
use evaluate::tasks::{TaskOption, TaskSpec};
use serde_json::{Value, json};
use train::objectives;
use train::recipe::{Init, ModelSettings, overlay};

use super::recipe::{BuildSettings, StudyData, Training, checked};
use super::step::{Draft, Kind, Place, Step, Word};

/// The steps of a study as far as they are planned.
pub(super) struct StepPlan<'a> {
    data: &'a StudyData,
    model: &'a ModelSettings,
    steps: Vec<Step>,
}

/// A split, and the work on it.
#[derive(Clone, Copy)]
pub(super) struct On<'a> {
    /// The task.
    pub task: &'static TaskSpec,
    /// Its data set.
    pub dataset: &'a str,
    /// The split.
    pub split: &'a str,
}

/// The weights that a run leaves, by its recipe.
fn weights_of(document: &Value) -> &'static str {
    match document.get("validation").is_some_and(|v| !v.is_null()) {
        true => "run/best.safetensors",
        false => "run/model.safetensors",
    }
}

/// Takes facts about the study's model out of the recipe of a run that does not read them: others of its runs do.
fn leave_unread(document: &mut Value) {
    let is_measured = document.get("validation").is_some_and(|v| !v.is_null());
    let objectives = document.get("objectives").and_then(Value::as_array);
    let names =
        (objectives.into_iter().flatten()).filter_map(|objective| objective.get("name")?.as_str());
    let specs: Vec<_> = names
        .filter_map(|name| objectives::spec(name).ok())
        .collect();
    let is_read = |key: &str| match key {
        "routing" => is_measured,
        "decoder_depth" | "tied_words" => {
            let setting = format!("model.{key}");
            specs.iter().any(|spec| spec.reads(&setting))
        }
        _ => true,
    };
    if let Some(Value::Object(model)) = document.get_mut("model") {
        model.retain(|key, _| is_read(key));
    }
}

impl<'a> StepPlan<'a> {
    /// The data, and nothing else yet.
    pub(super) fn new(data: &'a StudyData, model: &'a ModelSettings) -> Self {
        let mut plan = Self {
            data,
            model,
            steps: Vec::new(),
        };
        plan.build_data();
        plan
    }

    /// All of them; each stands behind those that it needs.
    pub(super) fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// Adds a step, or takes the one of this name that is there.
    pub(super) fn add(&mut self, step: Step) {
        if self.steps.iter().all(|known| known.name != step.name) {
            self.steps.push(step);
        }
    }

    fn build_data(&mut self) {
        if let Some(build) = &self.data.build {
            self.build("data".into(), build);
        }
    }

    /// Arrow files, built by a step unless they are there.
    pub(super) fn arrow_of(
        &mut self,
        name: &str,
        folder: Option<&Path>,
        build: Option<&BuildSettings>,
    ) -> Place {
        if let Some(folder) = folder {
            return Place::Outside(folder.into());
        }
        let step = format!("data-{name}");
        if let Some(build) = build {
            self.build(step.clone(), build);
        }
        Place::Of(step, "arrow".into())
    }

    fn build(&mut self, name: String, build: &BuildSettings) {
        let mut step = Step::new(name, Kind::Plain, &["arrow"]);
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
        match &self.data.folder {
            Some(folder) => Place::Outside(folder.clone()),
            None => Place::Of("data".into(), "arrow".into()),
        }
    }

    pub(super) fn tokenizer(&self) -> Word {
        let name = &self.data.tokenizer;
        match std::path::Path::new(name).exists() {
            true => Place::Outside(name.into()).into(),
            false => name.as_str().into(),
        }
    }

    /// A training recipe with the study's own settings; those in `over` replace others.
    fn recipe(&self, training: &Training, over: &Value) -> Result<Draft> {
        let mut document = training.document()?;
        let tokenizer = &self.data.tokenizer;
        let ours = json!({
            "model": self.model,
            "data": { "folder": "arrow", "tokenizer": tokenizer },
        });
        overlay(&mut document, &ours);
        overlay(&mut document, over);
        leave_unread(&mut document);
        let mut draft = Draft::new("recipe.yaml", document);
        draft.paths.push(("/data/folder".into(), self.arrow()));
        if let Word::Path(place) = self.tokenizer() {
            draft.paths.push(("/data/tokenizer".into(), place));
        }
        Ok(draft)
    }

    /// The same, begun where the study begins.
    pub(super) fn recipe_from_start(
        &self,
        training: &Training,
        over: &Value,
        start: &Init,
    ) -> Result<Draft> {
        let mut draft = self.recipe(training, over)?;
        draft.document["init"] = json!(start);
        let files = [
            ("/init/checkpoint", &start.checkpoint),
            ("/init/recipe", &start.recipe),
        ];
        for (pointer, path) in files {
            if let Some(path) = path {
                let place = Place::Outside(path.clone());
                draft.paths.push((pointer.into(), place));
            }
        }
        Ok(draft)
    }

    /// A training recipe over the pictures of classes in a folder, begun with weights of another step.
    pub(super) fn recipe_of_classes(
        &self,
        training: Value,
        data: &Value,
        folder: &Path,
        weights: &Place,
    ) -> Draft {
        let mut document = training;
        let ours = json!({
            "model": self.model,
            "init": { "checkpoint": "init.safetensors" },
            "data": data,
        });
        overlay(&mut document, &ours);
        leave_unread(&mut document);
        let mut draft = Draft::new("recipe.yaml", document);
        let paths = [
            ("/data/folder", Place::Outside(folder.into())),
            ("/init/checkpoint", weights.clone()),
        ];
        draft
            .paths
            .extend(paths.map(|(at, place)| (at.into(), place)));
        draft
    }

    /// The same, begun with weights of another step.
    pub(super) fn recipe_from(
        &self,
        training: &Training,
        over: &Value,
        weights: &Place,
    ) -> Result<Draft> {
        let mut draft = self.recipe(training, over)?;
        draft.document["init"] = json!({ "checkpoint": "init.safetensors" });
        draft
            .paths
            .push(("/init/checkpoint".into(), weights.clone()));
        Ok(draft)
    }

    /// A run of a recipe, which is checked; its weights.
    pub(super) fn run(&mut self, verb: &str, name: &str, of: &str, draft: Draft) -> Result<Place> {
        checked(&draft.document, of)?;
        let weights = weights_of(&draft.document);
        let mut step = Step::new(name, Kind::Train, &[weights]);
        let recipe = Word::from(Place::Own(draft.name.clone()));
        step.drafts.push(draft);
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
        Ok(output)
    }

    /// The arguments of every verb that runs a model on a split.
    pub(super) fn on(&self, on: On<'_>) -> Vec<Word> {
        self.on_folder(on, self.arrow())
    }

    /// The same for data of another folder.
    pub(super) fn on_folder(&self, on: On<'_>, folder: Place) -> Vec<Word> {
        let mut words: Vec<Word> = vec![
            "--task".into(),
            on.task.name.into(),
            "--data".into(),
            folder.into(),
            "--split".into(),
            on.split.into(),
            "--tokenizer".into(),
            self.tokenizer(),
        ];
        if on.task.takes(TaskOption::Dataset) {
            words.extend(["--dataset".into(), on.dataset.into()]);
        }
        words.extend(self.of_model());
        words
    }

    /// The flags for facts about the model that its checkpoint lacks.
    pub(super) fn of_model(&self) -> Vec<Word> {
        let mut words = Vec::new();
        let model = self.model;
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

    /// A step that measures weights by their names; `words` are those of the split and further flags.
    pub(super) fn evaluate<'m>(
        &mut self,
        name: String,
        models: impl IntoIterator<Item = (&'m str, &'m Place)>,
        words: Vec<Word>,
    ) -> Place {
        let mut command: Vec<Word> = vec!["evaluate".into()];
        for (name, weights) in models {
            command.push(weights.clone().into());
            command.extend(["--name".into(), name.into()]);
        }
        command.extend(words);
        command.extend([
            "--out".into(),
            Place::Own("report.json".into()).into(),
            "--force".into(),
        ]);
        let step = Step::new(name, Kind::Run, &["report.json"]).command(command);
        let output = step.output("report.json");
        self.add(step);
        output
    }
}
