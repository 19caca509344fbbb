//! LARS (You, Gitman and Ginsburg 2017, <https://arxiv.org/abs/1708.03888>) as ZeroVL's linear probe has
//! it.

use std::ops::Range;

use candle_core::{DType, Tensor, Var};
use evaluate::crossing;

use super::clip::square_sum;
use super::{Step, change_in_place};
use crate::{Error, Result};

/// The update rule, with one rate for each variable:
///
/// | | |
/// |---|---|
/// | `local` | `η ‖p‖ / (‖g‖ + wd ‖p‖ + ε)`, and 1 where either norm is 0 |
/// | `u` | `(g + wd p) · local · lr` |
/// | `b` | `momentum · b + u`; `u` in the first step |
/// | `p` | `p − b` |
///
/// The rate is inside of the momentum: a step keeps what earlier steps had of theirs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lars {
    /// Share of the last change that is kept.
    pub momentum: f64,
    /// `η`, the trust in a variable's size.
    pub trust: f64,
    /// Added to the sum of the norms.
    pub epsilon: f64,
}

impl Default for Lars {
    fn default() -> Self {
        Self {
            momentum: 0.9,
            trust: 1e-3,
            epsilon: 1e-8,
        }
    }
}

impl Lars {
    /// The factor on `g + wd p` of a variable, its rate included, by the norms of all of it.
    #[must_use]
    pub fn rate(&self, norm: f64, gradient_norm: f64, rate: f64, decay: f64) -> f64 {
        let local = match norm == 0.0 || gradient_norm == 0.0 {
            true => 1.0,
            false => self.trust * norm / (gradient_norm + decay * norm + self.epsilon),
        };
        local * rate
    }

    /// Moves a variable, or a part of it, and keeps its last change in `b`.
    ///
    /// `rate` is [`Lars::rate`]'s, `scale` multiplies the gradient as it is read.
    ///
    /// # Errors
    /// [`Error::SliceLengths`] when the three lengths differ; nothing has been changed then.
    pub fn update(
        &self,
        (rate, decay, scale): (f64, f64, f64),
        p: &mut [f32],
        g: &[f32],
        b: &mut [f32],
    ) -> Result<()> {
        if [g.len(), b.len()] != [p.len(); 2] {
            return Err(Error::SliceLengths {
                parameter: p.len(),
                gradient: g.len(),
                first_moment: b.len(),
                second_moment: b.len(),
            });
        }
        let [rate, decay, scale, momentum] =
            [rate, decay, scale, self.momentum].map(|number| number as f32);
        for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
            *b = momentum * *b + (g * scale + decay * *p) * rate;
            *p -= *b;
        }
        Ok(())
    }

    /// [`Lars::update`] on the elements `range` of an f32 variable on the CPU. `g` is as long as the whole
    /// variable, `b` as the range; the norms are those of the whole variable.
    ///
    /// # Errors
    /// [`Error::SliceLengths`] when the lengths differ; [`Error::Device`] when the variable is not f32, not
    /// contiguous or not on the CPU.
    pub fn update_in_place(
        &self,
        step: Step,
        variable: &Var,
        g: &[f32],
        range: Range<usize>,
        b: &mut [f32],
    ) -> Result<()> {
        let part = g.get(range.clone()).ok_or_else(|| Error::SliceLengths {
            parameter: range.len(),
            gradient: g.len(),
            first_moment: b.len(),
            second_moment: b.len(),
        })?;
        let gradient_norm = square_sum(g).sqrt() * step.gradient_scale;
        let rate = self.rate(norm(variable)?, gradient_norm, step.rate, step.decay);
        let numbers = (rate, step.decay, step.gradient_scale);
        change_in_place(variable, range, |p| self.update(numbers, p, part, b))
    }

    /// The same step by tensor operations, on any device. Gives the new last change.
    ///
    /// # Errors
    /// [`Error::Device`] when shapes, dtypes or devices differ.
    pub fn update_by_operations(
        &self,
        step: Step,
        variable: &Var,
        gradient: &Tensor,
        b: &Tensor,
    ) -> Result<Tensor> {
        let g = (gradient * step.gradient_scale)?;
        let gradient_norm = f64::from(crossing::number::<f32>(&g.sqr()?.sum_all()?)?).sqrt();
        let rate = self.rate(norm(variable)?, gradient_norm, step.rate, step.decay);
        let change = ((g + (variable.as_tensor() * step.decay)?)? * rate)?;
        let b = ((b * self.momentum)? + change)?.detach();
        variable.set(&(variable.as_tensor() - &b)?.detach())?;
        Ok(b)
    }
}

/// `‖p‖` of a whole variable.
fn norm(variable: &Var) -> Result<f64> {
    let squares = variable.to_dtype(DType::F32)?.sqr()?.sum_all()?;
    Ok(f64::from(crossing::number::<f32>(&squares)?).sqrt())
}
