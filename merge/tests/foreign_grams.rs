//! Gram files of another model of the same size, and gram files of a part of their data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use merge::convert::{DenseOfExperts, FewerExperts, Keep, Others, Worth};
use merge::execute::{RunOptions, execute, in_memory};
use merge::gram::{Gram, GramRecord, GramStore};
use merge::io::{OpenOptions, SourceFile, WriteOptions, open};
use merge::progress::Silent;
use merge::provenance::{HashKind, Hashes, Provenance};
use merge::recipe::OutputDType;
use merge::{Checkpoint, Error, MergeFault, MergePlan, MergeRecipe, StatisticsFault};

use crate::mixture_models::{EXPERTS, LAYERS, WIDTH, host, mixtral_like, raw};

/// A folder of models of the same size, with gram files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    /// A model with mixtures of experts.
    fn mixture(&self, name: &str, seed: u64) -> Arc<Checkpoint> {
        fixtures::write(&self.path(name), &mixtral_like(seed));
        Arc::new(open(&self.path(name), &OpenOptions::default()).expect("it opens"))
    }

    /// A model of one matrix.
    fn matrix(&self, name: &str, seed: u64) {
        let key = "fc.weight".to_owned();
        let weight = raw(seed, &key, &[3, WIDTH]);
        fixtures::write(&self.path(name), &BTreeMap::from([(key, weight)]));
    }

    /// A gram file that says that it is of a model, and of some parts of its data.
    fn grams(&self, name: &str, of: &str, grams: BTreeMap<String, Gram>, shards: &str) -> PathBuf {
        let model = self.path(of);
        let n_bytes = std::fs::metadata(&model).expect("a model").len();
        let files = [SourceFile::named(model, n_bytes)];
        let hashes = Hashes::default().of(&files, HashKind::default(), &Silent);
        let inputs = Provenance::new(String::new(), &files).with_hashes(hashes.expect("hashed"));
        let record = GramRecord {
            data: vec!["coco val".to_owned()],
            checkpoint: inputs.inputs,
            shards: serde_json::from_str(shards).expect("parts"),
            ..GramRecord::default()
        };
        let path = self.path(&format!("{name}.gram"));
        let written =
            merge::gram::write(&grams, &record, false, &WriteOptions::new(&path), &Silent);
        written.expect("written");
        path
    }

    /// How tokens go to experts: the first ones get the most.
    fn routing(&self, name: &str, of: &str, shards: &str) -> Arc<GramStore> {
        let width = 1 + 2 * EXPERTS;
        let mut packed = vec![0.0; width * (width + 1) / 2];
        // The first column of the lower triangle: tokens, those of each expert, and lengths of answers.
        packed[0] = 100.0;
        for row in 1..width {
            let expert = (row - 1) % EXPERTS;
            packed[row * (row + 1) / 2] = 40.0 - 10.0 * expert as f64;
        }
        let grams = LAYERS.map(|layer| {
            let gram = Gram::from_packed(packed.clone(), 100).expect("a triangle");
            (format!("{}.routing", host(layer)), gram)
        });
        let path = self.grams(name, of, BTreeMap::from(grams), shards);
        let file = open(&path, &OpenOptions::default()).expect("it opens");
        Arc::new(GramStore::new(Arc::new(file)).expect("a gram file"))
    }

    /// The inputs of a layer.
    fn inputs(&self, name: &str, of: &str, shards: &str) -> PathBuf {
        let mut packed = Vec::new();
        for row in 0..WIDTH {
            packed.extend((0..=row).map(|column| if row == column { 2.0 } else { 0.5 }));
        }
        let gram = Gram::from_packed(packed, 9).expect("a triangle");
        let grams = BTreeMap::from([("fc".to_owned(), gram)]);
        self.grams(name, of, grams, shards)
    }

    fn plan(&self, yaml: &str) -> Result<MergePlan, Error> {
        let yaml = yaml.replace("{}", &self.0.path().display().to_string());
        let recipe = MergeRecipe::parse(&yaml, Path::new("test"));
        let recipe = recipe.unwrap_or_else(|error| panic!("{yaml}: {error}"));
        Ok(MergePlan::resolve(&recipe)?.0)
    }

    fn execute(&self, plan: &MergePlan, hash: Option<HashKind>) -> Result<(), Error> {
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(self.path("out"))
        };
        let run = RunOptions {
            hash,
            ..RunOptions::default()
        };
        execute(plan, &write, &run, &Silent).map(drop)
    }
}

fn fewer(grams: Arc<GramStore>) -> FewerExperts {
    FewerExperts {
        keep: Keep::Each(2),
        worth: Worth::Saliency,
        others: Others::Prune,
        grams,
        is_folder: false,
        dtype: OutputDType::Keep,
    }
}

fn dense(grams: Arc<GramStore>) -> DenseOfExperts {
    DenseOfExperts {
        grams: Some(grams),
        is_folder: false,
        dtype: OutputDType::Keep,
    }
}

fn is_foreign(found: &Result<(), Error>) -> bool {
    match found {
        Err(Error::Merge(fault)) => matches!(**fault, MergeFault::ForeignGrams { .. }),
        _ => false,
    }
}

