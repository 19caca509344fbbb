//! Finds the elements that several models changed: the step that ram and ramplus_tl share.

use crate::Result;
use crate::methods::kernels::passes::{Count, tally};
use crate::methods::parameters::{Fallback, NOT_NEGATIVE, ParameterSpec};
use crate::methods::ranking::by_count::length;
use crate::methods::{Chunk, Elementwise, Passes, Real, Value, reals, widen};

/// From which difference on an input counts as active.
pub(in crate::methods) const EPSILON: ParameterSpec =
    ParameterSpec::shared("epsilon", NOT_NEGATIVE, Fallback::Number(1e-5));

/// Adds active differences; divides by their number, or multiplies one that is alone.
pub(in crate::methods) struct Overlap {
    pub(in crate::methods) epsilon: f64,
    /// Factor on each member's difference where no other is active.
    pub(in crate::methods) lone: Vec<f64>,
}

impl Elementwise for Overlap {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let base = chunk.base.unwrap_or_default();
        let epsilon = T::from_f64(self.epsilon);
        let mut active = vec![T::ZERO; out.len()];
        let delta = |value: T, base: T| step(value - base);
        for member in chunk.members {
            for ((active, value), base) in active.iter_mut().zip(reals(member)).zip(reals(base)) {
                let is_active = delta(value, base).abs() > epsilon;
                *active += if is_active { T::ONE } else { T::ZERO };
            }
        }
        widen(base, out);
        for (member, &lone) in chunk.members.iter().zip(&self.lone) {
            let lone = T::from_f64(lone);
            let inputs = active.iter().zip(reals(member)).zip(reals(base));
            for (out, ((&active, value), base)) in out.iter_mut().zip(inputs) {
                let delta = delta(value, base);
                let factor = if active > T::ONE {
                    T::ONE / active
                } else {
                    lone
                };
                let term = if delta.abs() > epsilon {
                    delta * factor
                } else {
                    T::ZERO
                };
                *out = step(*out + step(term));
            }
        }
    }
}

/// For each member, the number of elements that it changed with others and alone.
pub(in crate::methods) fn overlaps(
    data: &dyn Passes,
    epsilon: f64,
    n_members: usize,
) -> Result<Vec<(u64, u64)>> {
    let counts = tally(data, 1, 2 * n_members, &Shared(epsilon))?;
    Ok(counts.chunks(2).map(|pair| (pair[0], pair[1])).collect())
}

struct Shared(f64);

impl Count for Shared {
    fn count<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        counts: &mut [u64],
    ) {
        let base = chunk.base.unwrap_or_default();
        let epsilon = T::from_f64(self.0);
        let is_active = |member: &[V], index: usize| {
            (member[index].real() - base[index].real()).abs() > epsilon
        };
        for index in 0..length(chunk) {
            let members = chunk.members.iter();
            let n_active = members.filter(|member| is_active(member, index)).count();
            for (member, counts) in chunk.members.iter().zip(counts.chunks_mut(2)) {
                if is_active(member, index) {
                    counts[usize::from(n_active == 1)] += 1;
                }
            }
        }
    }
}
