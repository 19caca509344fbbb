//! The step that examples time, and that a script takes of the same checkpoint in torch: its update and its inputs.

use std::error::Error;

use candle_core::{DType, Device};
use evaluate::models::ModelInput;
use train::batch::{Batch, Images, Texts};
use train::optim::{Flavor, OptimSettings, Warmup};

/// The update of torch's optimizer with its own defaults for the moments, at a constant rate.
pub fn settings() -> OptimSettings {
    OptimSettings {
        flavor: Flavor::Torch,
        lr: 1e-5,
        end_lr: 1e-5,
        warmup: Warmup::Steps(0),
        beta2: 0.999,
        weight_decay: 0.0,
        head_weight_decay: 0.0,
        max_norm: None,
        ..OptimSettings::default()
    }
}

/// Inputs that depend on their place only, as the other program makes them.
pub fn inputs(
    input: &ModelInput,
    n: usize,
    device: &Device,
    dtype: DType,
) -> Result<Batch, Box<dyn Error>> {
    let (t, side) = (input.text.len, input.image.side);
    let n_tokens: Vec<usize> = (0..n).map(|text| 8 + text * 5 % (t - 7)).collect();
    let id = |at: usize| match at % t < n_tokens[at / t] {
        true => (at * 7919 % input.text.vocabulary) as u32,
        false => 0,
    };
    let turn = std::f64::consts::TAU;
    let pixels = (0..n * 3 * side * side).map(|at| (at as f64 * 0.05 % turn).sin() as f32);
    Ok(Batch {
        n,
        image: Some(Images::of_values(pixels.collect(), n, side, device, dtype)?),
        text: Some(Texts::new((0..n * t).map(id).collect(), &n_tokens, device)?),
        ..Batch::default()
    })
}
