//! Whole runs: several steps on given batches, to the weights at their end.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::models::{Branch, Model, two_towers};
use evaluate::nn::{Buffers, Gradients};
use fixtures::{Case, Raw, list, number, text};
use serde_json::Value;
use train::batch::{Batch, Images, Texts};
use train::collective::Alone;
use train::objectives::{MixDraw, Objective, Randomness};
use train::optim::{Flavor, GroupRules, OptimSettings, Warmup};
use train::run::{Backward, Told, Updater};

use super::gradients::{learn_parts, opened, opened_objective, write_model};
use super::optimizer::{curve, overrides};
use crate::fixture::{NOTHING_OMITTED, plain};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    runs_end_where_those_of_the_published_program_end: "train_run" => train_run,
}

fn settings(params: &Value) -> OptimSettings {
    let betas = list(&params["betas"]);
    let (decay, is_warmed_up) = curve(&params["schedule"], params);
    assert!(is_warmed_up);
    OptimSettings {
        flavor: Flavor::Torch,
        lr: number(&params["lr"]),
        warmup: Warmup::Share(number(&params["warmup_proportion"])),
        decay,
        beta1: number(&betas[0]),
        beta2: number(&betas[1]),
        epsilon: number(&params["eps"]),
        weight_decay: number(&params["weight_decay"]),
        rules: GroupRules::All,
        overrides: overrides(&params["param_group_rules"]),
        max_norm: params["grad_clip"]["max_norm"].as_f64(),
        ..OptimSettings::default()
    }
}

/// Pixels `(b, 3, h, w)` from 0 to 255, normalized.
fn normalized(case: &Case, raw: &Raw) -> Tensor {
    let config = case.set().config();
    let by_channel = |name: &str| -> Tensor {
        let numbers = list(&config[name]).iter();
        let numbers: Vec<f32> = numbers.map(|value| number(value) as f32).collect();
        Tensor::from_vec(numbers, (1, 3, 1, 1), &Device::Cpu).expect("three numbers")
    };
    let pixels = raw.tensor().to_dtype(DType::F32);
    let shares = pixels.and_then(|pixels| pixels / 255.0);
    let centered = shares.and_then(|shares| shares.broadcast_sub(&by_channel("mean")));
    let pixels = centered.and_then(|pixels| pixels.broadcast_div(&by_channel("std")));
    pixels.expect("pixels")
}

/// A batch of the case in parts of `part` rows.
fn parts(case: &Case, inputs: &BTreeMap<String, Raw>, name: &str, part: usize) -> Vec<Batch> {
    let of = |field: &str| &inputs[&format!("{name}.{field}")];
    let pixels = normalized(case, of("image_u8"));
    let ids = of("input_ids").tensor().to_dtype(DType::U32).expect("ids");
    let mask = of("attention_mask").tensor().to_dtype(DType::U8);
    let mask = mask.expect("a mask");
    let n = pixels.dim(0).expect("rows");
    let rows = |tensor: &Tensor, first: usize| {
        let rows = tensor.narrow(0, first, part);
        rows.and_then(|rows| rows.contiguous()).expect("rows")
    };
    let parts = (0..n).step_by(part).map(|first| {
        let texts = Texts::of_tensors(rows(&ids, first), rows(&mask, first));
        Batch {
            first,
            n: part,
            image: Some(Images::new(rows(&pixels, first))),
            text: Some(texts.expect("texts")),
            ..Batch::default()
        }
    });
    parts.collect()
}

fn draw(step: &Value) -> Option<MixDraw> {
    let draw = |name: &str, mixes_images| {
        let alpha = step["draw"][name].as_f64()?;
        Some(MixDraw {
            alpha,
            mixes_images,
        })
    };
    draw("image_alpha", true).or_else(|| draw("text_alpha", false))
}

/// Compares what a step tells of itself. The published program logs the loss as if nothing were mixed, so
/// only where nothing is mixed is that the loss.
fn check_told(case: &Case, step: &Value, model: &dyn Model, told: &Told) {
    let close = |name: &str, found: f64| {
        let expected = number(&step[name]);
        let atol = case.tolerance("loss", "atol");
        let within = atol + case.tolerance("loss", "rtol") * expected.abs();
        assert!(
            (found - expected).abs() <= within,
            "{name} of step {}: {found}, expected {expected}",
            step["step"]
        );
    };
    let mean = |name: &str| told.values[name].0 / told.values[name].1;
    if step["draw"].is_null() {
        close("loss", mean("loss"));
    }
    close("i2t_acc", mean("nce_i2t_accuracy"));
    close("t2i_acc", mean("nce_t2i_accuracy"));
    let similarity = model.dual().and_then(|dual| dual.similarity(Branch::Apart));
    let scale = similarity.expect("a similarity").scale;
    let scale = scale
        .to_dtype(DType::F64)
        .and_then(|scale| scale.to_scalar::<f64>());
    close("temperature", 1.0 / scale.expect("a number"));
}

