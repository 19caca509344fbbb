//! The two halves of a block on slices, forward and backward, each scheduled by hand.
//!
//! On the CPU in f32 a block is two branches: LayerNorm, attention, projection, LayerScale, drop path,
//! sum; and LayerNorm, FFN, LayerScale, drop path, sum. A branch keeps for its backward pass
//! the values whose computation takes a product with a weight: packed projections, the FFN before GELU. The
//! backward pass computes norms, attention and GELU again. The product that computes the gradient of a
//! weight adds it to its sum, and all memory in between comes from [`Buffers`].
//!
//! The graph of candle's operations stays the reference, and serves other devices and dtypes, and
//! weights that are themselves computed.

mod attention;
mod cross;
mod exchanged;
mod ffn;
mod outlet;
mod post_norm;
mod pre_norm;
mod projections;
mod recorded;
mod routed;
mod sees;
mod served;
mod words;

pub(crate) use attention::{AttentionBranch, KeptAttention, Packed, PackedBias, Projections};
pub(crate) use cross::{CrossHalf, KeptCrossHalf};
pub(crate) use exchanged::ExchangedExperts;
pub(crate) use ffn::FfnBranch;
pub(crate) use post_norm::{AttentionHalf, FfnHalf, KeptAttentionHalf, KeptFfnHalf, Separate};
pub(crate) use pre_norm::{Network, PreNormBlock};
pub(crate) use projections::{project_rows, record_projections, side_by_side};
pub(crate) use recorded::{OnSlices, record_on_slices};
pub(crate) use routed::{RoutedExperts, Taken};
pub(crate) use sees::Sees;
pub(crate) use words::WordHead;

use candle_core::{Result, Tensor};
use faer::Accum;

use super::cpu::host::Host;
use super::cpu::sequences::{Sizes, Spans};
use super::cpu::slices::{self, Keep, Then};
use super::cpu::{takes, weight_gradient};
use super::{Buffer, Buffers, Gradients, LayerNorm, Linear, Mask, Tape};

/// Whether a gradient by this tensor, if any, is one that [`Gradients`] sums.
pub(crate) fn is_leaf(tensor: &Tensor) -> bool {
    takes(tensor) && tensor.is_contiguous() && (tensor.is_variable() || !tensor.track_op())
}

/// Whether a block can run on slices: on the CPU in f32, with weights that are variables or frozen, not
/// themselves computed.
pub(crate) fn fits_slices<'t>(
    tape: &Tape,
    x: &Tensor,
    weights: impl IntoIterator<Item = &'t Tensor>,
) -> bool {
    tape.fuses() && takes(x) && weights.into_iter().all(is_leaf)
}

/// Whether a block can run on slices where nothing has a gradient: on the CPU in f32.
pub(crate) fn runs_on_slices<'t>(
    x: &Tensor,
    weights: impl IntoIterator<Item = &'t Tensor>,
) -> bool {
    let is_plain = |tensor: &Tensor| takes(tensor) && !tensor.track_op();
    is_plain(x) && (weights.into_iter()).all(|weight| is_plain(weight) && weight.is_contiguous())
}

/// Sizes of a self-attention in which every token asks.
fn self_attention(batch: usize, tokens: usize, heads: usize, width: usize) -> Sizes<'static> {
    Sizes {
        batch,
        queries: Spans::Even(tokens),
        keys: Spans::Even(tokens),
        heads,
        head_width: width / heads,
    }
}

/// The numbers that a mask adds to scores, `(b, m)` or `(b, n, m)`.
fn hidden(mask: Option<&Mask>) -> Result<Option<Host<'_>>> {
    match mask {
        None => Ok(None),
        Some(Mask::Padding(added) | Mask::Pairs(added)) => Host::of(added).map(Some),
        Some(Mask::Causal) => {
            candle_core::bail!("a block on slices wants a causal mask spelled out")
        }
    }
}

