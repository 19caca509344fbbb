//! Re-ranking by a model that compares images and texts apart and judges pairs together: a drawn EVE on the tiny arrow
//! files.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::batch::{Images, Texts};
use evaluate::datasets::captions::CaptionSet;
use evaluate::images::Transform;
use evaluate::metrics::reranking::{Reranked, Rest};
use evaluate::metrics::retrieval::Ties;
use evaluate::models::{Opened, Overrides, RouterWay};
use evaluate::predictions::retrieval::ScoreFile;
use evaluate::predictions::score_file::Scores;
use evaluate::tasks::retrieval::{Retrieval, shortlist_scores};
use evaluate::tasks::{FeatureCache, Outcome, Predictions, Runner, Task};
use evaluate::text::Tokenizer;
use merge::layouts::EveTask;
use merge::progress::Silent;

use crate::eve::{model_of, spec};

fn tokenizer() -> Tokenizer {
    let path = fixtures::path("text/vocab.txt");
    Tokenizer::open(path.to_str().expect("UTF-8")).expect("a tokenizer")
}

fn set() -> Arc<CaptionSet> {
    Arc::new(CaptionSet::open(&fixtures::path("arrow"), "coco", "train").expect("a split"))
}

fn model(task: EveTask, routing: RouterWay) -> Opened {
    let mut spec = spec(task);
    spec.sizes.vocabulary = tokenizer().vocabulary_size();
    let overrides = Overrides {
        routing: Some(routing),
        ..Overrides::default()
    };
    model_of(spec, &overrides)
}

fn run(
    opened: &Opened,
    batch_size: usize,
    rerank: Option<(usize, Rest)>,
    cache: Option<FeatureCache>,
) -> evaluate::Result<Outcome> {
    let (model, tokenizer) = (opened.model.as_ref(), tokenizer());
    let runner = Runner::new(
        model,
        &tokenizer,
        &Device::Cpu,
        DType::F32,
        batch_size,
        &Silent,
    );
    let runner = runner.expect("they belong together");
    let runner = match cache {
        Some(cache) => runner.with_cache(cache),
        None => runner,
    };
    let task = Retrieval::new(set(), Ties::default()).reranked(rerank);
    task.run(&runner)
}

fn reranked(outcome: &Outcome) -> &Reranked {
    match &outcome.predictions {
        Predictions::Retrieved(retrieved) => match &retrieved.scores {
            Scores::Reranked(_, reranked) => reranked,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn compare(found: &[f32], expected: &[f32], of: &str) {
    let [found, expected] =
        [found, expected].map(|of| of.iter().copied().map(f64::from).collect::<Vec<_>>());
    let differs = fixtures::first_difference(&found, &expected, 1e-5, 1e-6);
    assert_eq!(differs, None, "{of}");
}

/// All images and texts of the split.
fn everything(opened: &Opened) -> (Images, Texts) {
    let (set, input) = (set(), opened.model.input());
    let transform = Transform::new(&input.image);
    let mut values = vec![0.0; set.n_images() * transform.len()];
    for (image, values) in values.chunks_exact_mut(transform.len()).enumerate() {
        transform.apply_into(&set.picture(image).expect("a picture"), values);
    }
    let tokenizer = tokenizer();
    let texts = (0..set.n_images()).flat_map(|image| set.captions(image));
    // As the task reads captions.
    let texts = texts.map(|text| input.text.rule.apply(text));
    let texts = texts.map(|text| tokenizer.encode(&text, input.text.len).expect("tokens"));
    let texts: Vec<_> = texts.collect();
    let texts: Vec<_> = texts.iter().collect();
    let side = input.image.side;
    (
        Images::of_values(values, set.n_images(), side, &Device::Cpu, DType::F32).expect("images"),
        Texts::of_encoded(&texts, input.text.len, &Device::Cpu).expect("texts"),
    )
}

#[test]
fn the_best_are_scored_as_pairs_whatever_the_batches_and_however_routers_choose() {
    for routing in [RouterWay::Unlimited, RouterWay::Capacity] {
        let opened = model(EveTask::Retrieval, routing);
        let (images, texts) = everything(&opened);
        for (batch_size, k) in [(64, 3), (2, 3), (1, 1)] {
            if routing == RouterWay::Capacity && batch_size != 64 {
                // Features depend on the batch as well.
                continue;
            }
            let of = format!("{routing:?}, {batch_size}, {k}");
            let found = run(&opened, batch_size, Some((k, Rest::default())), None);
            let found = found.expect("measured");
            let found = reranked(&found);
            let fusion = opened.model.fusion().expect("fusion");
            let expected = shortlist_scores(fusion, &images, &texts, found.shortlist());
            let [of_images, of_texts] = expected.expect("scores");
            compare(found.of_images(), &of_images, &of);
            compare(found.of_texts(), &of_texts, &of);
        }
    }
}

#[test]
fn a_file_with_shortlists_is_judged_as_the_run_that_wrote_it() {
    let opened = model(EveTask::Retrieval, RouterWay::Unlimited);
    let folder = tempfile::tempdir().expect("a folder");
    let dual = run(&opened, 8, None, None).expect("measured");
    for rest in Rest::ALL {
        let outcome = run(&opened, 8, Some((2, rest)), None).expect("measured");
        assert_ne!(outcome.sample, dual.sample, "another order");
        let path = folder.path().join(format!("{rest}.safetensors"));
        outcome.predictions.write(&path).expect("written");
        let file = ScoreFile::open(&path).expect("a score file");
        assert_eq!(file.reranked(), Some(reranked(&outcome)));
        let captions =
            evaluate::metrics::retrieval::Captions::new(&file.image_ids, &file.text_image_ids);
        let captions = captions.expect("captions");
        let found = file.standings(&captions).expect("ranks");
        let sample = evaluate::metrics::retrieval::sample(&found, &captions, Ties::default());
        assert_eq!(sample, outcome.sample, "{rest}");
        let folds = file.folds(1, Ties::default()).expect_err("refused");
        assert!(folds.to_string().contains("--folds"), "{folds}");
    }
}

#[test]
fn scores_that_are_kept_are_not_computed_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = || Some(FeatureCache::new(folder.path(), "key"));
    let first = model(EveTask::Retrieval, RouterWay::Unlimited);
    let rerank = Some((2, Rest::default()));
    let found = run(&first, 8, rerank, cache()).expect("measured");
    // Another model with the same key: the kept numbers are found.
    let mut other = spec(EveTask::Retrieval);
    other.sizes.vocabulary = tokenizer().vocabulary_size();
    other.sizes.n_experts += 1;
    let other = model_of(other, &Overrides::default());
    let again = run(&other, 8, rerank, cache()).expect("measured");
    assert_eq!(reranked(&again), reranked(&found));
}

#[test]
fn what_cannot_be_ranked_again_is_refused() {
    let opened = model(EveTask::Retrieval, RouterWay::Unlimited);
    let n = set().n_images();
    let fault = run(&opened, 8, Some((n + 1, Rest::default())), None);
    let fault = fault.expect_err("too few images").to_string();
    assert!(fault.contains(&format!("between 1 and {n}")), "{fault}");
    let opened = model(EveTask::Vqa, RouterWay::Unlimited);
    let fault = run(&opened, 8, Some((1, Rest::default())), None);
    let fault = fault.expect_err("no head").to_string();
    assert!(
        fault.contains("matching head") || fault.contains("ranking head"),
        "{fault}"
    );
}
