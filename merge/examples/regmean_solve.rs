//! Times RegMean of two experts of one layer, and the matrix product it is made of.
//!
//! `cargo run --release -p vlmerge-merge --example regmean_solve -- 768 3072`
//! prints seconds: differences, sum, product, factor and solution; and the product alone. The best of five each.
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
    let weight = |factor: usize| {
        Array2::from_shape_fn((out, width), |(i, j)| ((i * 31 + j * factor) % 97) as f64)
    };
    let gram = Array2::from_shape_fn((width, width), |(i, j)| match i.abs_diff(j) {
        0 => 3.0,
        distance => 1.0 / (1.0 + (distance as f64).powi(2)),
    });
    let (vision, language) = (weight(17), weight(19));
    let algebra = default_algebra();
    // The arithmetic of `methods::RegMean` for two members; reading them is not part of it.
    let mut regmean = f64::INFINITY;
    let mut product = f64::INFINITY;
    for _ in 0..5 {
        let mut difference = vision.clone();
        let mut sum = gram.clone();
        let start = Instant::now();
        difference -= &language;
        sum += &gram;
        let before = Instant::now();
        let numerator = algebra.multiply(&difference, &gram);
        product = product.min(before.elapsed().as_secs_f64());
        let solved = algebra.solve_right(numerator, sum);
        let merged = solved.map(|solved| solved + &language);
        regmean = regmean.min(start.elapsed().as_secs_f64());
        assert!(merged.is_ok(), "the gram matrix is positive definite");
    }
    println!("{regmean} {product}");
}
