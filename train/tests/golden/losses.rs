//! Every loss of every architecture and the norms of its gradients against the published program, by
//! one graph and by tape.

use std::collections::BTreeMap;

use candle_core::{DType, Device};
use evaluate::forward::Given;
use evaluate::models::{Overrides, ShallowAttention};
use evaluate::nn::Tape;
use evaluate::ranks::ExpertShare;
use fixtures::{Case, Set};
use serde_json::Value;
use train::collective::Alone;
use train::losses::{LossOptions, LossSpec};
use train::objectives::{Shared, Step};
use train::run::{Start, Wanted};

use super::models::{open, overrides, weights_of};
use crate::fixture::{gradients_by_name, l2};

/// Of losses, relative, as the set's README states.
const LOSS_TOLERANCE: f64 = 1e-5;

/// Of norms of gradients, relative, as the README states.
const GRADIENT_TOLERANCE: f64 = 1e-3;

/// Gradients below this share of the largest are compared absolutely.
const GRADIENT_FLOOR: f64 = 1e-6;

/// How gradients are computed.
#[derive(Clone, Copy, Debug)]
enum How {
    OneGraph,
    Graphs,
    Tape,
    Checkpoints,
    GraphCheckpoints,
}

/// The model of a case, its weights being variables. Where a case names an architecture, it is that
/// of its weights or the plain one, in which all tokens attend to all.
pub fn start(case: &Case) -> Start {
    let overrides = Overrides {
        shallow_attention: (case["arch"] == "plain").then_some(ShallowAttention::Joint),
        ..overrides(&case.set().config())
    };
    let (device, dtype) = (Device::Cpu, DType::F32);
    let wanted = Wanted {
        overrides,
        settings: Vec::new(),
        objectives: Vec::new(),
        classes: Vec::new(),
        seed: 0,
        experts: ExpertShare::ALL,
    };
    let start = Start::load(weights_of(case), &wanted, &device, dtype);
    start.expect("the model loads")
}

/// The inputs of a case.
pub fn given(case: &Case, start: &Start) -> Given {
    let inputs = start
        .model
        .named_passes()
        .expect("a family with passes")
        .inputs();
    let file = open(&case.file("inputs"));
    Given::open(&file, inputs, &Device::Cpu, DType::F32).expect("inputs")
}

/// The loss, and gradients by name of variable.
fn run(start: &Start, loss: &LossSpec, case: &Case, how: How) -> (f64, BTreeMap<String, Vec<f64>>) {
    let tape = match how {
        How::OneGraph => None,
        How::Graphs => Some(Tape::new().of_graphs()),
        How::Tape => Some(Tape::new()),
        How::Checkpoints => Some(Tape::checkpointing()),
        How::GraphCheckpoints => Some(Tape::checkpointing().of_graphs()),
    };
    let batch = loss.batch(&given(case, start)).expect("a batch");
    let step = Step {
        model: start.model.as_ref(),
        batch: &batch,
        collective: &Alone,
        drops: None,
        whole: None,
        routing: None,
        side_losses: None,
        experts: None,
        randomness: None,
        tape: tape.as_ref(),
        shared: &Shared::default(),
    };
    let objective = loss.objective(&LossOptions::default(), batch.n);
    let loss = objective.and_then(|objective| objective.loss(&step));
    let loss = loss.expect("a loss");
    let variables = start.weights.variables();
    let gradients = gradients_by_name(&loss.value, tape, variables);
    (loss.reported, gradients)
}

/// The architectures of `forward/losses.json`: their name, the case that has their weights, and the
/// losses.
fn architectures(set: &std::sync::Arc<Set>) -> Vec<(String, Case, Value)> {
    let losses = set.json("forward/losses.json");
    let cases = set.cases("forward");
    let architectures = losses["losses"]
        .as_object()
        .expect("losses by architecture");
    let of = |(name, losses): (&String, &Value)| {
        let file = format!("forward/{name}.safetensors");
        let case = cases.iter().find(|case| case["expected"] == file);
        let case = case.unwrap_or_else(|| panic!("no forward case gives {file}"));
        (name.clone(), case.clone(), losses.clone())
    };
    architectures.iter().map(of).collect()
}

fn compare(how: How) {
    let set = Set::open("vl_merging");
    for (architecture, case, losses) in architectures(&set) {
        let norms = set.json(&format!("forward/{architecture}_grad_norms.json"));
        let start = start(&case);
        for (name, expected) in losses.as_object().expect("losses by name") {
            let said = format!("{how:?} {architecture} {name}");
            let spec = train::losses::by_name(start.blueprint.family(), name).expect("a loss");
            let (found, gradients) = run(&start, spec, &case, how);
            let expected = expected.as_f64().expect("a loss");
            let error = (found - expected).abs() / expected.abs();
            assert!(
                error <= LOSS_TOLERANCE,
                "{said}: {found}, expected {expected}"
            );
            let norms = norms[name].as_object().expect("norms by parameter");
            let all = norms.values().filter_map(Value::as_f64);
            let floor = GRADIENT_FLOOR * all.fold(0.0, f64::max);
            assert!(floor > 0.0, "{said}: a comparison");
            for (key, norm) in norms {
                let gradient = gradients.get(key);
                let found = gradient.map_or(0.0, |g| l2(g.iter().copied()));
                let expected = norm.as_f64().unwrap_or(0.0);
                let tolerance = (GRADIENT_TOLERANCE * expected).max(floor);
                let is_close = (found - expected).abs() <= tolerance;
                assert!(is_close, "{said} {key}: norm {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn losses_and_gradients_by_one_graph_are_those_of_the_published_program() {
    compare(How::OneGraph);
}

#[test]
fn losses_and_gradients_by_tape_are_those_of_the_published_program() {
    compare(How::Tape);
}

#[test]
fn losses_and_gradients_by_checkpoints_are_those_of_the_published_program() {
    compare(How::Checkpoints);
}

#[test]
fn losses_and_gradients_by_a_tape_of_graphs_are_those_of_the_published_program() {
    compare(How::Graphs);
    compare(How::GraphCheckpoints);
}
