//! Recipes over several checkpoints: what they may say, and what is said of wrong ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::plan::Action;
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
    for hash in [true, false] {
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
fn parameters_of_other_methods_are_notes_and_others_are_errors() {
    let folder = Folder::three();
    let plan = folder.plan(
        "merge_method: slerp\nbase_model: <a>\nmodels: [<a>, <b>]\nparameters: {t: 0.5, embed_slerp: true, normalize: \
         true, int8_mask: true}",
    );
    let notes = plan.expect("resolves").beside().notes.clone();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(
        notes[0].contains("slerp has no use for `embed_slerp`"),
        "{notes:?}"
    );
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <a>\nmodels: [<a>, <b>]\nparameters: {t: 0.5, wieght: 1}",
    );
    assert!(said.contains("slerp has no parameter `wieght`"), "{said}");
}

#[test]
fn a_slice_may_have_a_base_of_its_own() {
    let folder = Folder::three();
    let merged = folder.merge(
        "merge_method: task_arithmetic\nparameters: {weight: 1}\nslices:\n- base_model: <base>\n  residual_weight: 1\n  \
         sources: [{model: <a>, layer_range: [0, 1]}, {model: <base>, layer_range: [0, 1]}]\n- base_model: <a>\n  sources: \
         [{model: <b>, layer_range: [1, 2]}, {model: <a>, layer_range: [1, 2]}]",
    );
    let merged = merged.expect("merges");
    // base + (a - base) and a + (b - a).
    assert_eq!(first(&merged, "layers.0.norm.weight"), 2.0);
    assert_eq!(first(&merged, "layers.1.norm.weight"), 4.0);
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
fn filters_globs_and_regexes_choose_a_value_by_name_and_the_first_that_fits_decides() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: task_arithmetic\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    \
             weight:\n    - {filter: norm, value: 10}\n    - {glob: 'layers.1.*', value: 20}\n    - {regex: \
             '^(embed|head)', value: [30, 40]}\n    - 0.0",
        )
        .expect_err("a bare number is no case");
    assert!(merged.to_string().contains("recipe.yaml"), "{merged}");
    let merged = folder
        .merge(
            "merge_method: task_arithmetic\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    \
             weight:\n    - {filter: norm, value: 10}\n    - {glob: 'layers.1.*', value: 20}\n    - {regex: \
             '^(embed|head)', value: [30, 40]}\n    - value: 0.0",
        )
        .expect("merges");
    // 1 + w (2 − 1).
    assert_eq!(first(&merged, "layers.1.norm.weight"), 11.0);
    assert_eq!(first(&merged, "layers.1.mlp.fc.weight"), 21.0);
    assert_eq!(first(&merged, "layers.0.mlp.fc.weight"), 1.0);
    // Outside the layers a gradient is at its beginning.
    assert_eq!(first(&merged, "head.weight"), 31.0);
}

#[test]
fn a_models_parameters_come_before_the_recipes() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: linear\nmodels: [{model: <a>, parameters: {weight: [0, 1]}}, <b>]\nparameters: \
             {weight: 1.0, normalize: false}",
        )
        .expect("merges");
    assert_eq!(first(&merged, "layers.0.norm.weight"), 4.0);
    assert_eq!(first(&merged, "layers.1.norm.weight"), 6.0);
}

#[test]
fn slices_stack_layers_and_take_the_ends_from_the_first_and_the_last() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 2]}]\n- sources: \
             [{model: <b>, layer_range: [1, 2]}]",
        )
        .expect("merges");
    assert_eq!(merged.len(), 8);
    let firsts = [
        "embed.weight",
        "layers.0.norm.weight",
        "layers.2.norm.weight",
        "head.weight",
    ];
    assert_eq!(firsts.map(|key| first(&merged, key)), [2.0, 2.0, 4.0, 4.0]);
    let plan = folder
        .plan("merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 1]}]")
        .expect("resolves");
    let dropped: Vec<&str> = plan
        .dropped()
        .iter()
        .map(|d| d.tensor.key.as_str())
        .collect();
    assert_eq!(dropped, ["layers.1.mlp.fc.weight", "layers.1.norm.weight"]);
}

#[test]
fn slices_that_cannot_be_cut_are_named_with_their_line() {
    let folder = Folder::three();
    let said = folder.fault(
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: <a>, layer_range: [0, 3]}",
    );
    assert!(said.contains("layers 0..3 of 2 (line 4, column"), "{said}");
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <a>\nparameters: {t: 1}\nslices:\n- sources:\n  - {model: <a>, \
         layer_range: [0, 2]}\n  - {model: <b>, layer_range: [0, 1]}",
    );
    assert!(said.contains("2 and 1 layers (line 7, column"), "{said}");
    folder.model(
        "two",
        &[
            ("x.0.a.w", &[1], 0.0),
            ("x.1.a.w", &[1], 0.0),
            ("y.0.a.w", &[1], 0.0),
            ("y.1.a.w", &[1], 0.0),
        ],
    );
    let yaml =
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: <two>, layer_range: [0, 1]}";
    let said = folder.fault(yaml);
    assert!(said.contains("x (2), y (2)"), "{said}");
    let merged = folder.merge(&format!("layers: x\n{yaml}")).expect("merges");
    assert_eq!(
        merged.into_keys().collect::<Vec<_>>(),
        ["x.0.a.w", "y.0.a.w", "y.1.a.w"]
    );
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
fn documents_build_on_each_other_in_any_order() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: linear\nparameters: {weight: 1}\nmodels: [first, second]\n---\nname: second\n\
             merge_method: task_arithmetic\nbase_model: <base>\nmodels: [{model: first, parameters: {weight: \
             2}}]\n---\nname: first\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [<a>, <b>]",
        )
        .expect("merges");
    // first = 3, second = 1 + 2 (3 − 1) = 5, their mean = 4.
    assert_eq!(first(&merged, "embed.weight"), 4.0);
    let left: Vec<_> = std::fs::read_dir(folder.0.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .filter(|name| name.to_string_lossy().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn documents_in_a_circle_or_in_vain_are_refused_by_name() {
    let folder = Folder::three();
    let document = |name: &str, of: &str| {
        format!("name: {name}\nmerge_method: linear\nparameters: {{weight: 1}}\nmodels: [{of}]\n")
    };
    let circle = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [one]\n---\n{}---\n{}",
        document("one", "two"),
        document("two", "one")
    );
    assert!(folder.fault(&circle).contains("one -> two -> one"));
    let vain = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: [<a>]\n---\n{}",
        document("x", "<b>")
    );
    assert!(folder.fault(&vain).contains("`x` is used by no other"));
    let twice = format!("{}---\n{}", document("x", "<a>"), document("x", "<b>"));
    assert!(
        folder
            .fault(&twice)
            .contains("two documents are called `x`")
    );
}

