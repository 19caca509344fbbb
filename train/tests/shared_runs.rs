//! Whole runs that several ranks make together: by threads in `ranks`, by processes in `mpi_ranks`.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use candle_core::Device;
use merge::progress::Silent;
use train::collective::{Alone, Collective};
use train::log::{LINES_FILE, read};
use train::recipe::CheckedRecipe;
use train::run::{Ended, Trainer, Where};

use crate::fixture::recipe;

/// Of weights by L2 over a tensor, and of losses, relative.
const TOLERANCE: f64 = 1e-5;

/// Values of every weight of a run.
fn weights(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let path = folder.join("model.safetensors");
    let file = merge::io::open(&path, &merge::io::OpenOptions::default()).expect("it opens");
    let floats = file
        .tensors()
        .filter(|(_, info)| info.dtype == merge::DType::F32);
    let read = |(key, _): (&str, _)| {
        let bytes = file.read_all(key).expect("it reads");
        (key.to_owned(), bytemuck::pod_collect_to_vec(&bytes))
    };
    floats.map(read).collect()
}

/// Losses, norms of gradients and measurements, in their order.
fn told(folder: &Path) -> Vec<f64> {
    let records = read(&folder.join(LINES_FILE)).expect("the log reads");
    let is_compared =
        |name: &str| ["loss", "gradient_norm"].contains(&name) || name.starts_with("validation/");
    let values = records.iter().flat_map(|record| &record.values);
    let values = values.filter(|(name, _)| is_compared(name));
    values.map(|(_, value)| *value).collect()
}

fn l2(values: impl Iterator<Item = f32>) -> f64 {
    let squares = values.map(|value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// With everything that is random, and parts of a batch. The largest relative error of a weight.
pub fn a_run_ends_where_that_of_one_process_ends(ranks: &dyn Collective, folder: &Path) -> f64 {
    let recipe = recipe(
        "ckpt/all_moe_pretrain.ckpt",
        "[{ name: itc }, { name: itm }, { name: mlm, weight: 0.5 }]",
        &[
            "drop_path=0.2",
            "dropout=0.1",
            "augmentation={random: {}}",
            "batch_size=8",
        ],
    );
    ends_alike(&recipe, (ranks, None), folder)
}

/// A small EVE from fresh weights whose experts ranks share out, with noise and dropped tokens, clipped gradients, decay
/// and averages.
pub fn eve(settings: &[&str]) -> CheckedRecipe {
    let usual = [
        "init={synth: {family: eve, blocks: 3, width: 32, attention_heads: 2, mixtures: 2, experts: 5, \
         patch_size: 8, image_size: 32, text_len: 24, pair_len: 16, vocabulary: 101}}",
        "model={}",
        "share_experts=true",
        // Steps of AdamW are else as large for gradients that are nothing but rounding.
        "optim={lr: 1e-3, warmup: 2, epsilon: 1e-4, weight_decay: 0.05, max_norm: 0.1, ema: 0.9}",
        "drop_path=0.2",
        "dropout=0.1",
    ];
    let settings = [&usual[..], settings].concat();
    let objectives = "[{ name: itc, pairs: { by_image: true } }, { name: masked_signal }]";
    recipe("ckpt/ufo_pretrain.ckpt", objectives, &settings)
}

/// The same of an EVE whose experts the ranks share, with validation on the way.
pub fn a_run_that_shares_experts_ends_where_that_of_one_process_ends(
    ranks: &Rc<dyn Collective>,
    folder: &Path,
) -> f64 {
    let recipe = eve(&[
        "batch_size=12",
        "validation={task: retrieval, split: val, every: {steps: 2}}",
    ]);
    let error = ends_alike(&recipe, (ranks.as_ref(), Some(ranks)), folder);
    let records = read(&folder.join("together").join(LINES_FILE)).expect("the log reads");
    let mut norms = (records.iter()).filter_map(|record| record.values.get("gradient_norm"));
    assert!(norms.all(|norm| *norm > 0.1), "gradients are clipped");
    error
}

/// Runs a recipe alone and together. The largest relative error of a weight.
fn ends_alike(
    recipe: &CheckedRecipe,
    (ranks, experts): (&dyn Collective, Option<&Rc<dyn Collective>>),
    folder: &Path,
) -> f64 {
    let run = |name: &str, ranks: &dyn Collective, experts: Option<&Rc<dyn Collective>>| {
        let folder = folder.join(name);
        let place = Where {
            folder: &folder,
            device: Device::Cpu,
            collective: ranks,
            experts: experts.cloned(),
            progress: &Silent,
        };
        let trainer = Trainer::open(recipe.clone(), place);
        let ended = trainer.and_then(|mut trainer| trainer.run());
        assert_eq!(ended.expect("it runs"), Ended::Done);
        (weights(&folder), told(&folder))
    };
    // Every rank by itself, in a folder of its own.
    let (expected, expected_told) = run(&format!("alone{}", ranks.rank()), &Alone, None);
    let (found, told) = run("together", ranks, experts);
    assert_eq!(told.len(), expected_told.len());
    for (found, expected) in told.iter().zip(&expected_told) {
        let error = (found - expected).abs();
        assert!(
            error <= TOLERANCE * expected,
            "{found}, expected {expected}"
        );
    }
    assert!(found.keys().eq(expected.keys()));
    let mut largest = 0.0f64;
    for (key, expected) in &expected {
        let difference = l2(found[key].iter().zip(expected).map(|(a, b)| a - b));
        let error = difference / l2(expected.iter().copied()).max(f64::MIN_POSITIVE);
        assert!(error <= TOLERANCE, "`{key}`: {error}");
        largest = largest.max(error);
    }
    largest
}
