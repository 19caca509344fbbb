//! EVE's re-ranking against numbers that the published program printed.

use std::collections::BTreeMap;

use candle_core::Tensor;
use evaluate::Sample;
use evaluate::batch::{Images, Texts};
use evaluate::metrics::reranking::{Reranked, Rest, Shortlist};
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::models::{Branch, FusionEncoder, RouterWay, image_features, text_features};
use evaluate::nn::Pass;
use evaluate::tasks::retrieval::{Features, shortlist_scores};
use fixtures::{Case, Raw, number};
use ndarray::ArrayView2;
use serde_json::Value;

use crate::golden::models::values;
use crate::golden_eve::{Way, open};

fixtures::golden_tests! {
    package: "evaluate", set: "eve",
    golden_eve_shortlists_of_a_matrix_are_ranked_again_as_published: "rerank_matrix" => matrix,
    golden_eve_shortlists_of_a_model_are_ranked_again_as_published: "rerank_model" => model,
}

/// The published program's score of a pair that is not on a list.
const REST: f64 = -100.0;

fn floats(raw: &Raw) -> Vec<f32> {
    raw.values().into_iter().map(|value| value as f32).collect()
}

/// The scores of lists as the matrix that the published program sorts, `queries × items`.
fn whole(list: &[u32], scores: &[f32], [n_queries, n_items]: [usize; 2]) -> Vec<f64> {
    let mut matrix = vec![REST; n_queries * n_items];
    let k = list.len() / n_queries;
    for (at, (&item, &score)) in list.iter().zip(scores).enumerate() {
        matrix[at / k * n_items + item as usize] = f64::from(score);
    }
    matrix
}

/// Recalls in percent by their published names.
fn recalls(sample: &Sample) -> BTreeMap<String, f64> {
    let value = |name: &str| {
        let quantity = sample.quantities.iter().find(|q| q.name == name);
        100.0 * sample.value(quantity.expect("reported")).expect("queries")
    };
    let mut found = BTreeMap::new();
    for (ours, theirs) in [("tr", "txt"), ("ir", "img")] {
        let of_ranks = [1, 5, 10].map(|k| (k, value(&format!("{ours}_r{k}"))));
        found.extend(of_ranks.map(|(k, value)| (format!("{theirs}_r{k}"), value)));
        let mean = of_ranks.iter().map(|(_, value)| value / 3.0).sum();
        found.insert(format!("{theirs}_r_mean"), mean);
    }
    let mean = f64::midpoint(found["txt_r_mean"], found["img_r_mean"]);
    found.insert("r_mean".to_owned(), mean);
    found
}

fn same(found: &BTreeMap<String, f64>, expected: &Value, of: &str) {
    let expected = expected.as_object().expect("numbers");
    assert!(!expected.is_empty(), "{of}");
    for (name, value) in expected {
        let (found, expected) = (found[name], number(value));
        assert!(
            (found - expected).abs() < 1e-9,
            "{of}: {name}: {found} and {expected}"
        );
    }
}

/// Recalls of a matrix of similarities and of what its best are ranked by, against those of the published program.
fn judge(similarities: &[f32], reranked: &Reranked, per_image: usize, expected: &Value) {
    let n_texts = reranked.of_texts().len() / reranked.shortlist().k();
    let n_images = n_texts / per_image;
    let matrix = ArrayView2::from_shape((n_images, n_texts), similarities).expect("a matrix");
    let ids: Vec<i64> = (0..n_images as i64).collect();
    let of_texts: Vec<i64> = (0..n_texts).map(|text| (text / per_image) as i64).collect();
    let captions = Captions::new(&ids, &of_texts).expect("captions");
    let dual = standings(&matrix, &captions).expect("ranks");
    same(
        &recalls(&sample(&dual, &captions, Ties::default())),
        &expected["dual"],
        "dual",
    );
    let rule = |rest: Rest, ties| {
        let list = reranked.shortlist().clone();
        let (images, texts) = (reranked.of_images().to_vec(), reranked.of_texts().to_vec());
        let reranked = Reranked::new(list, images, texts, rest).expect("scores");
        recalls(&sample(
            &reranked.standings(&dual, &captions),
            &captions,
            ties,
        ))
    };
    let bounds = &expected["rerank_bounds"];
    same(&rule(Rest::Tied, Ties::Optimistic), &bounds["best"], "best");
    same(
        &rule(Rest::Tied, Ties::Pessimistic),
        &bounds["worst"],
        "worst",
    );
    let usual = rule(Rest::Similarity, Ties::default());
    for (name, best) in bounds["best"].as_object().expect("numbers") {
        let (worst, best) = (number(&bounds["worst"][name]), number(best));
        let found = usual[name];
        assert!(
            worst - 1e-9 <= found && found <= best + 1e-9,
            "{name}: {found}"
        );
        if (best - worst).abs() < 1e-9 {
            let expected = number(&expected["rerank"][name]);
            assert!((found - expected).abs() < 1e-9, "{name}");
        }
    }
}

