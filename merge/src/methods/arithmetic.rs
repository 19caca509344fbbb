use std::sync::Arc;

use crate::Result;
use crate::methods::{
    Base, Chunk, Elementwise, GroupShape, MergeMethod, Needs, Operation, Real, Value, reals, widen,
};
use crate::recipe::Parameters;

/// ## What it does
/// Adds the task vector of each expert to the seed: `W = W⁰ + λ Σₑ (Wₑ − W⁰)`, where W⁰ is the seed that
/// all experts were started from. A lone expert is kept as it is, as in the published program.
/// ## Why
/// Each expert keeps the direction in which it went from the seed, and `lambda` says how far the seed follows.
/// ## Cost
/// One pass over each tensor, in bounded memory. The seed is one more input.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `lambda` | 1 | any finite number | factor on the task vectors |
/// ## As published
/// The published program adds into the seed in place, so each further expert is measured from the
/// point already reached: `W¹ = W⁰ + λ(W_v − W⁰)`, `W² = W¹ + λ(W_l − W¹)`, and so on. With two
/// experts that is `s + λΔ₁ + λΔ₂ − λ²Δ₁`; at λ = 1 the last expert wins. f16 and bf16 are rounded
/// after each operation.
/// ## References
/// Sung et al. 2023, "An Empirical Study of Multimodal Model Merging",
/// <https://arxiv.org/abs/2304.14933>, modality arithmetic.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    /// Factor on the task vectors.
    pub lambda: f64,
    /// Measure each further expert from the point already reached, as the published program does.
    pub in_place: bool,
}

impl Arithmetic {
    /// Reads `lambda`.
    ///
    /// # Errors
    /// When a parameter is unknown or out of range.
    pub fn from_parameters(parameters: &Parameters, as_published: bool) -> Result<Self> {
        parameters.allow_only("arithmetic", &["lambda"])?;
        Ok(Self {
            lambda: parameters.number("lambda", 1.0, "a finite number", |_| true)?,
            in_place: as_published,
        })
    }
}

impl MergeMethod for Arithmetic {
    fn name(&self) -> &'static str {
        "arithmetic"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 1, usize::MAX)
    }

    fn is_for_experts(&self) -> bool {
        true
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        Ok(match group.experts.len() {
            1 => Operation::Take(0),
            _ if self.in_place => Operation::Elementwise(Arc::new(InPlace(self.lambda))),
            _ => Operation::Elementwise(Arc::new(FromSeed(self.lambda))),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let names = group.labels();
        match (names.as_slice(), self.in_place) {
            ([lone], _) => lone.clone(),
            (_, false) => format!("seed + {} ({} - seed each)", self.lambda, names.join(" + ")),
            (_, true) => format!("seed, then {} towards {}", self.lambda, names.join(", ")),
        }
    }
}

/// `base + λ Σ (member − base)`.
struct FromSeed(f64);

impl Elementwise for FromSeed {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let lambda = T::from_f64(self.0);
        let base = chunk.base.unwrap_or_default();
        match *chunk.members {
            [a, b] => {
                let inputs = reals(base).zip(reals(a)).zip(reals(b));
                for (out, ((s, a), b)) in out.iter_mut().zip(inputs) {
                    let sum = step(step(a - s) + step(b - s));
                    *out = step(s + step(lambda * sum));
                }
            }
            ref members => {
                out.fill(T::from_f64(0.0));
                for member in members {
                    for ((out, s), value) in out.iter_mut().zip(reals(base)).zip(reals(member)) {
                        *out = step(*out + step(value - s));
                    }
                }
                for (out, s) in out.iter_mut().zip(reals(base)) {
                    *out = step(s + step(lambda * *out));
                }
            }
        }
    }
}

/// `x ← x + λ (member − x)` for each member in turn, starting from the base.
struct InPlace(f64);

impl Elementwise for InPlace {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let lambda = T::from_f64(self.0);
        widen(chunk.base.unwrap_or_default(), out);
        for member in chunk.members {
            for (out, value) in out.iter_mut().zip(reals(member)) {
                *out = step(*out + step(lambda * step(value - *out)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::methods::{ElementKernel, StepRounding};

    /// Experts v = 2, l = 4, vl = 8 around a seed of 1; values are the specification's table.
    fn merged(kernel: &dyn ElementKernel, members: &[&[f64]]) -> f64 {
        let mut out = [0.0];
        let chunk = Chunk {
            members,
            base: Some(&[1.0]),
            paired: &[],
            first: 0,
        };
        kernel
            .combine_f64(&chunk, StepRounding::None, &mut out)
            .expect("it cannot fail");
        out[0]
    }

    #[test]
    fn the_paper_formula_adds_all_task_vectors_to_the_seed() {
        for (lambda, shallow, deep) in [
            (0.25, 2.0, 3.75),
            (0.5, 3.0, 6.5),
            (0.75, 4.0, 9.25),
            (1.0, 5.0, 12.0),
        ] {
            assert_eq!(merged(&FromSeed(lambda), &[&[2.0], &[4.0]]), shallow);
            assert_eq!(merged(&FromSeed(lambda), &[&[2.0], &[4.0], &[8.0]]), deep);
        }
    }

    #[test]
    fn the_published_program_moves_the_origin() {
        for (lambda, shallow, deep) in [
            (0.25, 1.9375, 3.453_125),
            (0.5, 2.75, 5.375),
            (0.75, 3.4375, 6.859_375),
            (1.0, 4.0, 8.0),
        ] {
            assert_eq!(merged(&InPlace(lambda), &[&[2.0], &[4.0]]), shallow);
            assert_eq!(merged(&InPlace(lambda), &[&[2.0], &[4.0], &[8.0]]), deep);
        }
    }
}
