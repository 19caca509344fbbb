//! Adapters extracted from two models: known differences come back, and reports are true.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::{OpenOptions, WriteOptions};
use merge::lora::{ExtractOptions, ExtractTarget, Extraction, extract};
use merge::low_rank::Truncation;
use merge::progress::Silent;
use merge::random::Draws;
use merge::{DType, Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

type Model = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn noise(name: &str, n: usize, scale: f32) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Draws::new(5, name).add_normal(scale, 0, &mut values);
    values
}

/// A model of two linear layers (one of them larger than a chunk and sketched), a convolution, an
/// embedding and a norm.
fn base() -> Model {
    let shapes: [(&str, &[usize]); 7] = [
        ("layers.0.fc.weight", &[300, 400]),
        ("layers.0.fc.bias", &[300]),
        ("layers.1.fc.weight", &[12, 20]),
        ("patch.weight", &[8, 3, 2, 2]),
        ("embed_tokens.weight", &[30, 10]),
        ("norm.weight", &[9]),
        ("norm.bias", &[9]),
    ];
    let tensors = shapes.map(|(name, shape)| {
        let values = noise(name, shape.iter().product(), 1.0);
        (name.to_owned(), (shape.to_vec(), values))
    });
    tensors.into()
}

/// The base with a difference of this rank in every tensor of more than one axis.
fn tuned(rank: usize) -> Model {
    let mut model = base();
    for (name, (shape, values)) in &mut model {
        let (rows, columns) = (shape[0], shape[1..].iter().product::<usize>());
        if shape.len() == 1 {
            continue;
        }
        let left = noise(&format!("{name} left"), rows * rank, 0.1);
        let right = noise(&format!("{name} right"), rank * columns, 0.1);
        for (index, value) in values.iter_mut().enumerate() {
            let (row, column) = (index / columns, index % columns);
            // Each rank weighs half of the one before.
            *value += (0..rank)
                .map(|k| 0.5f32.powi(k as i32) * left[row * rank + k] * right[k * columns + column])
                .sum::<f32>();
        }
    }
    model
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(base: &Model, tuned: &Model) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        for (name, model) in [("base", base), ("tuned", tuned)] {
            let tensors = model.iter().map(|(name, (shape, values))| {
                let raw = Raw {
                    dtype: Dtype::F32,
                    shape: shape.clone(),
                    bytes: bytemuck::cast_slice(values).to_vec(),
                };
                (name.clone(), raw)
            });
            fixture::write(&folder.path(name), &tensors.collect());
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.safetensors"))
    }

    fn adapter(&self) -> PathBuf {
        self.0.path().join("adapter")
    }

    fn extract(&self, options: &ExtractOptions) -> Result<Extraction, Error> {
        let open = |name| merge::io::open(&self.path(name), &OpenOptions::default());
        let target = ExtractTarget {
            folder: self.adapter(),
            force: true,
            command: "test".into(),
            base: self.path("base"),
        };
        let tuned = std::sync::Arc::new(open("tuned")?);
        extract(&open("base")?, &tuned, options, &target, &Silent)
    }

    /// The base with the extracted adapter.
    fn merged(&self) -> BTreeMap<String, Raw> {
        let yaml = format!(
            "merge_method: passthrough\nmodels: ['{}+{}']\n",
            self.path("base").display(),
            self.adapter().display()
        );
        let recipe = MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("valid");
        let (plan, _) = MergePlan::resolve(&recipe).expect("the adapter fits");
        let write = WriteOptions {
            force: true,
            ..WriteOptions::new(self.path("merged"))
        };
        execute(&plan, &write, &RunOptions::default(), &Silent).expect("merges");
        fixture::tensors(&self.path("merged"))
    }

    fn settings(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.adapter().join("adapter_config.json"));
        serde_json::from_str(&text.expect("readable")).expect("JSON")
    }

    fn fault(&self, options: &ExtractOptions) -> String {
        match self.extract(options) {
            Ok(_) => panic!("should be refused"),
            Err(error) => error.to_string(),
        }
    }
}

fn options(truncation: Truncation) -> ExtractOptions {
    ExtractOptions {
        truncation,
        dtype: DType::F32,
        include: Vec::new(),
        exclude: Vec::new(),
        embeddings: true,
        save_whole: false,
        fan_in_fan_out: false,
        seed: 0,
    }
}

