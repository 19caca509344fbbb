//! Times RegMean's arithmetic for two experts of one layer, and the matrix product it is made of.
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
use ndarray::Array2;

fn main() {
    let mut sizes = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let (Some(Ok(out)), Some(Ok(width))) = (sizes.next(), sizes.next()) else {
        eprintln!("give the layer's outputs and inputs, e.g. 768 3072");
        std::process::exit(2);
    };
    let algebra = default_algebra();
    let weight = Array2::from_shape_fn((out, width), |(i, j)| ((i * 31 + j * 17) % 97) as f64);
    let gram = Array2::from_shape_fn((width, width), |(i, j)| {
        if i == j {
            3.0
        } else {
            1.0 / (1.0 + (i.abs_diff(j) as f64).powi(2))
        }
    });
    let regmean = best_of_five(|| {
        let mut product = algebra.multiply(&weight, &gram);
        product += &algebra.multiply(&weight, &gram);
        algebra.solve_right(product, &gram + &gram).is_ok()
    });
    let product = best_of_five(|| algebra.multiply(&weight, &gram)[(0, 0)] > 0.0);
    println!("{regmean} {product}");
}

fn best_of_five(mut work: impl FnMut() -> bool) -> f64 {
    let run = |_| {
        let start = Instant::now();
        assert!(work(), "the work succeeds");
        start.elapsed().as_secs_f64()
    };
    (0..5).map(run).fold(f64::INFINITY, f64::min)
}