fn values(variables: &BTreeMap<String, Var>) -> BTreeMap<String, Vec<f64>> {
    let values = variables.iter().map(|(name, variable)| {
        let flat = variable
            .flatten_all()
            .and_then(|flat| flat.to_vec1::<f32>());
        let values = flat.expect("values").into_iter().map(f64::from);
        (name.clone(), values.collect())
    });
    values.collect()
}

/// Whether the case leaves out number `at` of the `n` of a tensor: all of `*ENDING`, or the
/// `middle third of *ENDING`.
fn is_excluded(case: &Case, name: &str, at: usize, n: usize) -> bool {
    let patterns = list(&case["tolerance"]["exclude"]).iter();
    patterns.map(text).any(|pattern| {
        let (is_third, pattern) = match pattern.strip_prefix("middle third of ") {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        let ending = pattern.strip_prefix('*').expect("`*` and an ending");
        name.ends_with(ending) && (!is_third || (n / 3..2 * n / 3).contains(&at))
    })
}

fn train_run(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    write_model(case, &path);
    let (weights, model) = opened(case, &path);
    let variables = weights.variables();
    let initial = values(&variables);
    let params = &case["params"];
    assert_eq!(number(&params["dropout"]), 0.0);
    let n_steps = ["epochs", "steps_per_epoch"].map(|name| case.count(name).expect("a count"));
    let n_steps = (n_steps[0] * n_steps[1]) as u64;
    let inputs = case.tensors("input");
    let updater = Updater::new(
        &settings(params),
        n_steps,
        &variables,
        &two_towers::GROUPING,
        &Alone,
    );
    let mut updater = updater.expect("an updater");
    let buffers = Buffers::default();
    let steps = &case.json("expected")[case.text("key")]["steps"];
    assert_eq!(list(steps).len() as u64, n_steps);
    for (index, step) in list(steps).iter().enumerate() {
        let name = text(&step["batch"]);
        let n = inputs[&format!("{name}.input_ids")].shape[0];
        let part = case.count("micro_batch").unwrap_or(n);
        let parts = parts(case, &inputs, name, part);
        let mix = draw(step);
        let objective = opened_objective(case, mix.is_some(), part);
        let objectives: Vec<(Box<dyn Objective>, f64)> = vec![(objective, 1.0)];
        let backward = Backward {
            n_parts: parts.len(),
            randomness: Randomness {
                step: index as u64,
                mix,
                ..NOTHING_OMITTED
            },
            ..plain(model.as_ref(), &objectives, &buffers)
        };
        let mut gradients = Gradients::of(variables.values());
        let told = learn_parts(&backward, &parts, &mut gradients);
        check_told(case, step, model.as_ref(), &told);
        let factor = 1.0 / parts.len() as f64;
        let norm = updater.norm(&variables, &gradients, factor, &Alone);
        let by = (factor, norm.expect("a norm"));
        let updated = updater.update(index as u64, &variables, &gradients, by, &Alone);
        let (found, expected) = (updated.expect("updated").rate, number(&step["lr"]));
        assert!(
            (found - expected).abs() <= 1e-12,
            "{found}, expected {expected}"
        );
    }
    let last = fixtures::tensors(&case.file("expected_params"));
    let within = number(&case["tolerance"]["update_rel_l2"]);
    for (name, found) in values(&variables) {
        let (initial, expected) = (&initial[&name], last[&name].values());
        let n = found.len();
        assert_eq!(n, expected.len(), "{name}");
        let (mut off, mut update) = (0.0, 0.0);
        for at in (0..n).filter(|&at| !is_excluded(case, &name, at, n)) {
            off += (found[at] - expected[at]).powi(2);
            update += (expected[at] - initial[at]).powi(2);
        }
        assert!(
            off.sqrt() <= within * update.sqrt(),
            "{name}: off by {} in an update of {}",
            off.sqrt(),
            update.sqrt()
        );
    }
}