fn matrix(case: &Case) {
    let tensors = case.tensors_of("inputs", case.text("key_prefix").trim_end_matches('.'));
    let expected = &case.json("expected")[case.text("key")];
    let k = case.count("k_test").expect("a number");
    let [similarities, itm] = ["sims", "itm"].map(|name| floats(&tensors[name]));
    let shape = &tensors["sims"].shape;
    let (n_images, n_texts) = (shape[0], shape[1]);
    let view = ArrayView2::from_shape((n_images, n_texts), &similarities).expect("a matrix");
    let list = Shortlist::new(k, &view).expect("a shortlist");
    let pair = |image: usize, text: usize| itm[image * n_texts + text];
    let of_images = list.of_images().iter().enumerate();
    let of_images: Vec<f32> = of_images
        .map(|(at, &text)| pair(at / k, text as usize))
        .collect();
    let of_texts = list.of_texts().iter().enumerate();
    let of_texts: Vec<f32> = of_texts
        .map(|(at, &image)| pair(image as usize, at / k))
        .collect();
    for (list, scores, shape, name) in [
        (
            list.of_images(),
            &of_images,
            [n_images, n_texts],
            "score_i2t",
        ),
        (list.of_texts(), &of_texts, [n_texts, n_images], "score_t2i"),
    ] {
        assert_eq!(whole(list, scores, shape), tensors[name].values(), "{name}");
    }
    let reranked = Reranked::new(list, of_images, of_texts, Rest::default()).expect("scores");
    let per_image = number(&expected["texts_per_image"]) as usize;
    judge(&similarities, &reranked, per_image, expected);
}

/// Features of a model whose batches are those of the published evaluation.
fn features(
    model: &dyn FusionEncoder,
    images: &Images,
    texts: &Texts,
    sizes: [usize; 2],
) -> Features {
    let model: &dyn evaluate::models::Model = model;
    let in_batches = |n: usize, size: usize, of: &dyn Fn(usize, usize) -> Tensor| -> Vec<f32> {
        let starts = (0..n).step_by(size);
        let values = starts.flat_map(|from| values(&of(from, size.min(n - from))));
        values.map(|value| value as f32).collect()
    };
    let (n_images, n_texts) = (images.pixels.dims()[0], texts.ids.dims()[0]);
    let of_images = in_batches(n_images, sizes[0], &|from, n| {
        let images = images.narrow(from, n).expect("images");
        image_features(model, &images, Branch::Apart, &Pass::new()).expect("features")
    });
    let of_texts = in_batches(n_texts, sizes[1], &|from, n| {
        let rows: Vec<u32> = (from as u32..(from + n) as u32).collect();
        let rows = Tensor::new(rows.as_slice(), texts.ids.device()).expect("rows");
        let texts = texts.select(&rows).expect("texts");
        text_features(model, &texts, Branch::Apart, &Pass::new()).expect("features")
    });
    Features {
        width: of_images.len() / n_images,
        images: of_images,
        texts: of_texts,
    }
}

fn model(case: &Case) {
    let (_, way) = case.id().rsplit_once('/').expect("a way");
    let routing = match (case.param("capacity"), case.param("noise")) {
        (Some("upstream"), Some("zero")) => RouterWay::Capacity,
        (Some("unlimited"), Some("zero")) => RouterWay::Unlimited,
        other => panic!("{other:?}"),
    };
    let way_of = Way {
        routing: Some(routing),
        as_published: true,
        ..Way::default()
    };
    let opened = open(case.set(), &case.tensors("weights"), way_of);
    let fusion = opened.model.fusion().expect("a fusion encoder");
    let tensors = case.tensors("inputs");
    let texts = Texts::of_tensors(tensors["ids"].tensor(), tensors["atts"].tensor());
    let (texts, images) = (
        texts.expect("texts"),
        Images::new(tensors["images"].tensor()),
    );
    let size = |name: &str| case.count(name).expect("a size");
    let features = features(
        fusion,
        &images,
        &texts,
        [size("image_batch"), size("text_batch")],
    );
    let expected = |name: &str| &tensors[&format!("{way}.{name}")];
    let (n_images, n_texts) = (images.pixels.dims()[0], texts.ids.dims()[0]);
    let similarities = features.similarities();
    let mut found = vec![0.0_f32; n_images * n_texts];
    evaluate::metrics::retrieval::ScoreMatrix::read_rows(&similarities, 0, &mut found)
        .expect("scores");
    let tolerance = case.set().config()["tolerances"]["forward"].clone();
    let [rtol, atol] = ["rtol", "atol"].map(|name| number(&tolerance[name]));
    let compare = |found: &[f64], name: &str| {
        let differs = fixtures::first_difference(found, &expected(name).values(), rtol, atol);
        assert_eq!(differs, None, "{name}");
    };
    let wide: Vec<f64> = found.iter().copied().map(f64::from).collect();
    compare(&wide, "sims");
    let list = Shortlist::new(size("k_test"), &similarities).expect("a shortlist");
    let scores = shortlist_scores(fusion, &images, &texts, &list).expect("scores");
    let [of_images, of_texts] = scores;
    compare(
        &whole(list.of_images(), &of_images, [n_images, n_texts]),
        "rerank_i2t",
    );
    compare(
        &whole(list.of_texts(), &of_texts, [n_texts, n_images]),
        "rerank_t2i",
    );
    let reranked = Reranked::new(list, of_images, of_texts, Rest::default()).expect("scores");
    let metrics = case.json("expected_metrics");
    let per_image = number(&metrics["texts_per_image"]) as usize;
    judge(&found, &reranked, per_image, &metrics["results"][way]);
}
