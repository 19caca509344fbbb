//! Times two towers and prints a JSON line, for `benches/zerovl_towers.py` and `benches/clip_model.py`: the same
//! weights, inputs, batch and threads as PyTorch there.
//!
//! `RAYON_NUM_THREADS=2 towers_speed CHECKPOINT image|text|step BATCH ROUNDS`
//!
//! `step` is a contrastive step without the update: features of all pairs, the symmetric cross entropy
//! of their similarities, and the gradient of every variable.

mod speed;

use std::cmp::Ordering;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Result;
use evaluate::batch::{Images, Texts};
use evaluate::models::{Branch, DualEncoder, Overrides, prepare};
use evaluate::nn::{Buffers, Gradients, Pass, Tape, cross_entropy};
use merge::io::OpenOptions;

/// Inputs that depend on their place only, as the reference makes them. A text ends with the last entry of the
/// vocabulary, where CLIP pools.
fn inputs(side: usize, t: usize, vocabulary: usize, batch: usize) -> Result<(Images, Texts)> {
    let turn = std::f64::consts::TAU;
    let pixels = (0..batch * 3 * side * side).map(|n| (n as f64 * 0.05 % turn).sin() as f32);
    let n_tokens: Vec<usize> = (0..batch).map(|text| 8 + text * 5 % (t - 7)).collect();
    let last = vocabulary - 1;
    let id = |at: usize| match (at % t + 1).cmp(&n_tokens[at / t]) {
        Ordering::Less => (at * 7919 % last) as u32,
        Ordering::Equal => last as u32,
        Ordering::Greater => 0,
    };
    let (device, dtype) = (Device::Cpu, DType::F32);
    Ok((
        Images::of_values(pixels.collect(), batch, side, &device, dtype)?,
        Texts::new((0..batch * t).map(id).collect(), &n_tokens, &device)?,
    ))
}

/// The symmetric cross entropy of all pairs.
fn contrast(model: &dyn DualEncoder, images: &Tensor, texts: &Tensor) -> Result<Tensor> {
    let logits = model.similarity(Branch::Apart)?.logits(images, texts)?;
    let own: Vec<u32> = (0..logits.dim(0)? as u32).collect();
    let both = (cross_entropy(&logits, &own)? + cross_entropy(&logits.t()?.contiguous()?, &own)?)?;
    Ok((both * 0.5)?)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, which, batch, rounds] = &arguments[..] else {
        return speed::say("towers_speed CHECKPOINT image|text|step BATCH ROUNDS");
    };
    let (batch, rounds) = (batch.parse().unwrap_or(8), rounds.parse().unwrap_or(5));
    let options = OpenOptions::default();
    let file = Arc::new(merge::io::open(checkpoint.as_ref(), &options)?);
    let overrides = Overrides::default();
    let (blueprint, weights) = prepare(file, &overrides, &Device::Cpu, DType::F32)?;
    let weights = if which == "step" {
        weights.trainable()
    } else {
        weights
    };
    let model = blueprint.build(&weights)?;
    let (model, input) = (model.dual()?, blueprint.input());
    let (images, texts) = inputs(
        input.image.side,
        input.text.len,
        input.text.vocabulary,
        batch,
    )?;
    let (buffers, of) = (Buffers::default(), [Branch::Apart]);
    let variables = weights.variables();
    let mut gradients = Gradients::of(variables.values());
    speed::time(which, batch, rounds, || {
        Ok(match which.as_str() {
            "image" => model.image_features(&images, &of, &Pass::new())?[0].clone(),
            "text" => model.text_features(&texts, &of, &Pass::new())?[0].clone(),
            _ => {
                gradients.clear();
                let tape = Tape::new().reusing(&buffers);
                let pass = Pass::new().recorded(&tape);
                let image = &model.image_features(&images, &of, &pass)?[0];
                let text = &model.text_features(&texts, &of, &pass)?[0];
                let loss = contrast(model, image, text)?;
                tape.backward(&loss, &mut gradients)?;
                loss.detach()
            }
        })
    })
}
