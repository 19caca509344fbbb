//! Blocks whose branches run on slices against the same blocks as graphs of candle's operations.

use std::collections::BTreeMap;

use train::objectives::Randomness;

use crate::fixture::ARCHITECTURES;
use crate::fixture::l2;
use crate::objectives::{How, LOSSES, run_with};

/// Of losses, relative: sums in another order.
const LOSS_TOLERANCE: f64 = 1e-6;

/// Of gradients, relative L2 per tensor.
const GRADIENT_TOLERANCE: f64 = 1e-4;

/// Gradients below this share of the largest are compared absolutely.
const GRADIENT_FLOOR: f64 = 1e-6;

/// Every second branch of the last block is left out.
const RANDOMNESS: Randomness = Randomness {
    seed: 5,
    step: 3,
    drop_path: 0.5,
    dropout: 0.1,
    mix: None,
};

type Gradients = BTreeMap<String, Vec<f64>>;

fn assert_same(case: &str, found: &Gradients, expected: &Gradients) {
    let norm = |gradient: &Vec<f64>| l2(gradient.iter().copied());
    let floor = GRADIENT_FLOOR * expected.values().map(norm).fold(0.0, f64::max);
    let names = |gradients: &Gradients| gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{case}");
    for (name, expected) in expected {
        let error = l2(found[name].iter().zip(expected).map(|(a, b)| a - b));
        let tolerance = (GRADIENT_TOLERANCE * norm(expected)).max(floor);
        assert!(error <= tolerance, "{case} {name}: {error}");
    }
}

#[test]
fn every_objective_learns_on_slices_what_it_learns_by_graphs() {
    for architecture in ARCHITECTURES {
        for (theirs, ours) in LOSSES {
            let run = |how| run_with(architecture, theirs, ours, how, Some(RANDOMNESS), |_| true);
            let (expected_loss, expected) = run(How::Graphs);
            for how in [How::Tape, How::Checkpoints] {
                let (loss, gradients) = run(how);
                let case = format!("{architecture} {ours} {how:?}");
                let error = (loss - expected_loss).abs() / expected_loss.abs();
                assert!(error <= LOSS_TOLERANCE, "{case}: {loss}, {expected_loss}");
                assert_same(&case, &gradients, &expected);
            }
        }
    }
}

#[test]
fn what_is_frozen_changes_no_other_gradient() {
    let run = |is_trained: fn(&str) -> bool| {
        run_with("all_moe", "irtr", "retrieval", How::Tape, None, is_trained).1
    };
    let all = run(|_| true);
    // LayerScale without the layer before it, and the layer without LayerScale.
    for is_trained in [
        |name: &str| name.contains("gamma"),
        |name: &str| name.contains("fc2.weight") || name.contains("norm1"),
        |name: &str| name.contains("q_bias") || name.contains("relative_position"),
    ] {
        let part = run(is_trained);
        assert!(!part.is_empty());
        let expected = all.iter().filter(|(name, _)| is_trained(name));
        let expected = expected.map(|(name, g)| (name.clone(), g.clone()));
        assert_same("part", &part, &expected.collect());
    }
}
