//! The linear probe: its loss, its gradients, and steps of LARS.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::forward::{self, Given};
use evaluate::models::{Head, Overrides};
use evaluate::nn::Gradients;
use evaluate::ranks::ExpertShare;
use fixtures::{Case, Raw, first_difference, list, number};
use merge::io::OpenOptions;
use train::batch::Batch;
use train::collective::Alone;
use train::losses::{Computed, LossOptions, by_name};
use train::objectives::{Randomness, spec};
use train::optim::{Curve, Decay, GroupRules, OptimSettings, Rule, Warmup};
use train::run::{Backward, Start, Told, Updater, Wanted};

use crate::fixture::{NOTHING_OMITTED, plain};

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    a_linear_probe_learns_as_that_of_the_published_program: "linear_probe" => linear_probe,
}

/// The names of the probe's tensors, in the case and in our checkpoints.
const NAMES: [(&str, &str); 2] = [
    ("weight", "linear_probe.weight"),
    ("bias", "linear_probe.bias"),
];

fn close(case: &Case, what: &str, found: &[f64], expected: &[f64]) {
    let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
    let differs = first_difference(found, expected, rtol, atol);
    assert_eq!(differs, None, "{what}");
}

fn values(tensor: &candle_core::Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    flat.and_then(|flat| flat.to_vec1()).expect("values")
}

fn settings(case: &Case) -> OptimSettings {
    let number = |name: &str| case.number(name).expect("a number");
    OptimSettings {
        rule: Rule::Lars,
        lr: number("lr"),
        warmup: Warmup::Steps(0),
        decay: Decay::Named(Curve::Constant),
        beta1: number("momentum"),
        trust: number("eta"),
        epsilon: number("eps"),
        weight_decay: number("weight_decay"),
        head_weight_decay: number("weight_decay"),
        rules: GroupRules::All,
        trainable: vec!["linear_probe".into()],
        ..OptimSettings::default()
    }
}

/// The case's model with its probe.
fn start(case: &Case, tensors: &BTreeMap<String, Raw>) -> Start {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let mut model = case.tensors("model");
    for (name, key) in NAMES {
        model.insert(key.into(), tensors[name].clone());
    }
    fixtures::write(&path, &model);
    let config = case.set().config();
    let heads = |tower: &str| config[tower]["heads"].as_u64().map(|n| n as usize);
    let wanted = Wanted {
        overrides: Overrides {
            image_heads: heads("vision"),
            text_heads: heads("text"),
            ..Overrides::default()
        },
        settings: Vec::new(),
        objectives: vec![spec("linear_probe").expect("known")],
        classes: Vec::new(),
        seed: 0,
        experts: ExpertShare::ALL,
    };
    let checkpoint = merge::io::open(&path, &OpenOptions::default()).expect("a checkpoint");
    let start = Start::load(Arc::new(checkpoint), &wanted, &Device::Cpu, DType::F32);
    start.expect("a model with a probe")
}

/// The pictures of the case with their classes.
fn given(case: &Case, start: &Start, tensors: &BTreeMap<String, Raw>) -> Given {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inputs.safetensors");
    let mut inputs = case.tensors("input");
    inputs.insert("label".into(), tensors["label"].clone());
    fixtures::write(&path, &inputs);
    let file = merge::io::open(&path, &OpenOptions::default()).expect("inputs");
    let taken = start.model.named_passes().expect("passes").inputs();
    Given::open(&file, taken, &Device::Cpu, DType::F32).expect("inputs that fit")
}

