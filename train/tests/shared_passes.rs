//! Ranks that share the passes over a data set measure and sum what one measures and sums.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::capture::Capture;
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::{VqaSet, label_answers};
use evaluate::metrics::retrieval::Ties;
use evaluate::tasks::grams::{collect, summed};
use evaluate::tasks::nlvr2::Nlvr2;
use evaluate::tasks::retrieval::Retrieval;
use evaluate::tasks::vqa::Vqa;
use evaluate::tasks::{FeatureCache, Runner, Task};
use evaluate::text::Tokenizer;
use merge::gram::Gram;
use merge::layouts::GramNames;
use merge::progress::Silent;
use train::collective::{Alone, Collective};

use crate::fixture::{path, trainable};
use crate::threads::Threads;

/// Sums of the same products in another order, in f64: relative to the largest element.
const TOLERANCE: f64 = 1e-12;

fn task(name: &str) -> Box<dyn Task> {
    let folder = path("arrow");
    match name {
        "retrieval" => {
            let set = CaptionSet::open(&folder, "coco", "test").expect("it opens");
            Box::new(Retrieval::new(Arc::new(set), Ties::default()).without_examples())
        }
        "vqa" => {
            let set = VqaSet::open(&folder, "rest_val").expect("it opens");
            // The tiny head has more classes than the tiny data have answers.
            let task = Vqa::new(Arc::new(set), label_answers(&folder).expect("answers"));
            Box::new(task.allowing_other_answers())
        }
        _ => {
            let set = Nlvr2Set::open(&folder, "dev").expect("it opens");
            Box::new(Nlvr2::new(Arc::new(set)))
        }
    }
}

/// The measurements of a rank, and the sums of all, which the first one has.
type Found = (BTreeMap<String, f64>, Option<BTreeMap<String, Gram>>);

fn run(name: &str, ranks: &dyn Collective, cache: Option<FeatureCache>) -> Found {
    let (model, weights) = trainable("all_moe");
    let tokenizer = Tokenizer::open(&path("real/vocab.txt").display().to_string());
    let tokenizer = tokenizer.expect("a tokenizer");
    let runner = Runner::new(&model, &tokenizer, &Device::Cpu, DType::F32, 3, &Silent);
    let mut runner = runner.expect("they fit").shared(ranks);
    if let Some(cache) = cache {
        runner = runner.with_cache(cache);
    }
    let task = task(name);
    let sample = task.run(&runner).expect("it runs").sample;
    let values = sample.quantities.iter().map(|quantity| {
        let value = sample.value(quantity).expect("a value");
        (quantity.name.clone(), value)
    });
    let checkpoint = weights.checkpoint();
    let layout = merge::layouts::detect(checkpoint).expect("a layout");
    let capture = Capture::new(GramNames::of(checkpoint, layout.as_ref()));
    let batches = runner.own(task.gram_batches(&model, 3));
    collect(task.as_ref(), &runner, &capture, &batches, 0, |_| Ok(())).expect("summed");
    let sums = summed(ranks, capture.into_grams()).expect("put together");
    (values.collect(), sums)
}

#[test]
fn every_task_gives_on_several_ranks_what_it_gives_on_one() {
    for name in ["retrieval", "vqa", "nlvr2"] {
        let (expected, expected_sums) = run(name, &Alone, None);
        let expected_sums = expected_sums.expect("alone is first");
        assert!(!expected.is_empty() && !expected_sums.is_empty());
        for n_ranks in [2, 3] {
            let all = Threads::run(n_ranks, |rank| run(name, rank, None));
            for (rank, (values, sums)) in all.into_iter().enumerate() {
                assert_eq!(values, expected, "{name}: rank {rank} of {n_ranks}");
                assert_eq!(sums.is_some(), rank == 0);
                let Some(sums) = sums else {
                    continue;
                };
                assert!(sums.keys().eq(expected_sums.keys()));
                for (key, expected) in &expected_sums {
                    assert_eq!(sums[key].rows(), expected.rows(), "{name} {key}");
                    let expected = expected.packed();
                    assert_eq!(sums[key].packed().len(), expected.len(), "{name} {key}");
                    let largest = expected.iter().fold(0.0f64, |most, v| most.max(v.abs()));
                    for (found, expected) in sums[key].packed().iter().zip(expected) {
                        let error = (found - expected).abs();
                        assert!(error <= TOLERANCE * largest, "{name} {key}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn features_are_kept_by_one_rank_and_taken_up_by_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = || Some(FeatureCache::new(folder.path(), "key"));
    let first = Threads::run(2, |rank| run("retrieval", rank, cache()).0);
    let n_kept = std::fs::read_dir(folder.path()).expect("listed").count();
    assert_eq!(n_kept, 2);
    let again = Threads::run(2, |rank| run("retrieval", rank, cache()).0);
    assert_eq!(first, again);
    assert_eq!(run("retrieval", &Alone, cache()).0, first[0]);
}
