//! Copies between memory and the device within a step of training, on the way that a card takes: on the processor that is f64, whose
//! blocks are graphs of candle's operations, with masters of the weights in f32.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Var};
use evaluate::crossing::{self, Crossings};
use evaluate::models::Overrides;
use evaluate::nn::{Gradients, Tape};
use evaluate::ranks::ExpertShare;
use merge::io::OpenOptions;
use train::batch::{Batch, Images, Texts};
use train::collective::Alone;
use train::objectives::{self, Shared, Step};
use train::optim::{OptimSettings, Warmup};
use train::run::{Start, Updater, Wanted};

use crate::fixture::tensors;

/// A model of the fixtures that computes in `dtype` with masters in f32.
fn start(architecture: &str, dtype: DType) -> Start {
    let path = fixtures::path(&format!("ckpt/{architecture}.safetensors"));
    let file = merge::io::open(&path, &OpenOptions::default()).expect("the file opens");
    let wanted = Wanted {
        overrides: Overrides {
            n_heads: Some(3),
            fusion_start: Some(10),
            text_table_len: Some(16),
            ..Overrides::default()
        },
        settings: Vec::new(),
        objectives: Vec::new(),
        classes: Vec::new(),
        seed: 0,
        experts: ExpertShare::ALL,
    };
    Start::load(file.into(), &wanted, &Device::Cpu, dtype).expect("the model loads")
}

fn batch(dtype: DType) -> Batch {
    let inputs = tensors("forward/inputs.safetensors");
    let get = |name: &str| inputs[name].clone();
    let image = get("irtr_image").to_dtype(dtype).expect("an image");
    let ids = get("irtr_text_ids").to_dtype(DType::U32).expect("ids");
    Batch {
        n: image.dim(0).expect("a batch"),
        image: Some(Images::new(image)),
        text: Some(Texts::of_tensors(ids, get("irtr_text_masks")).expect("words")),
        ..Batch::default()
    }
}

/// The copies of a step with an objective, gradients, their norm, the update and new weights for the model; and the loss.
fn step(start: &mut Start, objective: &str, tape: Tape) -> (Crossings, f64) {
    let batch = batch(start.weights.dtype());
    let objective = objectives::by_name(objective, None).expect("an objective");
    let settings = OptimSettings {
        lr: 1e-6,
        end_lr: 1e-6,
        warmup: Warmup::Steps(0),
        ..OptimSettings::default()
    };
    let (variables, grouping) = (start.variables.clone(), start.blueprint.grouping());
    let mut updater =
        Updater::new(&settings, 10, &variables, grouping, &Alone).expect("an updater");
    let mut gradients = Gradients::of(variables.values());
    let before = crossing::so_far();
    let shared = Shared::default();
    let loss = objective.loss(&Step {
        tape: Some(&tape),
        ..Step::plain(start.model.as_ref(), &batch, &Alone, &shared)
    });
    let loss = loss.expect("a loss");
    tape.backward(&loss.value, &mut gradients)
        .expect("gradients");
    let norm = updater
        .norm(&variables, &gradients, 1.0, &Alone)
        .expect("a norm");
    let updated = updater.update(0, &variables, &gradients, (1.0, norm), &Alone);
    updated.expect("updated");
    start
        .recast()
        .expect("the model computes with the new weights");
    (crossing::so_far() - before, loss.reported)
}

#[test]
fn a_step_copies_a_few_numbers_of_each_pair_whatever_the_model() {
    // Three times the variables and twelve blocks of three experts copy nothing more.
    let mut found = Vec::new();
    for architecture in ["ufo", "all_moe"] {
        for tape in [Tape::new(), Tape::checkpointing()] {
            let mut start = start(architecture, DType::F64);
            found.push(step(&mut start, "retrieval", tape).0);
        }
    }
    assert!(found.iter().all(|one| *one == found[0]), "{found:?}");
    let n = batch(DType::F64).n as u64;
    let [image, text] = [10 * 10, 12 * 12].map(|pairs: u64| 4 * pairs);
    let expected = Crossings {
        // Rows of the bias table for image and text; for each way of asking, twice the numbers of rows and candidates, and sums.
        to_device: 2 + 2 * (4 + 2),
        to_device_bytes: image + text + 2 * (4 + 2) * 4 * n,
        // The scale; for each way of asking three numbers a row, and one by the scale. Masters on a processor have their gradients in
        // memory; the norm of others is a test of its own.
        to_memory: 1 + 2 * 2,
        to_memory_bytes: 4 * (1 + 2 * (3 + 1) * n),
    };
    assert_eq!(found[0], expected);
}

