//! Recipes over several checkpoints: what they may say, and the errors of wrong ones.

mod degenerate;
mod documents;
mod modules;
mod parameters;
mod slices;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::plan::Action;
use merge::provenance::HashKind;
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

/// A folder of small models, which recipes name as `<name>`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    /// Writes a model of these f32 tensors, each filled with one value.
    fn model(&self, name: &str, tensors: &[(&str, &[usize], f32)]) {
        let tensors = tensors.iter().map(|(key, shape, value)| {
            let n: usize = shape.iter().product();
            let raw = Raw {
                dtype: Dtype::F32,
                shape: shape.to_vec(),
                bytes: value.to_le_bytes().repeat(n),
            };
            ((*key).to_owned(), raw)
        });
        fixture::write(&self.path(name), &tensors.collect());
    }

    /// Models `base`, `a` and `b` of two layers, filled with 1, 2 and 4.
    fn three() -> Self {
        let folder = Self::new();
        for (name, value) in [("base", 1.0), ("a", 2.0), ("b", 4.0)] {
            folder.model(name, &layers(2, value));
        }
        folder
    }

    fn recipe(&self, yaml: &str) -> Result<MergeRecipe, Error> {
        let mut yaml = yaml.to_owned();
        while let Some((start, rest)) = yaml.split_once('<') {
            let (name, end) = rest.split_once('>').expect("<name>");
            yaml = format!("{start}{}{end}", self.path(name).display());
        }
        MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))
    }

    fn plan(&self, yaml: &str) -> Result<MergePlan, Error> {
        MergePlan::resolve(&self.recipe(yaml)?).map(|(plan, _)| plan)
    }

    fn merge(&self, yaml: &str) -> Result<BTreeMap<String, Raw>, Error> {
        let plan = self.plan(yaml)?;
        let target = self.path("merged");
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(&target)
        };
        execute(
            &plan,
            &write,
            &RunOptions::default(),
            &merge::progress::Silent,
        )?;
        Ok(fixture::tensors(&target))
    }

    fn fault(&self, yaml: &str) -> String {
        match self.merge(yaml) {
            Ok(_) => panic!("should be refused: {yaml}"),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn an_input_that_changes_before_the_end_is_an_error_and_nothing_is_written() {
    let folder = Folder::three();
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <b>]";
    for hash in [Some(HashKind::default()), None] {
        let plan = folder.plan(yaml).expect("resolves");
        let bytes = std::fs::read(folder.path("b")).expect("readable");
        std::fs::write(folder.path("b"), &bytes).expect("the same bytes, at another time");
        let target = folder.path("merged");
        let run = RunOptions {
            hash,
            ..RunOptions::default()
        };
        let write = WriteOptions::new(&target);
        let said = execute(&plan, &write, &run, &merge::progress::Silent).expect_err("changed");
        assert!(matches!(said, Error::InputChanged { .. }), "{said}");
        assert!(!target.exists());
    }
}

#[test]
fn tensors_that_are_only_spelled_otherwise_are_told_with_the_way_out() {
    let folder = Folder::new();
    let names = [
        "encoder.layer.0.fc.weight",
        "encoder.layer.1.fc.weight",
        "pooler.dense.weight",
    ];
    let prefixed = names.map(|name| format!("bert.{name}"));
    let tensors: Vec<(&str, &[usize], f32)> = names
        .iter()
        .map(|name| (*name, &[2_usize][..], 1.0))
        .collect();
    folder.model("bare", &tensors);
    let tensors: Vec<(&str, &[usize], f32)> = prefixed
        .iter()
        .map(|name| (name.as_str(), &[2_usize][..], 3.0))
        .collect();
    folder.model("prefixed", &tensors);
    for on_missing in ["error", "copy", "skip"] {
        let yaml = format!(
            "merge_method: linear\nparameters: {{weight: 1}}\non_missing: {on_missing}\nmodels: [<bare>, <prefixed>]"
        );
        let fault = folder.plan(&yaml).map(drop).expect_err("nothing in common");
        let hint = fault.hint().expect("a way out");
        assert!(
            hint.contains(r"rename: [{ from: '^bert\.', to: '' }]"),
            "{fault}: {hint}"
        );
    }
    let merged = folder.merge(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [<bare>, {model: <prefixed>, rename: [{from: '^bert\\.', \
         to: ''}]}]",
    );
    assert_eq!(first(&merged.expect("merges"), "pooler.dense.weight"), 2.0);
}

fn layers(n: usize, value: f32) -> Vec<(&'static str, &'static [usize], f32)> {
    let all: [(&str, &[usize]); 8] = [
        ("embed.weight", &[3, 2]),
        ("head.weight", &[3, 2]),
        ("layers.0.mlp.fc.weight", &[2, 2]),
        ("layers.0.norm.weight", &[2]),
        ("layers.1.mlp.fc.weight", &[2, 2]),
        ("layers.1.norm.weight", &[2]),
        ("layers.2.mlp.fc.weight", &[2, 2]),
        ("layers.2.norm.weight", &[2]),
    ];
    (all.iter().take(2 + 2 * n))
        .map(|&(key, shape)| (key, shape, value))
        .collect()
}

fn first(merged: &BTreeMap<String, Raw>, key: &str) -> f64 {
    merged[key].values()[0]
}

#[test]
fn every_mismatch_is_listed_at_once_with_its_checkpoints() {
    let folder = Folder::three();
    folder.model(
        "odd",
        &[
            ("embed.weight", &[4, 2], 0.0),
            ("head.weight", &[3, 3], 0.0),
            ("layers.0.mlp.fc.weight", &[2, 2], 0.0),
            ("extra", &[1], 0.0),
        ],
    );
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <odd>]";
    let said = folder.fault(yaml);
    for part in [
        "6 faults",
        "`embed.weight` has shape [4, 2] in",
        "`head.weight` has shape [3, 3] in",
        "`layers.0.norm.weight` is in",
        "`layers.1.mlp.fc.weight` is in",
        "`extra` is in",
        "odd.safetensors",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[test]
fn a_tensor_that_some_lack_is_an_error_or_copied_or_skipped_as_the_recipe_says() {
    let folder = Folder::three();
    folder.model("more", &layers(3, 8.0));
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <more>]\n";
    assert!(folder.fault(yaml).contains("`layers.2.norm.weight` is in"));
    let copied = folder
        .merge(&format!("{yaml}on_missing: copy"))
        .expect("merges");
    assert_eq!(first(&copied, "layers.2.norm.weight"), 8.0);
    assert_eq!(first(&copied, "layers.1.norm.weight"), 5.0);
    let plan = folder
        .plan(&format!("{yaml}on_missing: skip"))
        .expect("resolves");
    assert_eq!((plan.entries().len(), plan.dropped().len()), (6, 2));
    assert!(
        plan.dropped()[0].why.contains("only some"),
        "{}",
        plan.dropped()[0].why
    );
}

#[test]
fn names_of_another_spelling_are_mapped_by_expressions() {
    let folder = Folder::three();
    folder.model(
        "hf",
        &[
            ("model.embed.weight", &[3, 2], 3.0),
            ("model.head.weight", &[3, 2], 3.0),
        ],
    );
    folder.model(
        "plain",
        &[
            ("embed.weight", &[3, 2], 1.0),
            ("head.weight", &[3, 2], 1.0),
        ],
    );
    let yaml = |to: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels:\n- <plain>\n- model: <hf>\n  rename: \
             [{{from: '^model\\.(\\w+)', to: '{to}'}}]"
        )
    };
    let merged = folder.merge(&yaml("$1")).expect("merges");
    assert_eq!(first(&merged, "head.weight"), 2.0);
    assert!(
        folder
            .fault(&yaml("same"))
            .contains("would both be called `same.weight`")
    );
    let broken = "merge_method: linear\nmodels:\n- {model: <a>, rename: [{from: '(', to: ''}]}";
    assert!(
        folder
            .fault(broken)
            .contains("no regular expression (line 3, column")
    );
}

