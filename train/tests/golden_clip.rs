//! Losses of CLIP and SigLIP, on one and two ranks, and gradients of whole models, case by case of
//! `fixtures/clip/manifest.json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::forward::Given;
use evaluate::models::{Opened, Overrides, prepare};
use evaluate::nn::Tape;
use fixtures::{Case, Raw, number};
use merge::io::OpenOptions;
use serde_json::Value;
use train::collective::{Alone, Collective};
use train::losses::{self, LossOptions};
use train::objectives::{Compared, Comparison, Contrast, Features, compare};

use crate::fixture::l2;
use crate::threads::Threads;

fixtures::golden_tests! {
    package: "train", set: "clip",
    losses_of_features_are_those_of_open_clip: "feature_loss" => feature_loss,
    losses_of_features_on_two_ranks_are_those_of_open_clip: "feature_loss_two_ranks" => feature_loss,
    losses_and_gradients_of_models_are_those_of_transformers: "loss_grad" => loss_grad,
}

/// Rows `from..from + n` of a tensor.
fn rows(raw: &Raw, from: usize, n: usize) -> Tensor {
    let tensor = raw.tensor().narrow(0, from, n);
    tensor.and_then(|t| t.contiguous()).expect("rows")
}

/// How open_clip's flags gather features.
#[derive(Clone, Copy)]
struct Flags {
    /// Each rank has the loss of its own rows.
    is_local: bool,
    /// Gradients go through what other ranks gathered.
    gathers_gradient: bool,
}

impl Flags {
    fn of(case: &Case) -> Self {
        let flag = |name: &str| case["params"][name].as_bool().unwrap_or(false);
        let is_sigmoid = case.param("kind") == Some("sigmoid");
        Self {
            // The sigmoid loss is local always, and its texts travel with their gradients.
            is_local: is_sigmoid || flag("local_loss"),
            gathers_gradient: is_sigmoid || flag("gather_with_grad"),
        }
    }

    /// The rules whose gradients are those of the flags.
    fn rules(self, case: &Case) -> Comparison {
        Comparison {
            contrast: match case.param("kind") {
                Some("clip") => Contrast::Softmax,
                Some("sigmoid") => Contrast::Sigmoid,
                other => panic!("a loss {other:?}"),
            },
            learns_as_candidate: !self.is_local || self.gathers_gradient,
            shares_gradient: !self.is_local && !self.gathers_gradient,
            ..Comparison::default()
        }
    }
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
    let features = Features {
        images: &images,
        texts: &texts,
        scale: case.number("scale").expect("a scale"),
        bias: case.number("bias").unwrap_or(0.0),
        ignored: None,
        same: None,
        mixed: None,
    };
    let rules = match collective.size() {
        1 => Comparison {
            shares_gradient: false,
            learns_as_candidate: true,
            ..Flags::of(case).rules(case)
        },
        _ => Flags::of(case).rules(case),
    };
    compare(&features, &rules, collective).expect("compared")
}

fn feature_loss(case: &Case) {
    let n_ranks = case.count("ranks").unwrap_or(1);
    let found = match n_ranks {
        1 => vec![compared(case, &Alone)],
        _ => Threads::run(n_ranks, |rank| compared(case, rank)),
    };
    let expected = &case.json("expected")[case.text("key")];
    let scale = case.number("scale").expect("a scale");
    // A loss that is the same on all ranks is the mean of those of their rows.
    let mean = |of: &dyn Fn(&Compared) -> f64| found.iter().map(of).sum::<f64>() / n_ranks as f64;
    let is_shared = n_ranks > 1 && !Flags::of(case).is_local;
    let (atol, rtol) = (
        case.tolerance("loss", "atol"),
        case.tolerance("loss", "rtol"),
    );
    for (rank, of_rank) in found.iter().enumerate() {
        let close = |name: &str, of: &dyn Fn(&Compared) -> f64, factor: f64| {
            let value = expected.get(name).or_else(|| {
                let of_ranks = expected.get(format!("{name}_per_rank"))?;
                of_ranks.get(rank)
            });
            let Some(expected) = value.and_then(Value::as_f64) else {
                return;
            };
            let found = factor * if is_shared { mean(of) } else { of(of_rank) };
            assert!(
                (found - expected).abs() <= atol + rtol * expected.abs(),
                "{name} of rank {rank}: {found}, {expected}"
            );
        };
        close("loss", &Compared::loss, 1.0);
        // The stored value is the logarithm of the scale.
        close("grad_log_scale", &|found| found.scale, scale);
        close("grad_bias", &|found| found.bias, 1.0);
        let grads = case.tensors_of("expected_grads", case.text("prefix"));
        for (name, found) in [
            ("grad_image", &of_rank.images),
            ("grad_text", &of_rank.texts),
        ] {
            let n = found.dim(0).expect("rows");
            let expected = rows(&grads[name], rank * n, n);
            let of = |tensor: &Tensor| {
                let values: Vec<f32> = tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32");
                l2(values.into_iter().map(f64::from))
            };
            let off = of(&(found - &expected).expect("a difference"));
            let within = case.tolerance("grad", "rel_l2") * of(&expected) + 1e-9;
            assert!(off <= within, "{name} of rank {rank}: {off} > {within}");
        }
    }
}

