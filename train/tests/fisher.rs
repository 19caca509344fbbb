//! Diagonals of Fisher information: against gradients of single examples, stopped, and on several ranks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use candle_core::{DType, Device};
use evaluate::nn::Gradients;
use merge::Progress;
use merge::fisher::{FisherRecord, read};
use merge::io::{OpenOptions, WriteOptions};
use merge::progress::Silent;
use train::collective::{Alone, Collective};
use train::data::Place;
use train::fisher::{FisherJob, FisherSums, Labels};
use train::objectives::{Shared, Step};
use train::recipe::CheckedRecipe;
use train::run::{TrainPlan, Where};

use crate::fixture::{path, recipe};
use crate::threads::Threads;

/// Of the largest value of a tensor: the tape rounds otherwise than candle's own graph.
const TOLERANCE: f64 = 1e-4;

fn of_questions() -> CheckedRecipe {
    let data = "data.train=[{dataset: vqa, split: train}]";
    let settings = [data, "batch_size=2", "augmentation=square"];
    recipe("ckpt/all_moe.safetensors", "[{ name: vqa }]", &settings)
}

fn of_statements() -> CheckedRecipe {
    let data = "data.train=[{dataset: nlvr2, split: train}]";
    let settings = [data, "batch_size=2", "augmentation=square"];
    recipe("ckpt/all_moe.safetensors", "[{ name: nlvr2 }]", &settings)
}

/// Stops after a number of groups, or never.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn advance(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

fn job<'a>(
    recipe: &CheckedRecipe,
    out: &Path,
    collective: &'a dyn Collective,
    progress: &'a dyn Progress,
) -> FisherJob<'a> {
    FisherJob {
        recipe: recipe.clone(),
        files: Vec::new(),
        labels: Labels::Given,
        at_once: 1,
        limit: None,
        out: out.into(),
        save_every: Duration::from_secs(3600),
        device: Device::Cpu,
        collective,
        progress,
    }
}

fn written(job: FisherJob<'_>) -> Option<FisherRecord> {
    let options = WriteOptions::new(&job.out);
    let mut sums = FisherSums::open(job).expect("it opens");
    sums.collect().expect("summed");
    sums.finish(&options)
        .expect("written")
        .map(|(record, _)| record)
}

fn values(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let file = merge::io::open(path, &OpenOptions::default()).expect("it opens");
    let sums = read(&file).expect("it reads");
    (sums.into_iter())
        .map(|(name, squares)| (name, squares.values().to_vec()))
        .collect()
}

fn compare(found: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Vec<f64>>) {
    let mut n_informed = 0;
    for (name, found) in found {
        let zeros = vec![0.0; found.len()];
        let expected = expected.get(name).unwrap_or(&zeros);
        let most = expected
            .iter()
            .fold(0.0, |most: f64, value| most.max(*value));
        n_informed += usize::from(most > 0.0);
        for (found, expected) in found.iter().zip(expected) {
            let difference = (found - expected).abs();
            assert!(
                difference <= TOLERANCE * most,
                "{name}: {found} for {expected}"
            );
        }
    }
    assert!(expected.keys().all(|name| found.contains_key(name)));
    assert!(n_informed > 20, "{n_informed}");
}

/// The mean over all examples of `Σ p g²`, with `p` and `g` by candle's own graph: of the given class alone, or of
/// `n_classes`.
fn by_hand(recipe: &CheckedRecipe, n_classes: Option<u32>) -> BTreeMap<String, Vec<f64>> {
    let folder = tempfile::tempdir().expect("a folder");
    let place = Where {
        folder: folder.path(),
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    let prepared = TrainPlan::fresh(recipe.clone(), &place)
        .expect("a plan")
        .prepared();
    let n = prepared.loader.examples.len();
    let start = &prepared.start;
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for index in 0..n {
        let loaded = prepared.loader.load(Place::default(), index, &[index]);
        let batch = loaded.expect("an example").batch(&Device::Cpu, DType::F32);
        let batch = batch.expect("a batch");
        let labels = match n_classes {
            None => vec![batch.classes.clone()],
            Some(n) => (0..n).map(|class| Some(vec![class])).collect(),
        };
        for classes in labels {
            let mut batch = batch.clone();
            batch.classes = classes;
            let shared = Shared::default();
            let step = Step::plain(start.model.as_ref(), &batch, &Alone, &shared);
            let loss = prepared.objectives[0].0.loss(&step).expect("a loss");
            let weight = match n_classes {
                None => 1.0,
                Some(_) => (-loss.reported).exp(),
            };
            let mut gradients = Gradients::of(start.variables.values());
            let found = loss.value.backward().expect("gradients");
            gradients.absorb(&found).expect("absorbed");
            for (name, variable) in &start.variables {
                let Some(found) = gradients.host(variable) else {
                    continue;
                };
                let key = start.weights.key_of(name).expect("a key").to_owned();
                let sums = sums.entry(key).or_insert_with(|| vec![0.0; found.len()]);
                for (sum, value) in sums.iter_mut().zip(found.iter()) {
                    *sum += weight * f64::from(*value).powi(2) / n as f64;
                }
            }
        }
    }
    sums
}

#[test]
fn information_is_the_mean_of_the_squared_gradients_of_single_examples() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("vqa.fisher.safetensors");
    let record = written(job(&of_questions(), &out, &Alone, &Silent)).expect("a record");
    assert_eq!(
        (record.labels.as_str(), record.examples_at_once),
        ("given", 1)
    );
    assert_eq!(record.data, ["vqa train"]);
    compare(&values(&out), &by_hand(&of_questions(), None));
    // Each float of the checkpoint has a value, so that a merge finds all.
    let model = merge::io::open(&path("ckpt/all_moe.safetensors"), &OpenOptions::default());
    let model = model.expect("it opens");
    let floats = model.tensors().filter(|(_, info)| info.dtype.is_float());
    assert_eq!(values(&out).len(), floats.count());
}