#[test]
fn integers_are_copied_if_they_agree_and_refused_if_not() {
    let folder = Folder::new();
    for (name, ids) in [("a", [0_i64, 1]), ("b", [0, 1]), ("c", [0, 2])] {
        let ids = Raw {
            dtype: Dtype::I64,
            shape: vec![2],
            bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
        };
        fixture::write(
            &folder.path(name),
            &BTreeMap::from([("ids".to_owned(), ids)]),
        );
    }
    let yaml = |other: &str| {
        format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [<a>, <{other}>]")
    };
    assert_eq!(
        folder.merge(&yaml("b")).expect("merges")["ids"].values(),
        [0.0, 1.0]
    );
    assert!(folder.fault(&yaml("c")).contains("`ids` holds no floats"));
}

#[test]
fn the_output_has_the_inputs_dtype_or_the_one_asked_for() {
    let folder = Folder::three();
    let half = |value: f32| half_bytes(value);
    for (name, dtype, bytes) in [
        ("bf", Dtype::BF16, half(3.0)),
        ("ff", Dtype::F32, 5f32.to_le_bytes().to_vec()),
    ] {
        let raw = Raw {
            dtype,
            shape: vec![1],
            bytes,
        };
        fixture::write(&folder.path(name), &BTreeMap::from([("x".to_owned(), raw)]));
    }
    let dtype = |models: &str, more: &str| {
        let yaml =
            format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\n{more}");
        folder.merge(&yaml).expect("merges")["x"].dtype
    };
    assert_eq!(dtype("<bf>, <bf>", ""), Dtype::BF16);
    assert_eq!(dtype("<bf>, <ff>", ""), Dtype::F32);
    assert_eq!(dtype("<bf>, <ff>", "dtype: bfloat16"), Dtype::BF16);
    assert_eq!(
        dtype("<bf>, <ff>", "dtype: bfloat16\nout_dtype: float16"),
        Dtype::F16
    );
    assert_eq!(dtype("<bf>", "dtype: float64"), Dtype::F64);
}

