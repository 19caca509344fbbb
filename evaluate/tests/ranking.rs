//! Retrieval by a ranking head: a model that scores pairs by a rule, on the tiny arrow files.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use evaluate::batch::{Pair, Texts};
use evaluate::datasets::captions::CaptionSet;
use evaluate::images::ImageInput;
use evaluate::metrics::retrieval::Ties;
use evaluate::models::{Fused, FusionEncoder, Head, LookedAt, Model, ModelInput, ReadText};
use evaluate::nn::Pass;
use evaluate::predictions::score_file::Scores;
use evaluate::tasks::retrieval::Retrieval;
use evaluate::tasks::{Candidates, Outcome, Predictions, Runner, Task};
use evaluate::text::{Padding, TextInput, TextRule, Tokenizer};
use evaluate::{Error, Result};
use merge::progress::Silent;

/// Scores a pair by the mean of its pixels and the sum of its ids, and by nothing else of the batch.
struct Rule {
    input: ModelInput,
    /// Texts that were read by themselves, where the rule reads them so.
    n_read: Option<AtomicUsize>,
}

impl Model for Rule {
    fn family(&self) -> &'static str {
        "rule"
    }

    fn input(&self) -> &ModelInput {
        &self.input
    }

    fn score(&self, _: Head, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn n_classes(&self, head: Head) -> Result<usize> {
        match head {
            Head::Ranking => Ok(1),
            _ => Err(self.cannot("anything else")),
        }
    }

    fn fusion(&self) -> Result<&dyn FusionEncoder> {
        Ok(self)
    }
}

impl FusionEncoder for Rule {
    fn fuse(&self, pair: &Pair<'_>, _: &Pass<'_>) -> Result<Fused> {
        let score = joined(&sums(pair.texts)?, &pair.images.pixels)?;
        Ok(Fused {
            image: score.unsqueeze(1)?,
            text: score.unsqueeze(1)?,
        })
    }

    fn read_text(&self, texts: &Texts) -> Result<Vec<ReadText>> {
        let n = texts.ids.dim(0)?;
        let Some(n_read) = &self.n_read else {
            return Ok(vec![ReadText::default(); n]);
        };
        n_read.fetch_add(n, Ordering::Relaxed);
        let sums = sums(texts)?;
        let read = |text| {
            let states = vec![sums.narrow(0, text, 1)?];
            Ok(ReadText { states })
        };
        (0..n).map(read).collect()
    }

    fn rank_read(&self, texts: &Texts, read: &[&ReadText], image: &LookedAt) -> Result<Tensor> {
        if self.n_read.is_none() {
            return self.rank(&[texts], &image.images, &[Pass::new()]);
        }
        let sums: Vec<&Tensor> = read.iter().flat_map(|text| &text.states).collect();
        joined(&Tensor::cat(&sums, 0)?, &image.images.pixels)
    }

    fn pooled(&self, fused: &Fused) -> Result<Tensor> {
        Ok(fused.text.squeeze(1)?)
    }
}

/// The sum of the ids of each text, `(b, 1)`.
fn sums(texts: &Texts) -> Result<Tensor> {
    let ids = texts.ids.to_dtype(DType::F32)?;
    let kept = texts.kept.to_dtype(DType::F32)?;
    Ok((ids * kept)?.sum_keepdim(1)?)
}

fn joined(sums: &Tensor, pixels: &Tensor) -> Result<Tensor> {
    let images = pixels.flatten_from(1)?.mean_keepdim(1)?;
    Ok(sums.broadcast_mul(&(images * 10.0)?)?.sin()?)
}

fn set() -> Arc<CaptionSet> {
    Arc::new(CaptionSet::open(&fixtures::path("arrow"), "coco", "train").expect("a split"))
}

fn run(batch_size: usize, candidates: Option<Candidates>) -> Outcome {
    run_rule(batch_size, candidates, false).0
}

