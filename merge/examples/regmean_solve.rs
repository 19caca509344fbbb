//! Times RegMean of two experts of one layer, and the matrix product it is made of.
//!
//! `cargo run --release -p vlmerge-merge --example regmean_solve -- 768 3072`
//! prints seconds: all of RegMean, and one `(out, in) × (in, in)` product, the best of five each.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that reports"
)]

use std::time::Instant;

use merge::linear_algebra::default_algebra;
use merge::methods::{GroupData, GroupShape, MergeMethod, Operation, RegMean};
use merge::{Expert, ParamKind, Result, Slot};
use ndarray::{Array2, ArrayD};

/// Two experts with the same gram matrix; each call copies, as reading a file would.
struct Layer {
    weights: [Array2<f64>; 2],
    gram: Array2<f64>,
}

impl GroupData for Layer {
    fn member(&self, index: usize) -> Result<ArrayD<f64>> {
        Ok(self.weights[index].clone().into_dyn())
    }

    fn base(&self) -> Result<ArrayD<f64>> {
        self.member(0)
    }

    fn gram(&self, _index: usize) -> Result<Array2<f64>> {
        Ok(self.gram.clone())
    }
}

fn main() -> Result<()> {
    let mut sizes = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (Some(Ok(out)), Some(Ok(width))) = (sizes.next(), sizes.next()) else {
        eprintln!("give the layer's outputs and inputs, e.g. 768 3072");
        std::process::exit(2);
    };
    let weight = |factor: usize| {
        Array2::from_shape_fn((out, width), |(i, j)| ((i * 31 + j * factor) % 97) as f64)
    };
    let gram = Array2::from_shape_fn((width, width), |(i, j)| match i.abs_diff(j) {
        0 => 3.0,
        distance => 1.0 / (1.0 + (distance as f64).powi(2)),
    });
    let layer = Layer {
        weights: [weight(17), weight(19)],
        gram,
    };
    let method = RegMean {
        shrink: 1.0,
        ridge: 0.0,
        skip_missing: false,
        algebra: default_algebra(),
    };
    let slot = Slot {
        key: "layer.weight".into(),
        block: Some(0),
        module: "layer".into(),
        kind: ParamKind::LinearWeight,
    };
    let group = GroupShape {
        slot: &slot,
        experts: &[Expert::Vision, Expert::Language],
        shape: &[out, width],
        grams: &[Some("v".into()), Some("l".into())],
    };
    let Operation::Whole(kernel) = method.operation(&group)? else {
        unreachable!("two experts of a linear weight are solved for");
    };
    let regmean = best_of_five(|| kernel.merge(&layer).is_ok());
    let algebra = default_algebra();
    let product =
        best_of_five(|| algebra.multiply(&layer.weights[0], &layer.gram)[(0, 0)].is_finite());
    println!("{regmean} {product}");
    Ok(())
}

fn best_of_five(mut work: impl FnMut() -> bool) -> f64 {
    let run = |_| {
        let start = Instant::now();
        assert!(work(), "the work succeeds");
        start.elapsed().as_secs_f64()
    };
    (0..5).map(run).fold(f64::INFINITY, f64::min)
}