fn half_bytes(value: f32) -> Vec<u8> {
    value.to_le_bytes()[2..].to_vec()
}

#[test]
fn fisher_files_weigh_element_by_element_and_must_fit() {
    let folder = Folder::three();
    folder.model("fa", &layers(2, 3.0));
    folder.model("fb", &layers(2, 1.0));
    folder.model("short", &layers(1, 1.0));
    let yaml = |of_b: &str| {
        format!(
            "merge_method: fisher\nparameters: {{floor: 0}}\nmodels:\n- {{model: <a>, parameters: {{fisher: \
             <fa>}}}}\n- {{model: <b>, parameters: {{fisher: <{of_b}>}}}}"
        )
    };
    // (3 · 2 + 1 · 4) / 4.
    assert_eq!(
        first(&folder.merge(&yaml("fb")).expect("merges"), "head.weight"),
        2.5
    );
    assert!(
        folder
            .fault(&yaml("short"))
            .contains("no tensor named `layers.1.")
    );
}

#[test]
fn regmean_between_checkpoints_refuses_a_layer_without_a_gram_unless_it_may_take_the_mean() {
    let folder = Folder::three();
    for (name, gram) in [
        ("ga", [3.0f64, 0.0, 0.0, 1.0]),
        ("gb", [1.0, 0.0, 0.0, 3.0]),
    ] {
        let raw = Raw {
            dtype: Dtype::F64,
            shape: vec![2, 2],
            bytes: gram.iter().flat_map(|value| value.to_le_bytes()).collect(),
        };
        fixture::write(
            &folder.path(name),
            &BTreeMap::from([("layers.0.mlp.fc".to_owned(), raw)]),
        );
    }
    let recipe = "merge_method: regmean\nmodels:\n- {model: <a>, parameters: {grams: <ga>}}\n- \
                  {model: <b>, parameters: {grams: <gb>}}";
    let fault = folder.fault(recipe);
    assert!(
        fault.contains("`layers.1.mlp.fc.weight`") && fault.contains("has no `layers.1.mlp.fc`"),
        "{fault}"
    );
    let merged = folder
        .merge(&format!("{recipe}\non_missing_gram: mean"))
        .expect("merges");
    // Columns weigh by the diagonals: (3 · 2 + 1 · 4) / 4 and (1 · 2 + 3 · 4) / 4.
    assert_eq!(merged["layers.0.mlp.fc.weight"].values()[..2], [2.5, 3.5]);
    assert_eq!(first(&merged, "layers.1.mlp.fc.weight"), 3.0);
    assert_eq!(first(&merged, "layers.0.norm.weight"), 3.0);
}

