//! Inputs that change while a merge is under way: nothing is written, whatever changed and however.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute, in_memory};
use merge::io::{OpenOptions, WriteOptions};
use merge::progress::Silent;
use merge::provenance::HashKind;
use merge::{Error, MergePlan, MergeRecipe};

/// A folder with two models that have tokenizers, one of them in two files, an adapter, experts and their grams.
struct Folder(tempfile::TempDir);

const RECIPES: [(&str, &str, &[&str]); 4] = [
    (
        "merge_method: linear\nmodels: [split, two]\nparameters: {weight: 1}\ntokenizer_source: union\n",
        "a merge of a split model over its tokens",
        &[
            "split/model.safetensors.index.json",
            "split/model-00001-of-00002.safetensors",
            "split/model-00002-of-00002.safetensors",
            "split/tokenizer.json",
            "split/config.json",
            "two/model.safetensors",
            "two/tokenizer.json",
        ],
    ),
    (
        "merge_method: passthrough\nmodels: [two+adapter]\n",
        "a merge of an adapter",
        &[
            "two/model.safetensors",
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
        ],
    ),
    (
        "merge_method: regmean\nmodels: [experts.ckpt]\nparameters: {grams: grams.safetensors}\nfor: irtr\n",
        "RegMean of experts",
        &["experts.ckpt", "grams.safetensors"],
    ),
    (
        "name: first\nmerge_method: linear\nmodels: [two]\nparameters: {weight: 2, normalize: false}\n---\n\
         merge_method: linear\nmodels: [first, three]\nparameters: {weight: 1}\n",
        "a merge of a merge",
        &["two/model.safetensors", "three/model.safetensors"],
    ),
];

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        let copy = |from: &str, to: &str| {
            let to = folder.path(to);
            fs::create_dir_all(to.parent().expect("a folder")).expect("made");
            fs::copy(fixtures::path(from), to).expect("copied");
        };
        for (from, to) in [("words_a", "one"), ("words_b", "two"), ("words_b", "three")] {
            for name in [
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ] {
                copy(&format!("mergekit/{from}/{name}"), &format!("{to}/{name}"));
            }
        }
        copy("ckpt/all_moe_pretrain.ckpt", "experts.ckpt");
        copy("merge/gram_irtr.safetensors", "grams.safetensors");
        folder.split();
        folder.adapter();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn recipe(&self, yaml: &str) -> MergeRecipe {
        let recipe = MergeRecipe::parse(yaml, &self.path("recipe.yaml")).expect("a recipe");
        recipe.in_folders(&[self.0.path().to_owned()])
    }

    /// Splits `one` into two files.
    fn split(&self) {
        fs::create_dir(self.path("split")).expect("made");
        for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(self.path("one").join(name), self.path("split").join(name)).expect("copied");
        }
        let recipe = self.recipe("merge_method: passthrough\nmodels: [one]\n");
        let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
        let write = WriteOptions {
            max_shard_bytes: Some(plan.output_bytes() * 2 / 3),
            ..WriteOptions::new(self.path("split/model.safetensors"))
        };
        let summary = execute(&plan, &write, &RunOptions::default(), &Silent).expect("written");
        assert_eq!(summary.files.len(), 3, "two parts and an index");
    }

    /// An adapter of rank 1 for the head of `two`.
    fn adapter(&self) {
        let two = merge::io::open(&self.path("two"), &OpenOptions::default()).expect("opens");
        let [rows, width] = two.get("lm_head.weight").expect("a head").shape[..] else {
            panic!("a matrix");
        };
        let factor = |shape: [usize; 2]| fixtures::Raw {
            dtype: safetensors::Dtype::F32,
            shape: shape.to_vec(),
            bytes: 0.5f32.to_le_bytes().repeat(shape[0] * shape[1]),
        };
        let factors = [
            ("base_model.model.lm_head.lora_A.weight", factor([1, width])),
            ("base_model.model.lm_head.lora_B.weight", factor([rows, 1])),
        ];
        fs::create_dir(self.path("adapter")).expect("made");
        fixtures::write(
            &self.path("adapter/adapter_model.safetensors"),
            &factors
                .map(|(name, factor)| (name.to_owned(), factor))
                .into(),
        );
        let settings = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1}"#;
        fs::write(self.path("adapter/adapter_config.json"), settings).expect("written");
    }
}

/// A way to change a file, after which it has the same length.
type Change = (&'static str, fn(&Path));

const CHANGES: [Change; 3] = [
    ("written once more", |path| {
        let bytes = fs::read(path).expect("readable");
        fs::write(path, bytes).expect("written");
    }),
    ("replaced by a copy with the same time", |path| {
        let other = path.with_extension("other");
        fs::copy(path, &other).expect("copied");
        let time = fs::metadata(path)
            .and_then(|found| found.modified())
            .expect("a time");
        let file = File::options().write(true).open(&other).expect("opens");
        file.set_modified(time).expect("times are kept");
        fs::rename(&other, path).expect("renamed");
    }),
    ("changed, and its time set back", |path| {
        let time = fs::metadata(path)
            .and_then(|found| found.modified())
            .expect("a time");
        let mut bytes = fs::read(path).expect("readable");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(path, bytes).expect("written");
        let file = File::options().write(true).open(path).expect("opens");
        file.set_modified(time).expect("times are kept");
    }),
];

#[test]
fn each_input_that_changes_is_an_error_with_hashes_and_without() {
    let folder = Folder::new();
    let target = folder.path("out");
    for (yaml, what, files) in RECIPES {
        let recipe = folder.recipe(yaml);
        for (index, file) in files.iter().enumerate() {
            for (round, (how, change)) in CHANGES.iter().enumerate() {
                let run = RunOptions {
                    hash: ((index + round) % 2 == 0).then(HashKind::default),
                    ..RunOptions::default()
                };
                let path = folder.path(file);
                let good = fs::read(&path).expect("readable");
                let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
                change(&path);
                let write = WriteOptions {
                    is_folder: true,
                    ..WriteOptions::new(target.join("model.safetensors"))
                };
                let said = execute(&plan, &write, &run, &Silent);
                let said = said
                    .map(drop)
                    .expect_err(&format!("{what}: {file} was {how}"));
                let is_named = match &said {
                    Error::InputChanged { path } => path.ends_with(file),
                    // A damaged value is found by a checksum of its own, or as a file that cannot be read.
                    _ => round == 2,
                };
                assert!(is_named, "{what}: {file} was {how}: {said}");
                assert!(!target.exists(), "{what}: {file} was {how}");
                let (plan, _) = match MergePlan::resolve(&recipe) {
                    Ok(resolved) if round < 2 => resolved,
                    _ => {
                        fs::write(&path, &good).expect("written");
                        continue;
                    }
                };
                change(&path);
                let said = in_memory(&plan, &run, &Silent).map(drop);
                assert!(
                    matches!(said, Err(Error::InputChanged { .. })),
                    "{what}, in memory: {file} was {how}"
                );
                fs::write(&path, &good).expect("written");
            }
        }
        // And none that does not change.
        let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
        let write = WriteOptions {
            is_folder: true,
            ..WriteOptions::new(target.join("model.safetensors"))
        };
        execute(&plan, &write, &RunOptions::default(), &Silent).expect(what);
        fs::remove_dir_all(&target).expect("removed");
    }
}