#[test]
fn the_norm_of_all_gradients_is_one_copy() {
    // In f64 gradients are tensors, as on a card.
    let tensor = |value: f64| Var::from_vec(vec![value; 4], 4, &Device::Cpu).expect("a variable");
    let variables: BTreeMap<String, Var> = ["a", "b", "c"]
        .map(|name| (name.to_owned(), tensor(1.0)))
        .into();
    let (settings, grouping) = (
        OptimSettings::default(),
        start("ufo", DType::F32).blueprint.grouping(),
    );
    let updater = Updater::new(&settings, 10, &variables, grouping, &Alone).expect("an updater");
    let mut gradients = Gradients::of(variables.values());
    for (variable, value) in variables.values().zip([1.0, 2.0, 2.0]) {
        gradients.add(variable, &tensor(value)).expect("added");
    }
    let before = crossing::so_far();
    let norm = updater
        .norm(&variables, &gradients, 0.5, &Alone)
        .expect("a norm");
    // Half the root of 4 (1 + 4 + 4).
    assert!((norm - 3.0).abs() < 1e-6, "{norm}");
    let expected = Crossings {
        to_memory: 1,
        to_memory_bytes: 3 * 4,
        ..Crossings::default()
    };
    assert_eq!(crossing::so_far() - before, expected);
}

#[test]
fn masters_in_f32_move_where_the_weights_that_compute_would_stay() {
    // f16 keeps 11 bits: a step of 1e-6 is lost on a weight of one, and not on its master.
    let mut start = start("ufo", DType::F16);
    for variable in start.variables.values() {
        assert_eq!(variable.dtype(), DType::F32);
    }
    let name = "transformer.norm.weight";
    let values = |variable: &Var| -> Vec<f32> {
        let flat = variable.flatten_all().and_then(|flat| flat.to_vec1());
        flat.expect("values")
    };
    let before = values(&start.variables[name]);
    step(&mut start, "retrieval", Tape::new());
    let after = values(&start.variables[name]);
    let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
    assert!(
        2 * moved > before.len(),
        "{moved} of {} moved",
        before.len()
    );
}

#[test]
fn sixteen_bits_learn_what_f32_learns_within_their_rounding() {
    let of = |dtype| step(&mut start("all_moe", dtype), "retrieval", Tape::new()).1;
    let exact = of(DType::F32);
    // f64 takes the same operations as f16.
    assert!((of(DType::F64) - exact).abs() <= 1e-5 * exact.abs());
    // Eleven bits, and as many roundings as operations one behind the other.
    let error = (of(DType::F16) - exact).abs() / exact.abs();
    assert!(error <= 1e-2, "{error}");
}

/// Files in which a copy may go uncounted, and why.
const UNCOUNTED: &[(&str, &str)] = &[
    (
        "evaluate/src/nn/batch_norm.rs",
        "statistics of a pass that trains nothing",
    ),
    ("evaluate/src/nn/embedding.rs", "a table on the processor"),
    ("evaluate/src/nn/linear.rs", "the processor in f32"),
    (
        "evaluate/src/nn/relative_position.rs",
        "a table on the processor",
    ),
    ("evaluate/src/models/apart.rs", "a check of a loaded model"),
    (
        "evaluate/src/models/two_towers/mod.rs",
        "a check of a loaded model",
    ),
    (
        "evaluate/src/models/towers/bert_fused.rs",
        "the processor in f32",
    ),
    (
        "evaluate/src/models/eve/mixture.rs",
        "what `vlmerge forward` shows",
    ),
    ("train/src/run/gathered.rs", "states"),
    ("train/src/run/moments.rs", "states"),
    ("train/src/run/model_file.rs", "states"),
    ("train/src/run/update.rs", "states"),
];

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        // These run on the processor alone; passes over given tensors are no training.
        let is_left = ["cpu", "fused", "named.rs"]
            .iter()
            .any(|name| path.ends_with(name));
        match (is_left, path.is_dir()) {
            (true, _) => {}
            (false, true) => below(&path, found),
            (false, false) => found.push(path),
        }
    }
}

#[test]
fn a_step_copies_through_the_counter_alone() {
    let root = fixtures::path("..");
    let mut files = Vec::new();
    for folder in [
        "evaluate/src/nn",
        "evaluate/src/models",
        "train/src/objectives",
        "train/src/run",
        "train/src/optim",
    ] {
        below(&root.join(folder), &mut files);
    }
    let copies = [
        ".to_vec1",
        ".to_vec2",
        ".to_scalar",
        "Tensor::from_vec(",
        "Tensor::from_slice(",
        "Tensor::new(",
        "Tensor::arange(",
    ];
    let mut uncounted = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path).expect("source");
        let own = text.split("#[cfg(test)]").next().unwrap_or_default();
        let name = path
            .strip_prefix(&root)
            .expect("below the root")
            .display()
            .to_string();
        if copies.iter().any(|copy| own.contains(copy)) {
            uncounted.push(name);
        }
    }
    uncounted.sort_unstable();
    let mut allowed: Vec<&str> = UNCOUNTED.iter().map(|(name, _)| *name).collect();
    allowed.sort_unstable();
    assert!(files.len() > 100, "{} files", files.len());
    assert_eq!(uncounted, allowed);
}
