use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::two_ends;
use crate::methods::parameters::{FINITE, Fallback, ParameterSpec};
use crate::methods::{
    Chunk, Elementwise, GroupShape, MergeMethod, Needs, Operation, Real, Value, reals,
};

/// ## What it does
/// Takes over the other model's values where they are near the base's: with
/// `w = clamp(t / max(|a − b|, 10⁻⁶), 0, 1)`, `W = w b + (1 − w) a`. Differences below `t` are taken whole,
/// larger ones move by `t`.
/// ## Why
/// Small differences pass for refinements, large ones for other knowledge, which the base keeps.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `t` | required | any number | the greatest move |
/// ## References
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for more or fewer than two inputs.
#[derive(Clone, Copy, Debug)]
pub struct NearSwap;

impl MergeMethod for NearSwap {
    fn name(&self) -> &'static str {
        "nearswap"
    }

    fn needs(&self) -> Needs {
        Needs::two_ends()
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[ParameterSpec::shared("t", FINITE, Fallback::Required)] }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        two_ends::check(group, self.name())?;
        Ok(Operation::Elementwise(Arc::new(Near(
            group.values.number("t"),
        ))))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let (a, b) = two_ends::names(group);
        format!(
            "{a}, moved towards {b} by at most {}",
            group.values.number("t")
        )
    }
}

struct Near(f64);

impl Elementwise for Near {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let (t, least) = (T::from_f64(self.0), T::from_f64(1e-6));
        let (a, b) = two_ends::of(chunk);
        for ((out, a), b) in out.iter_mut().zip(reals(a)).zip(reals(b)) {
            let apart = step(a - b).abs();
            let share = t / if apart > least { apart } else { least };
            let share = if share > T::ONE { T::ONE } else { share };
            let share = if share < T::ZERO { T::ZERO } else { share };
            *out = step(step(share * b) + step((T::ONE - share) * a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{ElementKernel, StepRounding};

    #[test]
    fn near_values_are_taken_and_far_ones_move_by_t() {
        let chunk = Chunk {
            members: &[&[1.25, 3.0, 1.0]],
            base: Some(&[1.0, 1.0, 1.0]),
            paired: &[],
            first: 0,
        };
        let mut out = [0.0; 3];
        Near(0.5)
            .combine_f64(&chunk, StepRounding::None, &mut out)
            .expect("it cannot fail");
        assert_eq!(out, [1.25, 1.5, 1.0]);
    }
}
