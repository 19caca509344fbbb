//! Losses of features, on one and two ranks, with the gradients of every row.

use candle_core::Tensor;
use fixtures::{Case, Raw, number};
use serde_json::Value;
use train::collective::{Alone, Collective};
use train::objectives::{Compared, Comparison, Features, Mixed, compare};

use crate::threads::Threads;

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    losses_of_features_are_those_of_the_published_modules: "feature_loss" => feature_loss,
}

/// Rows `from..from + n` of a tensor.
fn rows(raw: &Raw, from: usize, n: usize) -> Tensor {
    let tensor = raw.tensor().narrow(0, from, n);
    tensor.and_then(|t| t.contiguous()).expect("rows")
}

/// The numbers of a rank.
fn compared(case: &Case, collective: &dyn Collective) -> Compared {
    let inputs = case.tensors("input");
    let n = case.count("n").expect("a number") / collective.size();
    let first = collective.rank() * n;
    let (images, texts) = (
        rows(&inputs["image"], first, n),
        rows(&inputs["text"], first, n),
    );
    let params = &case["params"];
    let ignored = params["ignore_mask"].as_array().map(|mask| {
        let own = mask[first..first + n].iter();
        own.map(|flag| number(flag) != 0.0).collect::<Vec<bool>>()
    });
    let group = match params["global_reduce"].as_bool() {
        Some(false) => Some(1),
        _ => case.count("group_size"),
    };
    let rules = Comparison {
        smoothing: case.number("smoothing").unwrap_or(0.0),
        group,
        learns_as_candidate: params["gather_backward"].as_bool().unwrap_or(true),
        ..Comparison::default()
    };
    let features = Features {
        bias: 0.0,
        images: &images,
        texts: &texts,
        scale: 1.0 / clamped(case),
        ignored: ignored.as_deref(),
        same: None,
        mixed: case.number("alpha").map(|alpha| Mixed { alpha, block: n }),
    };
    compare(&features, &rules, collective).expect("compared")
}

fn temperature(case: &Case) -> f64 {
    case.number("temperature").expect("a temperature")
}

fn clamp(case: &Case) -> [f64; 2] {
    let config = case.set().config();
    let ends = fixtures::list(&config["temperature_clamp"]);
    [number(&ends[0]), number(&ends[1])]
}

fn clamped(case: &Case) -> f64 {
    let [least, most] = clamp(case);
    f64::from(temperature(case) as f32).clamp(least, most)
}

/// The value of one rank.
fn of_rank(value: &Value, rank: usize) -> &Value {
    value.get(rank).unwrap_or(value)
}

fn feature_loss(case: &Case) {
    let n_ranks = case.count("ranks").unwrap_or(1);
    let found = match n_ranks {
        1 => vec![compared(case, &Alone)],
        _ => Threads::run(n_ranks, |rank| compared(case, rank)),
    };
    let expected = &case.json("expected")[case.text("prefix")];
    for (rank, found) in found.into_iter().enumerate() {
        let close = |name: &str, found: f64| {
            let expected = of_rank(&expected[name], rank);
            let Some(expected) = expected.as_f64() else {
                return;
            };
            let (atol, rtol) = (
                case.tolerance("loss", "atol"),
                case.tolerance("loss", "rtol"),
            );
            let within = atol + rtol * expected.abs();
            assert!(
                (found - expected).abs() <= within,
                "{name} of rank {rank}: {found}, {expected}"
            );
        };
        close("i2t", found.image_loss);
        close("t2i", found.text_loss);
        close("loss", found.loss());
        close("i2t_acc", found.images_hit / found.n_rows);
        close("t2i_acc", found.texts_hit / found.n_rows);
        if let Some(expected) = of_rank(&expected["grad_temperature"], rank).as_f64() {
            let [least, most] = clamp(case);
            let (tau, is_inside) = (clamped(case), temperature(case));
            let is_inside = (least..=most).contains(&is_inside);
            let found = if is_inside {
                -found.scale / (tau * tau)
            } else {
                0.0
            };
            let within = case.tolerance("grad", "rel_l2") * expected.abs() + 1e-6;
            assert!(
                (found - expected).abs() <= within,
                "temperature of rank {rank}: {found}, {expected}"
            );
        }
        let grads = case.tensors_of("expected_grads", case.text("prefix"));
        for (name, found) in [("grad_image", &found.images), ("grad_text", &found.texts)] {
            let n = found.dim(0).expect("rows");
            let expected = rows(&grads[name], rank * n, n);
            let of = |tensor: &Tensor| -> f64 {
                let sum = tensor
                    .sqr()
                    .and_then(|t| t.sum_all())
                    .and_then(|t| t.to_scalar::<f32>());
                f64::from(sum.expect("a sum")).sqrt()
            };
            let off = of(&(found - &expected).expect("a difference"));
            let within = case.tolerance("grad", "rel_l2") * of(&expected) + 1e-9;
            assert!(off <= within, "{name} of rank {rank}: {off} > {within}");
        }
    }
}