/// `x Wᵀ + b`: the output of `linear`.
fn output(linear: &Linear, x: &[f32], buffers: &Buffers) -> Result<Buffer> {
    let (weight, bias) = (Host::of(linear.weight())?, Host::of(linear.bias())?);
    let (n, k) = linear.weight().dims2()?;
    let mut out = buffers.take(x.len() / k * n);
    let (weight, bias) = (weight.values(), bias.values());
    slices::linear_into(&mut out, x, weight, bias, k, Then::Nothing);
    Ok(out)
}

/// LayerNorm of `x` into `out`.
fn norm_into(out: &mut [f32], x: &[f32], norm: &LayerNorm) -> Result<()> {
    let (weight, bias) = (Host::of(norm.weight())?, Host::of(norm.bias())?);
    slices::layer_norm_into(out, x, weight.values(), bias.values(), norm.epsilon());
    Ok(())
}

/// Adds the gradient of LayerNorm by its input `x` to `sum`, and those by its weights to `gradients`.
fn norm_backward(
    sum: &mut [f32],
    g: &[f32],
    x: &[f32],
    norm: &LayerNorm,
    gradients: &mut Gradients,
) -> Result<()> {
    let weight = Host::of(norm.weight())?;
    let (by_weight, by_bias) =
        slices::layer_norm_gradients_onto(sum, g, x, weight.values(), norm.epsilon());
    gradients.add_values(norm.weight(), &by_weight);
    gradients.add_values(norm.bias(), &by_bias);
    Ok(())
}

/// `g W`: the gradient by the input of `linear`.
fn input_gradient(linear: &Linear, g: &[f32], buffers: &Buffers) -> Result<Buffer> {
    let weight = Host::of(linear.weight())?;
    let (n, k) = linear.weight().dims2()?;
    let mut by_input = buffers.take(g.len() / n * k);
    slices::linear_input_gradient_into(&mut by_input, g, weight.values(), k);
    Ok(by_input)
}

/// Numbers of a gradient that lie transposed at a time.
const TRANSPOSED: usize = 1 << 20;

/// Adds `gᵀ x` to the gradient of a weight, and gives the sums of `g` by column.
fn weight_gradient(
    weight: &Tensor,
    g: &[f32],
    x: &[f32],
    gradients: &mut Gradients,
    buffers: &Buffers,
) -> Result<Vec<f32>> {
    kept_weight_gradient(weight, (g, None), x, gradients, buffers)
}

/// [`weight_gradient`] of `keep ∘ g`.
fn kept_weight_gradient(
    weight: &Tensor,
    (g, keep): (&[f32], Option<Keep<'_>>),
    x: &[f32],
    gradients: &mut Gradients,
    buffers: &Buffers,
) -> Result<Vec<f32>> {
    let (n, k) = weight.dims2()?;
    let rows = g.len() / n;
    let mut sum = gradients.sum(weight);
    let mut by_bias = Vec::with_capacity(n);
    let stripe = (TRANSPOSED / rows.max(1)).clamp(1, n);
    for from in (0..n).step_by(stripe) {
        let columns = from..n.min(from + stripe);
        let mut g_t = buffers.take(columns.len() * rows);
        weight_gradient::transpose(&mut g_t, g, n, columns.clone(), keep);
        if let Some((sum, accum)) = &mut sum {
            let sum = &mut sum[columns.start * k..columns.end * k];
            weight_gradient::weight(sum, &g_t, x, columns.len(), *accum);
        }
        by_bias.extend(weight_gradient::bias(&g_t, columns.len()));
    }
    Ok(by_bias)
}

/// Memory for the result of a product that is not the sum itself.
fn product_apart(g_t: &[f32], x: &[f32], n: usize, buffers: &Buffers) -> Buffer {
    let mut product = buffers.take(n * (x.len() / (g_t.len() / n)));
    weight_gradient::weight(&mut product, g_t, x, n, Accum::Replace);
    product
}
