//! Two ranks that share a batch.

use std::collections::BTreeMap;

use candle_core::Tensor;
use evaluate::nn::{Buffers, Gradients};
use fixtures::{Case, integers, list, number};
use train::batch::Batch;
use train::collective::Collective;
use train::losses;
use train::objectives::{
    BALANCE_WEIGHT, Negatives, Objective, Opening, PairSettings, in_order, spec,
};
use train::run::{Backward, Told};

use super::training::unlimited;
use super::{Tensors, check_loss, check_norms, given, open};
use crate::fixture::{l2, plain};
use crate::threads::Threads;

fixtures::golden_tests! {
    package: "train", set: "eve",
    golden_eve_two_ranks_learn_what_the_published_ones_learn: "two_ranks" => two_ranks,
}

/// Objectives of retrieval as the published program has them.
fn objectives() -> Vec<(Box<dyn Objective>, f64)> {
    let opening = Opening {
        pairs: Some(PairSettings {
            as_published: true,
            ..PairSettings::EVE
        }),
        ..Opening::default()
    };
    let open = |name| (spec(name).and_then(|spec| (spec.open)(&opening)), 1.0);
    let opened = ["itc", "itm"].map(open);
    let mut objectives: Vec<_> = opened
        .into_iter()
        .map(|(objective, weight)| (objective.expect("an objective"), weight))
        .collect();
    in_order(&mut objectives);
    objectives
}

/// The rows of a batch that a rank has, with its negatives.
fn own(batch: &Batch, rows: &[u32], negatives: &serde_json::Value) -> Batch {
    let numbers = |of: &serde_json::Value| -> Vec<u32> {
        integers(of).into_iter().map(|row| row as u32).collect()
    };
    let (image, text) = (batch.image.as_ref(), batch.text.as_ref());
    let at = Tensor::new(rows, &candle_core::Device::Cpu).expect("rows");
    let images = batch.image_numbers.as_ref().expect("images");
    Batch {
        first: rows[0] as usize,
        n: rows.len(),
        image: image.map(|image| image.select(&at).expect("images")),
        text: text.map(|text| text.select(&at).expect("texts")),
        image_numbers: Some(rows.iter().map(|&row| images[row as usize]).collect()),
        negatives: Some(Negatives {
            images: numbers(&negatives["image_for_text"]),
            texts: numbers(&negatives["text_for_image"]),
        }),
        ..Batch::default()
    }
}

fn two_ranks(case: &Case) {
    let told = case.json("expected");
    let rows: Vec<Vec<u32>> = (list(&told["rows"]).iter())
        .map(|rows| integers(rows).into_iter().map(|row| row as u32).collect())
        .collect();
    assert_eq!(Some(rows.len()), case.count("world_size"));
    let of_ranks = Threads::run(rows.len(), |rank| {
        let trained = open(case, &case.tensors("weights"));
        let given = given(case, &trained, Tensors::new());
        let spec = losses::by_name("eve", "retrieval.itc").expect("a loss");
        let batch = spec.batch(&given).expect("a batch");
        let batch = own(&batch, &rows[rank.rank()], &told["negatives"][rank.rank()]);
        let (objectives, buffers) = (objectives(), Buffers::default());
        let backward = Backward {
            collective: rank,
            routing: Some(&unlimited),
            balance: BALANCE_WEIGHT,
            ..plain(trained.model.as_ref(), &objectives, &buffers)
        };
        let variables = trained.weights.variables();
        let (mut told, mut gradients) = (Told::default(), Gradients::of(variables.values()));
        let learned = backward.learn(&batch, None, &mut told, &mut gradients);
        learned.expect("gradients");
        let mut norms = BTreeMap::new();
        for (name, variable) in &variables {
            let gradient = gradients.host(variable).expect("in memory");
            rank.sum(gradient).expect("a sum");
            let mean = gradient.iter().map(|&g| f64::from(g) / rank.size() as f64);
            norms.insert(name.clone(), l2(mean));
        }
        (told.values, norms)
    });
    let n = of_ranks.len() as f64;
    let contrast: f64 = of_ranks
        .iter()
        .map(|(told, _)| told["loss/itc"].0 / n)
        .sum();
    for ((told, norms), expected) in of_ranks.iter().zip(list(&told["ranks"])) {
        check_loss(case, "itc", contrast, number(&expected["itc"]));
        check_loss(case, "itm", told["loss/itm"].0, number(&expected["itm"]));
        let aux = BALANCE_WEIGHT * told["loss/balance"].0;
        check_loss(case, "aux", aux, number(&expected["aux"]));
        check_norms(case, case.id(), norms, &self::norms(case));
    }
}

fn norms(case: &Case) -> serde_json::Value {
    case.json("expected")["mean_grad_norm_total"].clone()
}
