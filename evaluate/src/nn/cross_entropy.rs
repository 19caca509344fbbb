//! Cross entropy.

use candle_core::{D, DType, Result, Tensor};

use super::cpu;
use super::cpu::cross_entropy::CrossEntropy;
use crate::crossing;

/// The mean of `−ln softmax(logits)[target]` over rows: `logits: (n, classes)`, a target for each
/// row. Computed in f32 or wider.
///
/// # Errors
/// When there are not as many targets as rows, for a target that is no class, or when the device
/// fails.
pub fn cross_entropy(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    check_targets(targets, logits.dims2()?)?;
    if cpu::takes(logits) {
        let targets = targets.to_vec();
        return logits.contiguous()?.apply_op1(CrossEntropy { targets });
    }
    let logits = match logits.dtype() {
        DType::F16 | DType::BF16 => logits.to_dtype(DType::F32)?,
        _ => logits.clone(),
    };
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let targets = crossing::to_device(targets.to_vec(), (targets.len(), 1), logits.device())?;
    (log_sum - shifted.gather(&targets, D::Minus1)?)?.mean_all()
}

/// Refuses targets that are not as many as rows, or no classes.
pub(super) fn check_targets(targets: &[u32], (n, classes): (usize, usize)) -> Result<()> {
    if targets.len() != n {
        candle_core::bail!("{} targets for {n} rows", targets.len());
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= classes) {
        candle_core::bail!("target {target} of {classes} classes");
    }
    Ok(())
}

/// Rows of `logits: (n, classes)` whose largest number is the target's.
///
/// # Errors
/// When the device fails.
pub fn n_right(logits: &Tensor, targets: &[u32]) -> Result<f64> {
    let best: Vec<u32> = crossing::to_memory(&logits.detach().argmax(D::Minus1)?)?;
    Ok(best.iter().zip(targets).filter(|(a, b)| a == b).count() as f64)
}

/// Classes that were guessed.
#[derive(Clone, Debug)]
pub struct Guessed {
    /// The mean cross entropy over rows, a scalar.
    pub mean: Tensor,
    /// Rows whose target has the largest logit.
    pub n_right: f64,
}

impl Guessed {
    /// By logits, `(n, classes)`, and a target for each row.
    ///
    /// # Errors
    /// As [`cross_entropy`].
    pub fn by(logits: &Tensor, targets: &[u32]) -> Result<Self> {
        Ok(Self {
            mean: cross_entropy(logits, targets)?,
            n_right: n_right(logits, targets)?,
        })
    }
}