#[test]
fn expected_labels_count_by_the_models_own_probability() {
    let folder = tempfile::tempdir().expect("a folder");
    let (given, expected) = (
        folder.path().join("g.safetensors"),
        folder.path().join("e.safetensors"),
    );
    written(job(&of_statements(), &given, &Alone, &Silent));
    written(FisherJob {
        labels: Labels::Expected,
        ..job(&of_statements(), &expected, &Alone, &Silent)
    });
    compare(&values(&given), &by_hand(&of_statements(), None));
    compare(&values(&expected), &by_hand(&of_statements(), Some(2)));
    assert_ne!(values(&given), values(&expected));
}

#[test]
fn sums_that_were_stopped_go_on_and_come_out_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let (whole, stopped) = (
        folder.path().join("a.safetensors"),
        folder.path().join("b.safetensors"),
    );
    written(job(&of_questions(), &whole, &Alone, &Silent));
    let progress = StopAfter(AtomicU64::new(2));
    let mut sums =
        FisherSums::open(job(&of_questions(), &stopped, &Alone, &progress)).expect("it opens");
    let n = sums.n_own();
    assert!(n > 3, "{n} examples");
    sums.collect().expect_err("stopped");
    assert!(!stopped.exists());
    let sums = FisherSums::open(job(&of_questions(), &stopped, &Alone, &Silent)).expect("it opens");
    assert_eq!(sums.n_kept(), 2);
    // Other labels, another limit: not the same sums.
    let other = FisherJob {
        limit: Some(3),
        ..job(&of_questions(), &stopped, &Alone, &Silent)
    };
    assert_eq!(FisherSums::open(other).expect("it opens").n_kept(), 0);
    drop(sums);
    written(job(&of_questions(), &stopped, &Alone, &Silent));
    assert_eq!(values(&whole), values(&stopped));
    let left = std::fs::read_dir(folder.path()).expect("listed").count();
    assert_eq!(left, 2, "nothing that is unfinished is left");
}

#[test]
fn ranks_share_the_examples_and_several_are_squared_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let retrieval = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: retrieval }]",
        &["batch_size=4", "augmentation=square"],
    );
    let together = |out: &Path, ranks: &dyn Collective| {
        written(FisherJob {
            at_once: 3,
            limit: Some(8),
            ..job(&retrieval, out, ranks, &Silent)
        })
    };
    let record = together(&out("one"), &Alone).expect("a record");
    assert_eq!((record.n_examples, record.examples_at_once), (8, 3));
    let records = Threads::run(2, |rank| together(&out("two"), rank));
    assert!(records[0].is_some() && records[1].is_none());
    compare(&values(&out("two")), &values(&out("one")));
}

#[test]
fn what_has_no_information_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("f.safetensors");
    let said = |job: FisherJob<'_>| {
        let opened = FisherSums::open(job);
        opened.err().expect("refused").to_string()
    };
    let retrieval = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: retrieval }]",
        &["batch_size=4"],
    );
    let alone = said(job(&retrieval, &out, &Alone, &Silent));
    assert!(
        alone.contains("retrieval") && alone.contains("--at-once"),
        "{alone}"
    );
    let expected = said(FisherJob {
        labels: Labels::Expected,
        ..job(&of_questions(), &out, &Alone, &Silent)
    });
    assert!(
        expected.contains("vqa") && expected.contains("--labels given"),
        "{expected}"
    );
    let data = "data.train=[{dataset: nlvr2, split: train}]";
    let fresh = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: nlvr2 }]",
        &[data, "batch_size=2"],
    );
    let fresh = said(job(&fresh, &out, &Alone, &Silent));
    assert!(fresh.contains("nlvr2_classifier"), "{fresh}");
    assert!(!out.exists());
}