#[test]
fn a_base_among_the_models_is_the_base_and_alone_it_comes_out() {
    let folder = Folder::three();
    let merged = folder
        .merge("merge_method: ties\nbase_model: <base>\nmodels: [<base>]\nparameters: {weight: 1}")
        .expect("merges");
    assert_eq!(merged, fixture::tensors(&folder.path("base")));
    let plan = folder
        .plan("merge_method: linear\nmodels: [<a>]\nparameters: {weight: 3}")
        .expect("resolves");
    assert!(
        plan.entries()
            .iter()
            .all(|entry| matches!(entry.action, Action::Copy(_)))
    );
}

#[test]
fn a_key_without_effect_is_an_error_that_names_it() {
    let folder = Folder::three();
    let linear = "merge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <b>]\n";
    let renamed = |from: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [<a>, {{model: <b>, rename: [{{from: '{from}', to: \
             'x'}}]}}]\non_missing: copy"
        )
    };
    for (yaml, part) in [
        (
            format!("{linear}layers: nope.layers"),
            "`layers: nope.layers` has no effect",
        ),
        (
            format!("{linear}on_missing_gram: mean"),
            "linear reads no gram matrices",
        ),
        (
            format!("{linear}unknown_keys: copy"),
            "`unknown_keys` has no effect",
        ),
        (renamed("^nope"), "`rename: from: ^nope` has no effect"),
        (
            format!("{linear}tokenizer_source: base\ntokenizer: {{source: union}}"),
            "`tokenizer_source` or `tokenizer`, not both",
        ),
        (
            format!("{linear}tokenizer: {{source: union, pad_to_multiple_of: 0}}"),
            "`pad_to_multiple_of` is a number of rows of 1 or more",
        ),
    ] {
        let said = folder.fault(&yaml);
        assert!(said.contains(part), "no {part} in {said}");
    }
    assert!(folder.plan(&renamed("^head")).is_ok());
}

#[test]
fn a_base_is_the_base_under_any_name_and_a_copy_of_it_is_noted() {
    let folder = Folder::three();
    std::fs::hard_link(folder.path("base"), folder.path("twin")).expect("linked");
    let yaml = |base: &str| {
        format!("merge_method: model_stock\nbase_model: <{base}>\nmodels: [<base>, <a>, <b>]")
    };
    let merged = |base: &str| folder.merge(&yaml(base)).expect("merges");
    assert_eq!(merged("twin"), merged("base"));
    let plan = folder.plan(&yaml("twin")).expect("resolves");
    assert!(plan.beside().notes.is_empty(), "{:?}", plan.beside().notes);
    let said = folder.fault("merge_method: model_stock\nbase_model: <twin>\nmodels: [<base>, <a>]");
    assert!(said.contains("has 1"), "{said}");
    // A copy is another file, which may be meant.
    std::fs::copy(folder.path("base"), folder.path("copy")).expect("copied");
    let plan =
        folder.plan("merge_method: model_stock\nbase_model: <base>\nmodels: [<copy>, <a>, <b>]");
    let said = plan.expect("resolves").beside().notes.clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("is it a copy of the base?"), "{said:?}");
}

#[test]
fn a_base_beside_two_other_models_of_slerp_is_counted_in_words() {
    let folder = Folder::three();
    let said = folder
        .fault("merge_method: slerp\nparameters: {t: 0.5}\nbase_model: <base>\nmodels: [<a>, <b>]");
    assert!(
        said.contains("the recipe has 2 models and a base_model that is none of them"),
        "{said}"
    );
}
