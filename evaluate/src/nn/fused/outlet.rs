//! The end of a branch: `residual + keep scale ∘ (x Wᵀ + b)`.

use candle_core::{Result, Tensor};
use faer::Accum;
use rayon::prelude::*;

use super::{kept_weight_gradient, product_apart};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::slices::{self, Keep, Then};
use crate::nn::cpu::weight_gradient;
use crate::nn::{Buffer, Buffers, Gradients, Linear};

/// A linear layer whose output is scaled and added to a sum.
#[derive(Clone, Copy)]
pub(crate) struct Outlet<'a> {
    pub linear: &'a Linear,
    /// Factors per channel.
    pub scale: Option<&'a Tensor>,
    /// Factors per sequence.
    pub keep: Option<Keep<'a>>,
}

impl Outlet<'_> {
    /// `x: (m, k)`, `residual: (m, n)` to `out: (m, n)`.
    pub fn forward(self, out: &mut [f32], x: &[f32], residual: &[f32]) -> Result<()> {
        let k = self.linear.weight().dim(1)?;
        let (weight, bias) = (
            Host::of(self.linear.weight())?,
            Host::of(self.linear.bias())?,
        );
        let scale = self.scale.map(Host::of).transpose()?;
        let then = Then::Add {
            residual,
            scale: scale.as_ref().map(Host::values),
            keep: self.keep,
        };
        slices::linear_into(out, x, weight.values(), bias.values(), k, then);
        Ok(())
    }

    /// The gradient by `x`, from `g: (m, n)`.
    pub fn input_gradient(self, g: &[f32], buffers: &Buffers) -> Result<Buffer> {
        if self.scale.is_none() && self.keep.is_none() {
            return super::input_gradient(self.linear, g, buffers);
        }
        let n = self.linear.weight().dim(0)?;
        let scale = self.scale.map(Host::of).transpose()?;
        let scale = scale.as_ref().map(Host::values);
        let mut scaled = buffers.take(g.len());
        let rows = scaled.par_chunks_mut(n).zip(g.par_chunks(n)).enumerate();
        rows.with_min_len(64).for_each(|(row, (scaled, g))| {
            let keep = self.keep.map_or(1.0, |keep| keep.of(row));
            merge::vectorized(
                #[inline(always)]
                || match scale {
                    Some(scale) => {
                        for ((scaled, g), scale) in scaled.iter_mut().zip(g).zip(scale) {
                            *scaled = keep * scale * g;
                        }
                    }
                    None => {
                        for (scaled, g) in scaled.iter_mut().zip(g) {
                            *scaled = keep * g;
                        }
                    }
                },
            );
        });
        super::input_gradient(self.linear, &scaled, buffers)
    }

    /// Adds the gradients by weight, bias and scale.
    pub fn parameter_gradients(
        self,
        g: &[f32],
        x: &[f32],
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<()> {
        let (weight, bias) = (self.linear.weight(), self.linear.bias());
        let Some(scale) = self.scale else {
            let by_bias = kept_weight_gradient(weight, (g, self.keep), x, gradients, buffers)?;
            gradients.add_values(bias, &by_bias);
            return Ok(());
        };
        let n = weight.dim(0)?;
        let mut g_t = buffers.take(g.len());
        weight_gradient::transpose(&mut g_t, g, n, 0..n, self.keep);
        let mut by_bias = weight_gradient::bias(&g_t, n);
        let (scales, weights, biases) = (Host::of(scale)?, Host::of(weight)?, Host::of(bias)?);
        let (scales, weights) = (scales.values(), weights.values());
        let mut by_scale = match gradients.sum(weight) {
            Some((sum, Accum::Replace)) => {
                weight_gradient::weight(sum, &g_t, x, n, Accum::Replace);
                weight_gradient::scale_rows(sum, None, scales, weights)
            }
            sum => {
                let sum = sum.map(|(sum, _)| sum);
                let mut unscaled = product_apart(&g_t, x, n, buffers);
                weight_gradient::scale_rows(&mut unscaled, sum, scales, weights)
            }
        };
        for ((by_scale, bias), sum) in by_scale.iter_mut().zip(biases.values()).zip(&by_bias) {
            *by_scale += bias * sum;
        }
        gradients.add_values(scale, &by_scale);
        for (by_bias, scale) in by_bias.iter_mut().zip(scales) {
            *by_bias *= scale;
        }
        gradients.add_values(bias, &by_bias);
        Ok(())
    }
}
