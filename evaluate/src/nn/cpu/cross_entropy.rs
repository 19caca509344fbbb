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

/// `−ln softmax(logits)[target]` of each row.
fn losses(logits: &[f32], targets: &[u32]) -> Vec<f64> {
    let rows = logits.par_chunks_exact((logits.len() / targets.len().max(1)).max(1));
    let of_row = |(logits, &target): (&[f32], &u32)| {
        let (largest, sum) = scale(logits);
        f64::from(sum.ln() - (logits[target as usize] - largest))
    };
    rows.zip(targets).map(of_row).collect()
}

/// The sum of `−ln softmax(logits)[target]` over rows, and how many rows have their largest logit at the target; of equal
/// ones the first counts.
pub fn judge(logits: &[f32], targets: &[u32]) -> (f64, usize) {
    let rows = logits.par_chunks_exact((logits.len() / targets.len().max(1)).max(1));
    let is_right = |(logits, &target): (&[f32], &u32)| {
        let (before, rest) = logits.split_at(target as usize);
        let own = logits[target as usize];
        before.iter().all(|&other| other < own) && rest.iter().all(|&other| other <= own)
    };
    let n_right = rows.zip(targets).filter(|&row| is_right(row)).count();
    (losses(logits, targets).iter().sum(), n_right)
}

/// Puts `share · (softmax(logits) − target)` in place of the logits.
pub fn gradient_in_place(logits: &mut [f32], targets: &[u32], share: f32) {
    let classes = (logits.len() / targets.len().max(1)).max(1);
    let rows = logits.par_chunks_exact_mut(classes).zip(targets);
    rows.for_each(|(logits, &target)| {
        let (largest, sum) = scale(logits);
        let factor = share / sum;
        merge::vectorized(
            #[inline(always)]
            || {
                for logit in logits.iter_mut() {
                    *logit = factor * exp(*logit - largest);
                }
            },
        );
        logits[target as usize] -= share;
    });
}

impl CrossEntropy {
    fn mean(&self, logits: &[f32]) -> f32 {
        let n = self.targets.len() as f64;
        (losses(logits, &self.targets).iter().sum::<f64>() / n) as f32
    }

    fn gradient(&self, g: f32, logits: &[f32]) -> Vec<f32> {
        let mut by_logits = logits.to_vec();
        let share = g / self.targets.len() as f32;
        gradient_in_place(&mut by_logits, &self.targets, share);
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
