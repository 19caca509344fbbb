//! FLM's captions and rankings, case by case of `fixtures/flm/manifest.json`.

use candle_core::{DType, Device};
use evaluate::batch::{Images, Texts};
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::models::{Captioner, Model};
use evaluate::nn::Pass;
use evaluate::predictions::captions::official_id;
use evaluate::tasks::retrieval::pair_scores;
use evaluate::text::{CAPTION_BORDERS, Tokenizer};
use evaluate::writing::{Ends, Writing, write};
use fixtures::{Case, first_difference, integers, list, number, text};
use ndarray::ArrayView2;

use crate::flm_model::open;

fixtures::golden_tests! {
    package: "evaluate", set: "flm",
    captions_are_written_as_published: "caption_decode_greedy" => caption_decode_greedy,
    pairs_are_ranked_as_published: "retrieval_scores" => retrieval_scores,
}

/// The tokenizer of the set's tiny models, for captions.
fn tokenizer(case: &Case) -> Tokenizer {
    let path = case.set().path("tok/toy");
    let opened = Tokenizer::open(path.to_str().expect("UTF-8")).expect("a tokenizer");
    opened
        .with_added(&CAPTION_BORDERS)
        .expect("tokens are added")
}

fn caption_decode_greedy(case: &Case) {
    let [tensors, published] = [0, 1].map(|nth| text(&case["expected"][nth]));
    let (tensors, published) = (case.set().tensors(tensors), case.set().json(published));
    let model = open(case, false, DType::F32).model;
    let inputs = case.set().tensors(text(&case["input"][1]));
    let images = Images::new(inputs["images"].tensor());
    let tokenizer = tokenizer(case);
    let ends = Ends::of(&tokenizer).expect("ends");
    assert_eq!(published["bos"], ends.first);
    let mut stops = integers(&published["stop_ids"]);
    stops.sort_unstable();
    let mut own: Vec<i64> = ends.stops.iter().map(|&stop| i64::from(stop)).collect();
    own.sort_unstable();
    assert_eq!(own, stops);
    let writing = Writing {
        max_tokens: published["max_steps"].as_u64().expect("steps") as usize,
        ..Writing::default()
    };
    let atol = case.tolerance("", "logprob_atol");
    let captions = list(&published["captions"]);
    // Together, and in batches of another size: the cache of one image is nobody else's.
    for batch in [captions.len(), 5, 1] {
        for (first, expected) in (0..).step_by(batch).zip(captions.chunks(batch)) {
            let images = images.narrow(first, expected.len()).expect("images");
            let written = write(&model, &images, &ends, &writing, &Pass::new()).expect("written");
            for (written, expected) in written.iter().zip(expected) {
                let ids: Vec<i64> = written.ids.iter().map(|&id| i64::from(id)).collect();
                assert_eq!(ids, integers(&expected["ids"]));
                let stop = written.stop.map(i64::from);
                assert_eq!(stop, expected["stopped_by"].as_i64());
                let bound = atol * (ids.len() + 1) as f64;
                for (found, name) in [
                    (written.log_prob, "sum_logprob"),
                    (written.log_prob_with_stop, "sum_logprob_with_stop"),
                ] {
                    let off = (found - number(&expected[name])).abs();
                    assert!(off <= bound, "{name}: off by {off}");
                }
                assert_eq!(tokenizer.decode(&written.ids), text(&expected["caption"]));
                let id = official_id(text(&expected["image"]));
                assert_eq!(id, expected["image_id"].as_i64());
            }
        }
    }
    // The first step by itself.
    let mut seen = model.see(&images, &Pass::new()).expect("seen");
    let first = vec![ends.first; captions.len()];
    let first = candle_core::Tensor::new(first, &Device::Cpu).expect("ids");
    let logits = model.next(&mut seen, &first).expect("logits");
    let logits = crate::golden::models::values(&logits);
    let (rtol, atol) = (
        case.tolerance("logits", "rtol"),
        case.tolerance("logits", "atol"),
    );
    let expected = tensors["step0_logits"].values();
    assert_eq!(first_difference(&logits, &expected, rtol, atol), None);
}

fn retrieval_scores(case: &Case) {
    let model = open(case, false, DType::F32).model;
    let inputs = case.set().tensors(text(&case["input"][1]));
    let images = Images::new(inputs["images"].tensor());
    let ids = inputs["text_ids"]
        .tensor()
        .to_dtype(DType::U32)
        .expect("ids");
    let kept = inputs["text_masks"]
        .tensor()
        .to_dtype(DType::U8)
        .expect("masks");
    let texts = Texts::of_tensors(ids, kept).expect("texts");
    let fusion = model.fusion().expect("reads both");
    let found = pair_scores(fusion, &images, &texts).expect("scores");
    // Texts are read once for all images there; here image and texts are one pass.
    let first = images.narrow(0, 1).expect("an image");
    let together = fusion.rank(&[&texts], &first, &[Pass::new().with_padding()]);
    let together = crate::golden::models::values(&together.expect("scores"));
    for (found, together) in found.iter().zip(&together) {
        assert!(
            (f64::from(*found) - together).abs() < 1e-5,
            "{found}, {together}"
        );
    }
    let published = case.set().tensors(text(&case["expected"][0]));
    let values: Vec<f64> = found.iter().map(|&score| f64::from(score)).collect();
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let expected = published["scores"].values();
    assert_eq!(first_difference(&values, &expected, rtol, atol), None);
    let metrics = case.set().json(text(&case["expected"][1]));
    let [of_images, of_texts] =
        ["image_index", "text_image_index"].map(|name| published[name].integers());
    let captions = Captions::new(&of_images, &of_texts).expect("captions");
    let scores = ArrayView2::from_shape((of_images.len(), of_texts.len()), &found);
    let found = standings(&scores.expect("a matrix"), &captions).expect("ranks");
    let sample = sample(&found, &captions, Ties::default());
    for (name, expected) in list(&metrics["order"]).iter().zip(list(&metrics["values"])) {
        let (direction, k) = text(name).split_once("@").expect("a recall");
        let own = format!("{}_r{k}", direction.to_lowercase());
        let quantity = sample
            .quantities
            .iter()
            .find(|quantity| quantity.name == own);
        let found = sample.value(quantity.expect("a recall")).expect("a number");
        let off = (found - number(expected)).abs();
        assert!(off <= case.tolerance("", "metrics"), "{own}: off by {off}");
    }
}