/// The measured numbers, and how many texts were read by themselves.
fn run_rule(
    batch_size: usize,
    candidates: Option<Candidates>,
    reads_texts: bool,
) -> (Outcome, usize) {
    let tokenizer = fixtures::path("text/vocab.txt");
    let tokenizer = Tokenizer::open(tokenizer.to_str().expect("UTF-8")).expect("a tokenizer");
    let input = ModelInput {
        image: ImageInput::square(8),
        text: TextInput {
            len: 12,
            padding: Padding::Longest,
            vocabulary: tokenizer.vocabulary_size(),
            rule: TextRule::Verbatim,
            padding_id: None,
            ends_at_largest: false,
        },
    };
    let n_read = reads_texts.then(AtomicUsize::default);
    let model = Rule { input, n_read };
    let runner = Runner::new(
        &model,
        &tokenizer,
        &Device::Cpu,
        DType::F32,
        batch_size,
        &Silent,
    );
    let task = Retrieval::new(set(), Ties::default()).among(candidates);
    let outcome = task.run(&runner.expect("they belong together"));
    let n_read = model.n_read.map_or(0, AtomicUsize::into_inner);
    (outcome.expect("measured"), n_read)
}

fn pairs(outcome: &Outcome) -> &[f32] {
    match &outcome.predictions {
        Predictions::Retrieved(retrieved) => match &retrieved.scores {
            Scores::Pairs(scores) => scores,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_image_is_scored_with_every_text_whatever_the_batches() {
    let set = set();
    let all = run(64, None);
    assert_eq!(pairs(&all).len(), set.n_images() * set.n_captions());
    assert!(set.n_captions() > 3);
    for batch_size in [1, 3] {
        let other = run(batch_size, None);
        assert_eq!(pairs(&other), pairs(&all), "{batch_size}");
        assert_eq!(other.sample, all.sample, "{batch_size}");
    }
}

#[test]
fn candidates_are_scored_as_among_all_and_the_others_come_behind_them() {
    let set = set();
    let all = run(64, None);
    let (n_images, n_texts) = (set.n_images(), set.n_captions());
    // Another model that likes late texts.
    let scores: Vec<f32> = (0..n_images * n_texts).map(|pair| pair as f32).collect();
    let few = run(2, Some(Candidates::new(1, scores, n_texts)));
    let (few, all) = (pairs(&few), pairs(&all));
    let asked: Vec<usize> = (0..all.len())
        .filter(|&pair| few[pair] == all[pair])
        .collect();
    let last_image = (n_images - 1) * n_texts;
    let is_candidate = |pair: usize| pair % n_texts == n_texts - 1 || pair >= last_image;
    let expected: Vec<usize> = (0..all.len()).filter(|&pair| is_candidate(pair)).collect();
    assert_eq!(asked, expected);
    let least = asked
        .iter()
        .map(|&pair| few[pair])
        .fold(f32::INFINITY, f32::min);
    assert!((0..all.len()).all(|pair| is_candidate(pair) || few[pair] < least));
}

#[test]
fn a_text_is_read_once_for_all_images() {
    let n_texts = set().n_captions();
    let scores: Vec<f32> = (0..set().n_images() * n_texts)
        .map(|pair| pair as f32)
        .collect();
    let of_image = |n| Candidates::new(n, scores.clone(), n_texts);
    for candidates in [None, Some(of_image(1)), Some(of_image(2))] {
        let plain = run(3, candidates.clone());
        for batch_size in [1, 3] {
            let (outcome, n_read) = run_rule(batch_size, candidates.clone(), true);
            assert_eq!(pairs(&outcome), pairs(&plain));
            assert_eq!(n_read, n_texts);
        }
    }
}

#[test]
fn scores_of_another_split_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("scores.safetensors");
    let outcome = run(8, None);
    assert!(outcome.predictions.write(&path).expect("written"));
    Candidates::open(2, &path, &set()).expect("of this split");
    let other = CaptionSet::open(&fixtures::path("arrow"), "coco", "train").expect("a split");
    let error = Candidates::open(2, &path, &other.first(1)).expect_err("another split");
    assert!(matches!(error, Error::LengthsDiffer { .. }), "{error}");
}