fn open(case: &Case) -> Opened {
    let folder = case.set().path(case.text("model"));
    let file = merge::io::open(&folder, &OpenOptions::default()).expect("a checkpoint");
    let overrides = Overrides::default();
    let prepared = prepare(Arc::new(file), &overrides, &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    Opened::build(blueprint, weights.trainable()).expect("built")
}

/// The inputs of a case under the names that the loss reads: ids that the case does not name are left out.
fn given(case: &Case, opened: &Opened, folder: &std::path::Path) -> Given {
    let mut tensors = case.tensors("input");
    if let Some(ids) = case.param("input_ids") {
        tensors.retain(|name, _| !name.starts_with("input_ids") || name == ids);
    }
    let path = folder.join("inputs.safetensors");
    fixtures::write(&path, &tensors);
    let file = merge::io::open(&path, &OpenOptions::default()).expect("inputs");
    let named = opened.model.named_passes().expect("passes");
    Given::open(&file, named.inputs(), &Device::Cpu, DType::F32).expect("inputs")
}

/// By tape with blocks on slices, by tape as graphs, and as one graph.
fn loss_grad(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let tapes: [&dyn Fn() -> Option<Tape>; 2] = [&|| Some(Tape::new()), &|| None];
    for tape in tapes {
        let opened = open(case);
        let given = given(case, &opened, folder.path());
        let loss = losses::by_name("clip", case.param("loss").expect("a loss"));
        let computed = loss.expect("known").compute_by(
            opened.model.as_ref(),
            &opened.weights,
            &given,
            &LossOptions::default(),
            tape,
        );
        let computed = computed.expect("a loss");
        let expected = &case.json("expected")[case.text("key")];
        let value = number(&expected["loss"]);
        let within = case.tolerance("loss", "atol") + case.tolerance("loss", "rtol") * value.abs();
        assert!(
            (computed.loss - value).abs() <= within,
            "{} {value}",
            computed.loss
        );
        check_gradients(case, expected, &computed.gradients);
    }
}

fn check_gradients(case: &Case, expected: &Value, found: &BTreeMap<String, Tensor>) {
    let norms = expected["grad_norms"].as_object().expect("norms");
    let largest = norms.values().filter_map(Value::as_f64).fold(0.0, f64::max);
    let least = case.tolerance("grad", "atol_norm") * largest;
    let rel_l2 = case.tolerance("grad", "rel_l2");
    let full = case.tensors("expected_grads");
    let learned: Vec<&String> = norms
        .iter()
        .filter_map(|(name, norm)| norm.as_f64().map(|_| name))
        .collect();
    let names: Vec<&String> = found.keys().collect();
    let mut sorted = learned;
    sorted.sort_unstable();
    assert_eq!(names, sorted);
    for (name, gradient) in found {
        let values: Vec<f32> = gradient
            .flatten_all()
            .and_then(|t| t.to_vec1())
            .expect("f32");
        let Some(raw) = full.get(name) else {
            let norm = l2(values.into_iter().map(f64::from));
            let expected = number(&norms[name]);
            assert!(
                (norm - expected).abs() <= rel_l2 * expected + least,
                "{name}"
            );
            continue;
        };
        assert_eq!(gradient.dims(), raw.shape, "{name}");
        let expected = raw.values();
        let off = values.iter().zip(&expected);
        let off = l2(off.map(|(found, expected)| f64::from(*found) - expected));
        let within = (rel_l2 * l2(expected.iter().copied())).max(least);
        assert!(off <= within, "{name}: {off} > {within}");
    }
}