fn linear_probe(case: &Case) {
    let tensors = case.tensors_of("tensors", case.text("prefix"));
    let start = start(case, &tensors);
    let classes = start.model.n_classes(Head::ImageClasses).expect("a probe");
    assert_eq!(Some(classes), case.count("classes"));
    let given = given(case, &start, &tensors);
    let loss = by_name("zerovl", "linear_probe").expect("known");
    let computed = loss.compute(
        start.model.as_ref(),
        &start.weights,
        &given,
        &LossOptions::default(),
    );
    let computed = computed.expect("a loss");
    check_first(case, &computed, &tensors);
    let batch = loss.batch(&given).expect("a batch");
    let expected = &case.json("expected")[case.text("key")]["losses_of_4_lars_steps"];
    let losses: Vec<f64> = list(expected).iter().map(number).collect();
    learn(case, &start, &batch, &losses);
    for (name, key) in NAMES {
        let after = format!("{name}_after{}", losses.len());
        close(
            case,
            key,
            &values(&start.variables[key]),
            &tensors[&after].values(),
        );
    }
    let outcome = forward::run(
        start.model.as_ref(),
        &given,
        &["linear_probe".into()],
        false,
    );
    let found = &outcome.expect("the pass runs").tensors["linear_probe.prediction"];
    let after = format!("prediction_after{}", losses.len());
    close(case, "logits", &values(found), &tensors[&after].values());
}

/// The loss before the first step, and whom its gradients reach.
fn check_first(case: &Case, computed: &Computed, tensors: &BTreeMap<String, Raw>) {
    let expected = &case.json("expected")[case.text("key")];
    close(case, "loss", &[computed.loss], &[number(&expected["loss"])]);
    let measure = |name: &str| {
        let found = computed.measures.iter().find(|(found, _)| *found == name);
        100.0 * found.expect("measured").1
    };
    close(
        case,
        "top-1",
        &[measure("image_accuracy")],
        &[number(&expected["acc1"])],
    );
    close(
        case,
        "top-5",
        &[measure("image_accuracy_5")],
        &[number(&expected["acc5"])],
    );
    let reached: Vec<&str> = computed.gradients.keys().map(String::as_str).collect();
    assert_eq!(reached, ["linear_probe.bias", "linear_probe.weight"]);
    for (name, key) in NAMES {
        let expected = tensors[&format!("grad_{name}")].values();
        close(case, key, &values(&computed.gradients[key]), &expected);
    }
}

/// Steps of the optimizer; the loss before each is one of `losses`, and no other weight moves.
fn learn(case: &Case, start: &Start, batch: &Batch, losses: &[f64]) {
    let others = || -> Vec<Vec<f64>> {
        let others = start
            .variables
            .iter()
            .filter(|(name, _)| !name.starts_with("linear_probe"));
        others.map(|(_, variable)| values(variable)).collect()
    };
    let before = others();
    let variables = &start.variables;
    let updater = Updater::new(
        &settings(case),
        losses.len() as u64,
        variables,
        start.blueprint.grouping(),
        &Alone,
    );
    let mut updater = updater.expect("an updater");
    let objective = by_name("zerovl", "linear_probe")
        .and_then(|loss| loss.objective(&LossOptions::default(), batch.n));
    let objectives = vec![(objective.expect("opened"), 1.0)];
    let buffers = Default::default();
    for (index, expected) in losses.iter().enumerate() {
        let backward = Backward {
            randomness: Randomness {
                step: index as u64,
                dropout: 0.1,
                ..NOTHING_OMITTED
            },
            ..plain(start.model.as_ref(), &objectives, &buffers)
        };
        let (mut told, trained) = (Told::default(), updater.trained(variables));
        let mut gradients = Gradients::of(trained.map(|(_, variable)| variable));
        let learned = backward.learn(batch, None, &mut told, &mut gradients);
        learned.expect("learned");
        let found = told.values["loss"].0;
        close(
            case,
            &format!("loss of step {index}"),
            &[found],
            &[*expected],
        );
        let norm = updater
            .norm(variables, &gradients, 1.0, &Alone)
            .expect("a norm");
        let updated = updater.update(index as u64, variables, &gradients, (1.0, norm), &Alone);
        updated.expect("updated");
    }
    assert!(before == others(), "the towers stay as they are");
}
