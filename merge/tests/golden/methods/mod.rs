//! Methods of task vectors against the numbers of papers' programs and of the specification, through recipes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fixtures::{Case, Raw, first_difference};
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::progress::Silent;
use merge::{MergePlan, MergeRecipe};
use serde_json::{Value, json};

mod adapters;
mod alignment;
mod elements;
mod experts;
mod matrices;
mod schedules;

/// A recipe under construction: the models of a case, a method, and its parameters.
pub struct Written<'c> {
    case: &'c Case,
    folder: tempfile::TempDir,
    method: &'static str,
    base: PathBuf,
    models: Vec<PathBuf>,
    /// Of the whole recipe.
    parameters: BTreeMap<String, Value>,
    /// Of each model.
    own: BTreeMap<String, Vec<Value>>,
}

impl<'c> Written<'c> {
    /// All models of a case, or its adapters on their base.
    pub fn new(case: &'c Case, method: &'static str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let [base] = case.inputs("base").try_into().expect("one base");
        let models = match case.inputs("loras") {
            adapters if adapters.is_empty() => case.inputs("models"),
            adapters => adapters::on_base(case, &base, &adapters, folder.path()),
        };
        assert!(!models.is_empty(), "models");
        Self {
            case,
            folder,
            method,
            base,
            models,
            parameters: BTreeMap::new(),
            own: BTreeMap::new(),
        }
    }

    /// A parameter under another name in the manifest, where the case has it.
    pub fn number(mut self, ours: &str, theirs: &str) -> Self {
        if let Some(number) = self.case.number(theirs) {
            self.parameters.insert(ours.to_owned(), json!(number));
        }
        self
    }

    /// A parameter.
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.parameters.insert(name.to_owned(), value);
        self
    }

    /// A parameter of each model, where the case has a list of them.
    pub fn each(mut self, ours: &str, theirs: &str) -> Self {
        if let Some(values) = self.case["params"][theirs].as_array() {
            self.own.insert(ours.to_owned(), values.clone());
        }
        self
    }

    /// Which tensors are matrices, by the case: all with two axes but those in `exclude`; and what the others become.
    pub fn by_the_rule_of_the_case(mut self) -> Self {
        let excluded = self.case["params"]["exclude"].as_array();
        let mut rule: Vec<Value> = (excluded.into_iter().flatten())
            .map(|name| json!({ "glob": name, "value": false }))
            .collect();
        rule.push(json!({ "value": true }));
        self.parameters.insert("matrix".to_owned(), json!(rule));
        let vectors = match self.case.param("vectors") {
            Some("zero") => "base",
            None | Some("mean" | "weighted mean") => "mean",
            Some(other) => panic!("a rule that this test does not know: {other}"),
        };
        self.parameters.insert("vectors".to_owned(), json!(vectors));
        match self.case.param("conv") {
            None => self,
            Some("flatten [out,-1]") => self.with("conv", json!("flatten")),
            Some(other) => panic!("a rule that this test does not know: {other}"),
        }
    }

    /// The name of a model in the manifest, `a` of `inputs/model_a.safetensors`, by its number.
    pub fn letter(&self, index: usize) -> String {
        let stem = self.models[index].file_stem().expect("a name");
        let stem = stem.to_str().expect("UTF-8");
        stem.rsplit('_').next().expect("a letter").to_owned()
    }

    /// The recipe.
    pub fn recipe(&self) -> MergeRecipe {
        let models = self.models.iter().enumerate().map(|(index, model)| {
            let own = self.own.iter();
            let own: BTreeMap<&String, &Value> =
                own.map(|(name, values)| (name, &values[index])).collect();
            json!({ "model": model, "parameters": own })
        });
        // JSON is YAML.
        let text = json!({
            "merge_method": self.method,
            "base_model": self.base,
            "models": models.collect::<Vec<_>>(),
            "parameters": self.parameters,
        });
        let recipe = MergeRecipe::parse(&text.to_string(), Path::new("case"));
        recipe.unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    /// The plan.
    pub fn plan(&self) -> MergePlan {
        MergePlan::resolve(&self.recipe()).expect("resolves").0
    }

    /// Where the merged tensors are, and how they are written.
    pub fn target(&self, name: &str) -> WriteOptions {
        WriteOptions {
            force: true,
            ..WriteOptions::new(self.folder.path().join(name))
        }
    }

    /// The merged tensors.
    pub fn merged(&self) -> BTreeMap<String, Raw> {
        let target = self.target("merged.safetensors");
        execute(&self.plan(), &target, &RunOptions::default(), &Silent).expect("merges");
        fixtures::tensors(&target.path)
    }

    /// The base.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// How many models there are.
    pub fn n_models(&self) -> usize {
        self.models.len()
    }

    /// The merge is that of the case.
    pub fn check(&self) {
        self.check_tensors(&self.merged());
    }

    /// These tensors are those that the case expects.
    pub fn check_tensors(&self, found: &BTreeMap<String, Raw>) {
        let expected = self.case.tensors("expected");
        let names = |tensors: &BTreeMap<String, Raw>| tensors.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(found), names(&expected));
        let atol = self.case.tolerance("", "atol");
        for (name, expected) in &expected {
            let found = &found[name];
            assert_eq!(found.shape, expected.shape, "{name}");
            let differs = first_difference(&found.values(), &expected.values(), 0.0, atol);
            assert_eq!(differs, None, "{name}");
        }
    }
}
