//! The metrics of the published program on `fixtures/scores`.

use evaluate::metrics::accuracy::accuracy;
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::metrics::vqa::score_of_logits;
use merge::io::{OpenOptions, open};
use merge::{Checkpoint, decode_f32};
use ndarray::Array2;

use crate::fixture::{json, number, path};

/// The program's means are in f32.
const TOLERANCE: f64 = 1e-6;

fn inputs() -> Checkpoint {
    open(&path("scores/scores.safetensors"), &OpenOptions::default()).expect("the fixture")
}

fn floats(file: &Checkpoint, key: &str) -> Array2<f32> {
    let info = file.require(key).expect("the tensor").clone();
    let bytes = file.read_all(key).expect("readable");
    let mut values = vec![0.0; info.n_elements()];
    decode_f32(key, info.dtype, &bytes, &mut values).expect("floats");
    Array2::from_shape_vec((info.shape[0], info.shape[1]), values).expect("a matrix")
}

fn ids(file: &Checkpoint, key: &str) -> Vec<i64> {
    let bytes = file.read_all(key).expect("readable");
    let (ids, _) = bytes.as_chunks::<8>();
    ids.iter().map(|&id| i64::from_le_bytes(id)).collect()
}

#[test]
fn recall_from_features_is_as_published() {
    let file = inputs();
    let images = floats(&file, "recall.image_feats");
    let texts = floats(&file, "recall.text_feats");
    let captions = Captions::new(
        &ids(&file, "recall.image_id"),
        &ids(&file, "recall.text_image_id"),
    )
    .expect("ids match");
    let found = standings(&images.dot(&texts.t()).view(), &captions).expect("numbers");
    let judged = sample(&found, &captions, Ties::default());
    let expected = &json("scores/scores.json")["recall"];
    for (quantity, name) in judged
        .quantities
        .iter()
        .zip(["tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10"])
    {
        assert_eq!(quantity.name, name);
        let got = judged.value(quantity).expect("queries");
        assert!(
            (got - number(&expected[name])).abs() < TOLERANCE,
            "{name}: {got}"
        );
    }
}

#[test]
fn the_vqa_score_and_the_accuracy_are_as_published() {
    let (file, expected) = (inputs(), json("scores/scores.json"));
    let [logits, targets] = ["vqa.logits", "vqa.targets"].map(|key| floats(&file, key));
    let score = score_of_logits(logits.view(), targets.view()).expect("same shape");
    let score = score.expect("questions");
    assert!((score - number(&expected["vqa_score"])).abs() < TOLERANCE);
    let logits = floats(&file, "acc.logits");
    let right = accuracy(logits.view(), &ids(&file, "acc.target")).expect("targets are classes");
    assert!((right.expect("examples") - number(&expected["accuracy"])).abs() < TOLERANCE);
}