fn patterns(written: &str) -> Vec<regex::Regex> {
    vec![merge::plan::name_pattern(written).expect("a pattern")]
}

/// Length of the difference of two tensors.
fn distance(a: &[f64], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| (a - f64::from(*b)).powi(2));
    squares.sum::<f64>().sqrt()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[test]
fn a_difference_of_low_rank_comes_back_to_rounding_in_every_kind_of_tensor() {
    let (base, tuned) = (base(), tuned(3));
    let folder = Folder::new(&base, &tuned);
    let found = folder
        .extract(&options(Truncation::Rank(3)))
        .expect("extracts");
    assert_eq!(found.tensors.len(), 4);
    assert_eq!((found.n_unchanged, found.left_out.len()), (3, 0));
    let merged = folder.merged();
    for tensor in &found.tensors {
        // Of the difference, which is a hundredth of the weights: rounding of the f32 weights themselves.
        assert!(tensor.relative_error < 2e-5, "{tensor:?}");
        let (_, expected) = &tuned[&tensor.name];
        let size = distance(&wide(expected), &vec![0.0; expected.len()]);
        let error = distance(&merged[&tensor.name].values(), expected);
        assert!(
            error < 1e-6 * size,
            "{}: {error:e} of {size:e}",
            tensor.name
        );
    }
    for name in ["norm.weight", "norm.bias", "layers.0.fc.bias"] {
        assert_eq!(merged[name].values(), wide(&base[name].1));
    }
}

#[test]
fn the_reported_error_is_what_merging_the_adapter_misses() {
    let (base, tuned) = (base(), tuned(6));
    let folder = Folder::new(&base, &tuned);
    for (dtype, rank) in [(DType::F32, 2), (DType::F32, 4), (DType::BF16, 5)] {
        let options = ExtractOptions {
            dtype,
            ..options(Truncation::Rank(rank))
        };
        let found = folder.extract(&options).expect("extracts");
        let merged = folder.merged();
        let (mut missed, mut all) = (0.0, 0.0);
        for tensor in &found.tensors {
            let (before, expected) = (&base[&tensor.name].1, &tuned[&tensor.name].1);
            let change = distance(&wide(before), expected);
            let error = distance(&merged[&tensor.name].values(), expected);
            let ratio = error / change / tensor.relative_error;
            assert!((ratio - 1.0).abs() < 1e-3, "{tensor:?}: {ratio}");
            let energy = 1.0 - (error / change).powi(2);
            assert!(
                (energy - tensor.energy).abs() < 1e-4,
                "{tensor:?}: {energy}"
            );
            let size = distance(&wide(before), &vec![0.0; before.len()]);
            assert!((change / size / tensor.relative_change - 1.0).abs() < 1e-5);
            missed += error.powi(2);
            all += change.powi(2);
        }
        let whole = (missed / all).sqrt();
        assert!((whole / found.relative_error - 1.0).abs() < 1e-3, "{whole}");
    }
}

#[test]
fn energy_gives_each_tensor_its_rank_and_the_settings_say_so() {
    let folder = Folder::new(&base(), &tuned(6));
    let share = 0.95;
    let energy = |max_rank| options(Truncation::Energy { share, max_rank });
    let found = folder.extract(&energy(None)).expect("extracts");
    let settings = folder.settings();
    let largest = found.tensors.iter().map(|tensor| tensor.rank).max();
    assert_eq!(settings["r"].as_u64(), largest.map(|rank| rank as u64));
    for tensor in &found.tensors {
        assert!(tensor.energy >= share, "{tensor:?}");
        // One less would not have been enough.
        let less = ExtractOptions {
            include: patterns(&tensor.name),
            ..options(Truncation::Rank(tensor.rank - 1))
        };
        if tensor.rank > 1 {
            let less = folder.extract(&less).expect("extracts");
            assert!(less.tensors[0].energy < share, "{less:?}");
        }
    }
    let again = folder.extract(&energy(Some(2))).expect("extracts");
    assert!(again.tensors.iter().all(|tensor| tensor.rank <= 2));
    // Each tensor's own rank and factor are found again by a merge.
    let merged = folder.merged();
    for tensor in &again.tensors {
        let change = distance(&wide(&base()[&tensor.name].1), &tuned(6)[&tensor.name].1);
        let error = distance(&merged[&tensor.name].values(), &tuned(6)[&tensor.name].1);
        assert!((error / change / tensor.relative_error - 1.0).abs() < 1e-3);
    }
}

