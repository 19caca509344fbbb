//! The step on candle's tensors: in place on the CPU, by tensor operations elsewhere.

use std::ops::Range;

use candle_core::{Tensor, Var};

use super::{AdamW, Step};
use crate::optim::change_in_place;
use crate::{Error, Result};

impl AdamW {
    /// [`AdamW::update`] on the elements `range` of an f32 variable on the CPU, in row-major order,
    /// without a copy of it. `g` is as long as the whole variable, `m` and `v` as the range.
    ///
    /// # Errors
    /// [`Error::SliceLengths`] when the lengths differ; [`Error::Device`] when the variable is not
    /// f32, not contiguous or not on the CPU.
    pub fn update_in_place(
        &self,
        step: Step,
        variable: &Var,
        g: &[f32],
        range: Range<usize>,
        m: &mut [f32],
        v: &mut [f32],
    ) -> Result<()> {
        let g = g.get(range.clone()).ok_or_else(|| Error::SliceLengths {
            parameter: range.len(),
            gradient: g.len(),
            first_moment: m.len(),
            second_moment: v.len(),
        })?;
        change_in_place(variable, range, |p| self.update(step, p, g, m, v))
    }

    /// The same step by tensor operations, on any device. Gives the new moments.
    ///
    /// # Errors
    /// [`Error::Device`] when shapes, dtypes or devices differ.
    pub fn update_by_operations(
        &self,
        step: Step,
        variable: &Var,
        gradient: &Tensor,
        m: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let factors = self.factors(step);
        let g = (gradient * factors.gradient)?;
        let m = ((m * self.beta1)? + (&g * (1.0 - self.beta1))?)?;
        let v = ((v * self.beta2)? + (g.sqr()? * (1.0 - self.beta2))?)?;
        let root = v.sqrt()?.affine(factors.root, self.epsilon)?;
        let change = (m.div(&root)? * factors.step)?;
        let moved = ((variable.as_tensor() * factors.kept_before)? - change)?;
        let moved = (&moved - (&moved * factors.lost_after)?)?;
        variable.set(&moved.detach())?;
        Ok((m.detach(), v.detach()))
    }
}
