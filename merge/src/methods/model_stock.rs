use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::inner_products::{Products, difference};
use crate::methods::kernels::last_axis;
use crate::methods::kernels::weighted::Deltas;
use crate::methods::parameters::{Fallback, Kind, ParameterSpec};
use crate::methods::{
    Base, Chunk, ElementKernel, Elementwise, GroupShape, MergeMethod, Needs, Operation, Value,
};
use crate::methods::{Passes, Real, Survey};

/// ## What it does
/// Goes from the base towards the mean of the models as far as the angles between them say: with `c` the
/// mean cosine between their differences from the base, `t = n c / (1 + (n − 1) c)` and
/// `W = t mean(xᵢ) + (1 − t) b`. All elements of a tensor are one vector, or each line along the last axis.
/// ## Why
/// Fine-tuned models scatter around a center that none of them reaches. The angle between them tells how far the
/// center is, without data.
/// ## Cost
/// Two passes over each tensor; with `filter_wise` one.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `filter_wise` | false | yes, no | a vector for each line along the last axis |
/// ## References
/// Jang et al. 2024, "Model Stock", <https://arxiv.org/abs/2403.19522>.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for fewer than two models beside the base.
#[derive(Clone, Copy, Debug)]
pub struct ModelStock;

/// Least product of norms that a cosine is divided by, and least denominator of `t`, as in mergekit.
const FLOOR: f64 = 1e-6;

impl MergeMethod for ModelStock {
    fn name(&self) -> &'static str {
        "model_stock"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 2, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[ParameterSpec::shared(
                "filter_wise",
                Kind::Flag,
                Fallback::Flag(false),
            )]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let n_members = group.members.len();
        if group.values.flag("filter_wise") {
            return Ok(Operation::Elementwise(Arc::new(ByLine {
                length: last_axis::length(group.shape),
            })));
        }
        Ok(Operation::Survey(Arc::new(Whole { n_members })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!("base towards the mean of {}", group.labels().join(", "))
    }
}

/// `t`, from the products of the differences.
fn step(products: &Products, n: usize) -> f64 {
    let mut cosines = 0.0;
    for i in 0..n {
        for j in 0..i {
            let norms = (products.norm(i) * products.norm(j)).max(FLOOR);
            cosines += (products.at(i, j) / norms).clamp(-1.0, 1.0);
        }
    }
    let pairs = (n * n.saturating_sub(1) / 2).max(1);
    let cosine = cosines / pairs as f64;
    let denominator = 1.0 + (n as f64 - 1.0) * cosine;
    match denominator.abs() < FLOOR {
        true => 0.0,
        false => n as f64 * cosine / denominator,
    }
}

struct Whole {
    n_members: usize,
}

impl Survey for Whole {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let n = self.n_members;
        let products = Products::of_members(data, n, true)?;
        Ok(Arc::new(Deltas(vec![step(&products, n) / n as f64; n])))
    }
}

struct ByLine {
    length: usize,
}

impl Elementwise for ByLine {
    fn unit(&self) -> usize {
        self.length
    }

    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let base = chunk.base.unwrap_or_default();
        let n = chunk.members.len();
        for first in (0..out.len()).step_by(self.length) {
            let base = &base[first..first + self.length];
            let members = last_axis::of(chunk.members, first, self.length);
            let deltas: Vec<Vec<T>> = members.iter().map(|line| difference(line, base)).collect();
            let deltas: Vec<&[T]> = deltas.iter().map(Vec::as_slice).collect();
            let share = T::from_f64(step(&Products::of_vectors(&deltas), n) / n as f64);
            for (index, out) in out[first..first + self.length].iter_mut().enumerate() {
                let mut sum = T::ZERO;
                for delta in &deltas {
                    sum += delta[index];
                }
                *out = base[index].real() + share * sum;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_that_agree_are_taken_and_perpendicular_ones_are_not() {
        let same: [&[f64]; 2] = [&[1.0, 0.0], &[2.0, 0.0]];
        assert!((step(&Products::of_vectors(&same), 2) - 1.0).abs() < 1e-12);
        let apart: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 2.0]];
        assert_eq!(step(&Products::of_vectors(&apart), 2), 0.0);
        // c = 1/2: t = 2 · ½ / (1 + ½) = 2/3.
        let third: [&[f64]; 2] = [&[1.0, 0.0], &[0.5, 0.75f64.sqrt()]];
        assert!((step(&Products::of_vectors(&third), 2) - 2.0 / 3.0).abs() < 1e-12);
    }
}