#[test]
fn experts_are_not_counted_by_the_grams_of_another_model_of_the_same_size() {
    let folder = Folder::new();
    let (own, _) = (folder.mixture("own", 1), folder.mixture("other", 2));
    let size = |name: &str| std::fs::metadata(folder.path(name)).expect("there").len();
    assert_eq!(size("own"), size("other"));
    let grams = folder.routing("own", "own", "[]");
    let others = folder.routing("other", "other", "[]");
    let plans = |grams: &Arc<GramStore>| {
        let fewer = fewer(Arc::clone(grams)).plan(Arc::clone(&own));
        let dense = dense(Arc::clone(grams)).plan(Arc::clone(&own));
        [fewer.expect("a plan").0, dense.expect("a plan")]
    };
    for kind in [HashKind::Blake3, HashKind::Sha256] {
        for plan in plans(&others) {
            let found = folder.execute(&plan, Some(kind));
            assert!(is_foreign(&found), "{}: {found:?}", plan.recipe());
            assert!(!folder.path("out").exists());
        }
    }
    for plan in plans(&others) {
        let found = in_memory(&plan, &RunOptions::default(), &Silent).map(drop);
        assert!(is_foreign(&found), "{}: {found:?}", plan.recipe());
    }
    for plan in plans(&grams) {
        folder.execute(&plan, Some(HashKind::Blake3)).expect("runs");
        // The gram file is an input, as the model is.
        let made = open(&folder.path("out"), &OpenOptions::default()).expect("it opens");
        let made = Provenance::from_metadata(&made.info().metadata).expect("a record");
        let names: Vec<&str> = made
            .inputs
            .iter()
            .map(|input| input.name.as_str())
            .collect();
        assert_eq!(names, ["own.safetensors", "own.gram.safetensors"]);
    }
}

const MODELS: &str = "merge_method: regmean\nmodels:\n\
    - { model: {}/one.safetensors, parameters: { grams: {}/one.gram.safetensors } }\n";

#[test]
fn merges_in_memory_and_earlier_documents_refuse_grams_of_another_model_of_the_same_size() {
    let folder = Folder::new();
    for (seed, name) in [(1, "one"), (2, "two"), (3, "three")] {
        folder.matrix(name, seed);
        folder.inputs(name, name, "[]");
    }
    for (grams, is_wrong) in [("two", false), ("three", true)] {
        let second = format!(
            "- {{ model: {{}}/two.safetensors, parameters: {{ grams: {{}}/{grams}.gram.safetensors }} }}\n"
        );
        let alone = folder.plan(&format!("{MODELS}{second}")).expect("a plan");
        let built_on = format!(
            "name: first\n{MODELS}{second}---\nmerge_method: linear\nparameters: {{ weight: 1 }}\n\
             models: [first, {{}}/three.safetensors]\n"
        );
        let built_on = folder.plan(&built_on).expect("a plan");
        for plan in [&alone, &built_on] {
            let written = folder.execute(plan, Some(HashKind::Blake3));
            let held = in_memory(plan, &RunOptions::default(), &Silent).map(drop);
            for found in [written, held] {
                assert_eq!(is_foreign(&found), is_wrong, "{grams}: {found:?}");
                assert_eq!(found.is_err(), is_wrong, "{grams}: {found:?}");
            }
        }
    }
}

#[test]
fn grams_of_a_part_of_the_data_are_refused_by_the_parts_that_are_missing() {
    let folder = Folder::new();
    let half = r#"[{"number": 1, "of": 3}, {"number": 3, "of": 3}]"#;
    let own = folder.mixture("own", 1);
    let grams = folder.routing("own", "own", half);
    let refused = |fault: Error| {
        let said = fault.to_string();
        let is_of_parts = matches!(&fault, Error::Statistics(fault) if matches!(**fault, StatisticsFault::GramParts { .. }));
        assert!(is_of_parts, "{said}");
        assert!(
            said.contains("part 1/3, 3/3 of the data; part 2/3"),
            "{said}"
        );
        assert!(fault.hint().is_some_and(|hint| hint.contains("gram add")));
    };
    refused(
        (fewer(Arc::clone(&grams)).plan(Arc::clone(&own)))
            .err()
            .expect("refused"),
    );
    refused(dense(grams).plan(own).err().expect("refused"));
    for (seed, name, parts) in [(1, "one", "[]"), (2, "two", half)] {
        folder.matrix(name, seed);
        folder.inputs(name, name, parts);
    }
    for rest in ["", "foreign_grams: allow\n"] {
        let second =
            "- { model: {}/two.safetensors, parameters: { grams: {}/two.gram.safetensors } }\n";
        let plan = folder.plan(&format!("{MODELS}{second}{rest}"));
        refused(plan.err().expect("refused"));
    }
    // A number of parts that no run had.
    let many = format!(r#"[{{"number": 1, "of": {}}}]"#, usize::MAX);
    let grams = folder.inputs("many", "two", &many);
    let file = open(&grams, &OpenOptions::default()).expect("it opens");
    let store = GramStore::new(Arc::new(file)).expect("a gram file");
    let said = store.require_whole().expect_err("refused").to_string();
    assert!(said.contains('…') && said.len() < 1000, "{said}");
}
