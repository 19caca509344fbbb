//! Every objective on the tiny models: which variables it reaches, and what it refuses. Its numbers are
//! compared with the published program's in `golden/losses.rs`.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};
use evaluate::nn::Tape;
use train::batch::{Batch, Images, MaskedPatches, MaskedWords, Texts};
use train::collective::Alone;
use train::objectives::{self, Randomness, Shared, Step};

use crate::fixture::{
    gradients_by_name, image_tokenizer, target_images, tensors, trainable, values,
};

/// The fixture's name of a loss, and ours.
pub const LOSSES: [(&str, &str); 8] = [
    ("vqa", "vqa"),
    ("nlvr2", "nlvr2"),
    ("irtr", "retrieval"),
    ("ifm", "itc"),
    ("itm", "itm"),
    ("mlm", "mlm"),
    ("text_only_mlm", "text_mlm"),
    ("img_cls", "image_classification"),
];

/// The batch of a loss.
fn batch(loss: &str) -> Batch {
    let inputs = tensors("forward/inputs.safetensors");
    let get = |name: &str| inputs[name].clone();
    let ids = |name: &str| get(name).to_dtype(DType::U32).expect("ids");
    let whole = |name: &str| values(&get(name)).into_iter().map(|v| v as u32).collect();
    let prefix = if matches!(loss, "irtr" | "ifm") {
        "irtr_"
    } else {
        ""
    };
    let text = Texts::of_tensors(
        ids(&format!("{prefix}text_ids")),
        ids(&format!("{prefix}text_masks")),
    );
    let image = Images::new(get(&format!("{prefix}image")));
    let labels = values(&get("text_labels_mlm"));
    let masked = labels
        .iter()
        .enumerate()
        .filter(|(_, label)| **label >= 0.0);
    let (places, labels) = masked.map(|(at, label)| (at as u32, *label as u32)).unzip();
    Batch {
        first: 0,
        n: image.pixels.dim(0).expect("a batch"),
        image: Some(image),
        second_image: Some(Images::new(get("image_1"))),
        text: Some(text.expect("words")),
        masked_words: Some(MaskedWords {
            ids: ids("text_ids_mlm"),
            places,
            labels,
        }),
        masked_patches: (loss == "mim").then(|| MaskedPatches {
            masked: get("bool_masked_pos").to_dtype(DType::U8).expect("a mask"),
            target_image: target_images(2),
        }),
        answers: Some(get("vqa_targets")),
        classes: Some(match loss {
            "nlvr2" => whole("nlvr2_labels"),
            _ => whole("cls_labels"),
        }),
        ..Batch::default()
    }
}

/// How gradients are computed.
#[derive(Clone, Copy, Debug)]
pub enum How {
    OneGraph,
    Graphs,
    Tape,
    Checkpoints,
}

/// The loss, and gradients by name of variable.
fn run(architecture: &str, loss: &str, ours: &str, how: How) -> (f64, BTreeMap<String, Vec<f64>>) {
    run_with(architecture, loss, ours, how, None, |_| true)
}

/// The same with draws, and with those variables alone whose name `is_trained`.
pub fn run_with(
    architecture: &str,
    loss: &str,
    ours: &str,
    how: How,
    randomness: Option<Randomness>,
    is_trained: impl Fn(&str) -> bool,
) -> (f64, BTreeMap<String, Vec<f64>>) {
    let (model, weights) = trainable(architecture);
    let tape = match how {
        How::OneGraph => None,
        How::Graphs => Some(Tape::new().of_graphs()),
        How::Tape => Some(Tape::new()),
        How::Checkpoints => Some(Tape::checkpointing()),
    };
    let batch = batch(loss);
    let step = Step {
        model: &model,
        batch: &batch,
        collective: &Alone,
        randomness,
        tape: tape.as_ref(),
        shared: &Shared::default(),
        drops: None,
        whole: None,
        routing: None,
        side_losses: None,
        experts: None,
    };
    let objective = objectives::by_name(ours, Some(&image_tokenizer())).expect("an objective");
    let loss = objective.loss(&step).expect("a loss");
    let mut variables = weights.variables();
    variables.retain(|name, _| is_trained(name));
    let gradients = gradients_by_name(&loss.value, tape, variables);
    (loss.reported, gradients)
}

#[test]
fn every_variable_gets_a_gradient_from_some_objective() {
    for architecture in ["ufo", "all_moe"] {
        let mut missed = trainable(architecture).1.variables();
        for (theirs, ours) in LOSSES.into_iter().chain([("mim", "mim")]) {
            let (_, reached) = run(architecture, theirs, ours, How::OneGraph);
            missed.retain(|name, _| !reached.contains_key(name));
        }
        let missed: Vec<&String> = missed.keys().collect();
        assert!(
            missed.is_empty(),
            "{architecture}: no gradient reaches {missed:?}"
        );
    }
}

#[test]
fn a_batch_of_one_has_nothing_to_be_matched_with() {
    let (model, _) = trainable("ufo");
    let whole = batch("itm");
    let one = Tensor::new(&[0u32], &candle_core::Device::Cpu).expect("an index");
    let batch = Batch {
        n: 1,
        image: whole.image.map(|image| image.select(&one).expect("one")),
        text: whole.text.map(|text| text.select(&one).expect("one")),
        ..Batch::default()
    };
    let step = Step {
        model: &model,
        batch: &batch,
        collective: &Alone,
        randomness: None,
        tape: None,
        shared: &Shared::default(),
        drops: None,
        whole: None,
        routing: None,
        side_losses: None,
        experts: None,
    };
    let error = objectives::by_name("itm", None).expect("known").loss(&step);
    assert!(matches!(error, Err(train::Error::NoNegative)));
}
