//! The optimizer's state lies with several ranks, is kept whole, and goes on with any number of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use merge::Progress;
use merge::progress::Silent;
use train::collective::{Alone, Collective};
use train::recipe::CheckedRecipe;
use train::run::{Ended, KeptState, Trainer, Where};

use crate::fixture::recipe;
use crate::threads::Threads;

/// Of weights and moments by L2 over a tensor: sums over ranks are taken in another order.
const TOLERANCE: f64 = 1e-5;

/// Stops after a number of steps, asked for by each rank of its own.
struct StopAfter {
    left: Mutex<u64>,
    /// Weights are made before the first step.
    are_steps: AtomicBool,
}

impl Progress for StopAfter {
    fn start_items(&self, what: &str, _: u64) {
        self.are_steps.store(what == "steps", Ordering::Relaxed);
    }

    fn advance(&self, amount: u64) {
        if self.are_steps.load(Ordering::Relaxed) {
            let mut left = self.left.lock().expect("a count");
            *left = left.saturating_sub(amount);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.are_steps.load(Ordering::Relaxed) && *self.left.lock().expect("a count") == 0
    }
}

fn run(recipe: &CheckedRecipe, folder: &Path, ranks: &dyn Collective, steps: Option<u64>) -> Ended {
    run_with(recipe, folder, (ranks, None), steps)
}

/// Runs a number of steps of a recipe, or all, with ranks that may share experts out.
pub fn run_with(
    recipe: &CheckedRecipe,
    folder: &Path,
    (ranks, experts): (&dyn Collective, Option<Rc<dyn Collective>>),
    steps: Option<u64>,
) -> Ended {
    let stop = StopAfter {
        left: Mutex::new(steps.unwrap_or(0)),
        are_steps: AtomicBool::new(false),
    };
    let place = Where {
        folder,
        device: Device::Cpu,
        collective: ranks,
        experts,
        progress: match steps {
            Some(_) => &stop,
            None => &Silent,
        },
    };
    let trainer = Trainer::open(recipe.clone(), place);
    trainer
        .and_then(|mut trainer| trainer.run())
        .expect("it runs")
}

/// The length of a vector.
pub fn l2(values: impl Iterator<Item = f32>) -> f64 {
    let squares = values.map(|value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

/// The contents of a state.
pub fn values(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let kept = KeptState::open(path).expect("a state");
    let entries: Vec<(String, usize)> = (kept.entries())
        .map(|(key, n)| (key.to_owned(), n))
        .collect();
    let read = |(key, n): (String, usize)| {
        let values = kept.read(&key, 0..n).expect("it reads");
        (key, values)
    };
    entries.into_iter().map(read).collect()
}

/// The contents of a checkpoint.
pub fn weights(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = merge::io::open(path, &merge::io::OpenOptions::default()).expect("it opens");
    let floats = (file.tensors()).filter(|(_, info)| info.dtype == merge::DType::F32);
    let read = |(key, _): (&str, _)| {
        let bytes = file.read_all(key).expect("it reads");
        (key.to_owned(), bytemuck::pod_collect_to_vec(&bytes))
    };
    floats.map(read).collect()
}

fn compare(found: &BTreeMap<String, Vec<f32>>, expected: &BTreeMap<String, Vec<f32>>) {
    assert!(found.keys().eq(expected.keys()));
    for (key, expected) in expected {
        assert_eq!(found[key].len(), expected.len(), "{key}");
        let off = l2(found[key].iter().zip(expected).map(|(a, b)| a - b));
        let norm = l2(expected.iter().copied()).max(f64::MIN_POSITIVE);
        assert!(off <= TOLERANCE * norm, "`{key}`: {off} of {norm}");
    }
}

#[test]
fn a_state_of_two_ranks_is_that_of_one_and_goes_on_with_four_and_one() {
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: itc }, { name: mlm }]",
        &[
            "drop_path=0.2",
            "optim.ema=0.9",
            "batch_size=8",
            "save.keep=9",
        ],
    );
    let (alone, moved) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    for (n_ranks, steps) in [(2, Some(2)), (4, Some(2)), (1, None)] {
        let wanted = if steps.is_some() {
            Ended::Stopped
        } else {
            Ended::Done
        };
        let ended = run(&recipe, alone.path(), &Alone, steps);
        assert_eq!(ended, wanted);
        let all = Threads::run(n_ranks, |rank| run(&recipe, moved.path(), rank, steps));
        assert_eq!(all, vec![wanted; n_ranks]);
    }
    for step in ["step-00000002", "step-00000004", "step-00000006"] {
        let state =
            |folder: &Path| values(&folder.join("states").join(step).join("state.safetensors"));
        compare(&state(moved.path()), &state(alone.path()));
    }
    let file = |folder: &Path| weights(&folder.join("model.safetensors"));
    compare(&file(moved.path()), &file(alone.path()));
}

#[test]
fn each_rank_keeps_its_share_of_the_moments() {
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: itc }]",
        &["batch_size=6"],
    );
    let bytes = |ranks: &dyn Collective, folder: &Path| {
        let place = Where {
            folder,
            device: Device::Cpu,
            collective: ranks,
            experts: None,
            progress: &Silent,
        };
        let trainer = Trainer::open(recipe.clone(), place).expect("it opens");
        trainer.memory().optimizer_bytes
    };
    let folder = tempfile::tempdir().expect("a folder");
    let whole = bytes(&Alone, folder.path());
    let parts = Threads::run(3, |rank| bytes(rank, folder.path()));
    assert_eq!(parts.iter().sum::<u64>(), whole);
    // Moments of two numbers of 4 bytes: shares differ by one element at most.
    let (least, most) = (parts.iter().min(), parts.iter().max());
    assert!(
        most.zip(least)
            .is_some_and(|(most, least)| most - least <= 8)
    );
}
