//! The share of examples whose largest logit is that of the right class.

use ndarray::{ArrayView1, ArrayView2};

use crate::{Error, Result};

/// Examples with this target are left out.
pub const IGNORED_TARGET: i64 = -100;

/// The class with the largest logit; of several, the first. `None` without classes.
///
/// # Example
/// ```
/// let logits = ndarray::arr1(&[0.5, 2.0, 2.0]);
/// assert_eq!(evaluate::metrics::accuracy::argmax(logits.view()), Some(1));
/// ```
#[must_use]
pub fn argmax(logits: ArrayView1<'_, f32>) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (class, &logit) in logits.iter().enumerate() {
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((class, logit));
        }
    }
    best.map(|(class, _)| class)
}

/// Accuracy of `logits: (examples, classes)`; targets of [`IGNORED_TARGET`] do not count. `None`
/// when none counts.
///
/// # Errors
/// [`Error::LengthsDiffer`], [`Error::NoSuchClass`].
pub fn accuracy(logits: ArrayView2<'_, f32>, targets: &[i64]) -> Result<Option<f64>> {
    if logits.nrows() != targets.len() {
        return Err(Error::LengthsDiffer {
            what: "logits and targets",
            left: logits.nrows(),
            right: targets.len(),
        });
    }
    let (mut n_right, mut n) = (0u32, 0u32);
    for (example, (row, &target)) in logits.rows().into_iter().zip(targets).enumerate() {
        if target == IGNORED_TARGET {
            continue;
        }
        let class = usize::try_from(target)
            .ok()
            .filter(|&class| class < logits.ncols())
            .ok_or(Error::NoSuchClass {
                target,
                example,
                n_classes: logits.ncols(),
            })?;
        n += 1;
        n_right += u32::from(argmax(row) == Some(class));
    }
    Ok((n > 0).then(|| f64::from(n_right) / f64::from(n)))
}