#[test]
fn what_has_no_factors_is_named_or_kept_whole() {
    let (base, mut tuned) = (base(), tuned(1));
    for name in ["norm.weight", "layers.0.fc.bias"] {
        tuned.get_mut(name).expect("is there").1[3] += 1.0;
    }
    let folder = Folder::new(&base, &tuned);
    let plain = ExtractOptions {
        embeddings: false,
        ..options(Truncation::Rank(1))
    };
    let found = folder.extract(&plain).expect("extracts");
    let left: Vec<(&str, &str)> = (found.left_out.iter())
        .map(|tensor| (tensor.name.as_str(), tensor.why))
        .collect();
    assert_eq!(
        left,
        [
            ("embed_tokens.weight", "an embedding"),
            ("layers.0.fc.bias", "one axis"),
            ("norm.weight", "one axis"),
        ]
    );
    // Left out is missed: two elements are off by 1, and the embedding by all of its difference.
    assert!(found.relative_error > 0.1, "{}", found.relative_error);

    let whole = ExtractOptions {
        save_whole: true,
        ..plain
    };
    let found = folder.extract(&whole).expect("extracts");
    assert_eq!(
        found.whole,
        [
            "embed_tokens.weight",
            "layers.0.fc.bias",
            "norm.bias",
            "norm.weight"
        ],
        "modules are kept with all they have"
    );
    assert!(found.left_out.is_empty());
    let merged = folder.merged();
    for name in &found.whole {
        assert_eq!(merged[name].values(), wide(&tuned[name].1), "{name}");
    }
    let settings = folder.settings();
    assert_eq!(
        settings["modules_to_save"],
        serde_json::json!(["embed_tokens", "norm"])
    );
    assert_eq!(
        settings["target_modules"],
        serde_json::json!(["fc", "patch"])
    );
}

#[test]
fn weights_kept_as_in_by_out_and_chosen_names_come_back_too() {
    let (base, tuned) = (base(), tuned(2));
    let folder = Folder::new(&base, &tuned);
    let chosen = ExtractOptions {
        fan_in_fan_out: true,
        include: patterns("*.fc.weight"),
        exclude: patterns("/^layers.0/"),
        ..options(Truncation::Rank(2))
    };
    let found = folder.extract(&chosen).expect("extracts");
    assert_eq!(found.n_excluded, 6);
    let merged = folder.merged();
    let (one, other) = ("layers.1.fc.weight", "layers.0.fc.weight");
    assert!(distance(&merged[one].values(), &tuned[one].1) < 1e-5);
    assert_eq!(merged[other].values(), wide(&base[other].1));
    // Another module ends in `fc`, so that the last part would not do.
    assert_eq!(
        folder.settings()["target_modules"],
        serde_json::json!(["layers.1.fc"])
    );
}

#[test]
fn models_that_do_not_fit_are_refused_by_tensor_all_at_once() {
    let (base, mut tuned) = (base(), tuned(1));
    let rank = options(Truncation::Rank(1));
    tuned.remove("norm.bias");
    tuned.insert("extra.weight".into(), (vec![1, 1], vec![0.0]));
    tuned.insert("layers.1.fc.weight".into(), (vec![20, 12], vec![0.0; 240]));
    let said = Folder::new(&base, &tuned).fault(&rank);
    for part in [
        "`norm.bias`",
        "`extra.weight`",
        "`layers.1.fc.weight` has shape [20, 12]",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }

    let mut broken = base.clone();
    broken.get_mut("layers.0.fc.weight").expect("is there").1[70_001] = f32::NAN;
    let folder = Folder::new(&base, &broken);
    let said = folder.fault(&rank);
    assert!(
        said.contains("tuned.safetensors: element 70001 of `layers.0.fc.weight`"),
        "{said}"
    );
    assert!(!folder.adapter().exists(), "nothing is left behind");

    let said = Folder::new(&base, &base).fault(&rank);
    assert!(said.contains("none of 7 tensors differs"), "{said}");
}
