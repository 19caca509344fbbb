//! Cross entropy as one operation: of logits of many words it keeps the logits alone.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::math::{exp, max, sum_of};
use super::ops::with_slices;

/// The mean of `−ln softmax(logits)[target]` over rows of `logits: (n, classes)`.
pub struct CrossEntropy {
    /// A class for each row.
    pub targets: Vec<u32>,
}

/// The largest logit of a row, and the sum of the exponentials of all less that one.
fn scale(logits: &[f32]) -> (f32, f32) {
    merge::vectorized(
        #[inline(always)]
        || {
            let largest = max(logits);
            (largest, sum_of(logits, logits, |x, _| exp(x - largest)))
        },
    )
}

impl CrossEntropy {
    fn mean(&self, logits: &[f32]) -> f32 {
        let n = self.targets.len();
        let rows = logits.par_chunks_exact((logits.len() / n.max(1)).max(1));
        let of_row = |(logits, &target): (&[f32], &u32)| {
            let (largest, sum) = scale(logits);
            f64::from(sum.ln() - (logits[target as usize] - largest))
        };
        let of_rows: Vec<f64> = rows.zip(&self.targets).map(of_row).collect();
        (of_rows.iter().sum::<f64>() / n as f64) as f32
    }

    fn gradient(&self, g: f32, logits: &[f32]) -> Vec<f32> {
        let n = self.targets.len();
        let (share, classes) = (g / n as f32, (logits.len() / n.max(1)).max(1));
        let mut by_logits = vec![0.0; logits.len()];
        let rows = (by_logits.par_chunks_exact_mut(classes))
            .zip(logits.par_chunks_exact(classes))
            .zip(&self.targets);
        rows.for_each(|((by_logits, logits), &target)| {
            let (largest, sum) = scale(logits);
            let factor = share / sum;
            merge::vectorized(
                #[inline(always)]
                || {
                    for (by_logit, logit) in by_logits.iter_mut().zip(logits) {
                        *by_logit = factor * exp(logit - largest);
                    }
                },
            );
            by_logits[target as usize] -= share;
        });
        by_logits
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let Some((first, end)) = layout.contiguous_offsets() else {
            bail!("a fused operation needs contiguous arguments");
        };
        let mean = self.mean(&logits.as_slice::<f32>()?[first..end]);
        Ok((CpuStorage::F32(vec![mean]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let g = g.to_scalar::<f32>()?;
        let by_logits = with_slices([logits], |[logits]| self.gradient(g, logits))?;
        Tensor::from_vec(by_logits, logits.shape(), logits.device()).map(Some)
    }
}