#[test]
fn bad_values_are_named_with_line_and_tensor() {
    let folder = Folder::three();
    let cases = [
        (
            "merge_method: linear\nmodels:\n- {model: <a>, parameters: {weight: 1}}\n- {model: <b>, \
             parameters: {weight: -1}}",
            vec![
                "`embed.weight`",
                "the weights add up to 0",
                "(line 3, column",
            ],
        ),
        (
            "merge_method: ties\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    weight: 1\n    \
             density: 1.5",
            vec![
                "cannot merge `embed.weight`: `density` must be a number from 0 to 1",
                "(line 7, column",
            ],
        ),
        (
            "merge_method: della\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters: {weight: 1, \
             density: 0.9}",
            vec![
                "`embed.weight`",
                "`density` must be such that",
                "(line 5, column",
            ],
        ),
        (
            "merge_method: slerp\nparameters: {t: 0.5}\nmodels:\n- <a>",
            vec![
                "slerp merges two models",
                "the recipe has 1",
                "(line 4, column",
            ],
        ),
        (
            "merge_method: model_stock\nbase_model: <base>\nmodels:\n- <base>\n- <a>",
            vec!["at least 2 models beside the base", "has 1"],
        ),
        (
            "merge_method: linear\nmodels:\n- <a>\n- <b>",
            vec![
                "linear needs `weight` for",
                "`embed.weight`",
                "(line 3, column",
            ],
        ),
        (
            "merge_method: linear\nmodels:\n- model: <a>\n  parameters: {wieght: 1}",
            vec!["linear has no parameter `wieght` (line 4, column"],
        ),
        (
            "merge_method: linear\nbase_model: <base>\nparameters: {weight: 1}\nmodels: [<a>, <b>]",
            vec!["linear has no use for a base_model that is none of its models"],
        ),
        (
            "merge_method: ties\nmodels: [<a>]",
            vec!["ties needs a base_model"],
        ),
        (
            "merge_method: interpolate\nmodels: [<a>, <b>]",
            vec!["interpolate merges experts of one checkpoint"],
        ),
        (
            "merge_method: passthrough\nmodels: [<a>]\nlayout: generic",
            vec!["nothing to merge"],
        ),
        (
            "merge_method: linear\nmodels: [<a>]\nmodules: {text: {}}",
            vec!["modules", "line 3"],
        ),
        (
            "merge_method: linear\nmodels:\n- model: <a>\n  lora: x",
            vec!["x/adapter_config.json: cannot open"],
        ),
        ("merge_method: linear", vec!["either `models` or `slices`"]),
    ];
    for (yaml, parts) in cases {
        let said = folder.fault(yaml);
        for part in parts {
            assert!(said.contains(part), "no {part} in {said}");
        }
    }
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
fn a_recipe_with_everything_survives_being_written() {
    let yaml = "name: x\nmerge_method: ties\nslices:\n- sources:\n  - {model: p, layer_range: [0, 2], parameters: \
                {weight: 1}}\n  parameters: {density: [{filter: mlp, value: [0.1, 1]}, {value: 0.3}]}\nbase_model: \
                q\nlayers: m.l\nparameters: {rescale: true, weight: {glob: '*', value: 1}}\ndtype: \
                float32\nout_dtype: bfloat16\non_missing: skip\nrng: mergekit\nseed: 3\ntokenizer_source: \
                union\n---\nmerge_method: linear\nmodels: [x, {model: w, root: z, rename: [{from: a, to: b}]}]";
    let recipe = MergeRecipe::parse(yaml, Path::new("test")).expect("valid");
    assert_eq!(recipe.earlier.len(), 1);
    let again = recipe.to_yaml().expect("written");
    assert_eq!(
        MergeRecipe::parse(&again, Path::new("test")).expect(&again),
        recipe
    );
}

#[test]
fn every_key_of_a_recipe_is_in_its_document() {
    let said = MergeRecipe::parse("nothing: 1", Path::new("test")).expect_err("no such key");
    let said = said.to_string();
    let (_, keys) = said.split_once("expected one of").expect("a list of keys");
    let keys = keys.lines().next().unwrap_or_default();
    let keys: Vec<&str> = keys.split(',').map(str::trim).collect();
    assert!(keys.len() > 15, "{keys:?}");
    let document = std::fs::read_to_string(fixture::path("../docs/recipes.md")).expect("readable");
    for key in keys {
        assert!(
            document.contains(&format!("| `{key}` | ")),
            "{key} is not in docs/recipes.md"
        );
    }
}
