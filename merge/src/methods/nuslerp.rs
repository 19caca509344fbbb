use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::inner_products::{Products, difference};
use crate::methods::kernels::last_axis;
use crate::methods::kernels::passes::{Look, sums};
use crate::methods::kernels::weighted::{Deltas, Weighted};
use crate::methods::parameters::{Fallback, Kind, ParameterSpec, WEIGHT, weighted_names};
use crate::methods::{
    Base, Chunk, ElementKernel, Elementwise, GroupShape, MergeMethod, Needs, Operation, Value,
    widen,
};
use crate::methods::{Passes, Real, Survey};

/// ## What it does
/// Walks along the great circle between the directions of two models, or, with a base, between their
/// differences from it, which are then added to it: with `t = w₂ / (w₁ + w₂)`, `c` the cosine of the angle
/// and `h = acos c`, `[sin((1 − t) h) v₁ + sin(t h) v₂] / sin h`; the straight line where `1 − c² ≤ 10⁻¹⁶`,
/// and, of vectors that point away from each other, where `1 − c² < 10⁻¹²`: rounding decides their plane.
/// A vector is the whole tensor, or each line along one axis.
/// ## Why
/// As `slerp`, for two weights instead of one, and for differences from a base.
/// ## Cost
/// Two passes over each tensor; with lines along the last axis one.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `weight` | required, per model | any number | weight of the model; equal shares where they add up to 0 |
/// | `nuslerp_flatten` | true | yes, no | all elements of a tensor are one vector |
/// | `nuslerp_row_wise` | false | yes, no | without `nuslerp_flatten`, a vector for each line along the first axis instead of the last |
/// ## References
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for more or fewer than two models beside the base.
#[derive(Clone, Copy, Debug)]
pub struct NuSlerp;

/// Below this a sum of weights says nothing.
const MIN_WEIGHT_SUM: f64 = 1e-6;
/// Least norm that a vector is divided by.
const MIN_NORM: f64 = 1e-7;
/// Up to here the square of the sine counts as zero.
const STRAIGHT: f64 = 1e-16;
/// Likewise of opposite vectors: their plane is rounding, and both factors are about 1 over the sine.
const OPPOSITE: f64 = 1e-12;

impl MergeMethod for NuSlerp {
    fn name(&self) -> &'static str {
        "nuslerp"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Optional, 2, 2)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                WEIGHT,
                ParameterSpec::shared("nuslerp_flatten", Kind::Flag, Fallback::Flag(true)),
                ParameterSpec::shared("nuslerp_row_wise", Kind::Flag, Fallback::Flag(false)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let values = group.values;
        let weights = values.numbers("weight");
        let [first, second] = weights.as_slice() else {
            return Err(crate::MergeFault::MemberCount {
                slot: group.slot.key.clone(),
                method: self.name(),
                wanted: "two inputs beside the base".into(),
                found: weights.len(),
            }
            .into());
        };
        let sum = first + second;
        let t = match sum.abs() < MIN_WEIGHT_SUM {
            true => 0.5,
            false => second / sum,
        };
        let has_base = group.has_base;
        Ok(
            match (
                values.flag("nuslerp_flatten"),
                values.flag("nuslerp_row_wise"),
            ) {
                (true, _) => Operation::Survey(Arc::new(Whole { t, has_base })),
                (false, false) => Operation::Elementwise(Arc::new(ByLine {
                    t,
                    length: last_axis::length(group.shape),
                })),
                (false, true) => Operation::Survey(Arc::new(Columns {
                    t,
                    has_base,
                    n_lines: group.shape.iter().skip(1).product(),
                })),
            },
        )
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let weights = group.values.numbers("weight");
        format!(
            "on the great circle, {}",
            weighted_names(&weights, group.members)
        )
    }
}

/// The factors of both vectors, from `v₁·v₁`, `v₁·v₂` and `v₂·v₂`.
fn factors(aa: f64, ab: f64, bb: f64, t: f64) -> (f64, f64) {
    let norms = aa.sqrt().max(MIN_NORM) * bb.sqrt().max(MIN_NORM);
    let cosine = (ab / norms).clamp(-1.0, 1.0);
    let square = 1.0 - cosine * cosine;
    if square <= STRAIGHT || (cosine < 0.0 && square < OPPOSITE) {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    let sine = angle.sin();
    (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
}

struct Whole {
    t: f64,
    has_base: bool,
}

impl Survey for Whole {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let products = Products::of_members(data, 2, self.has_base)?;
        let (aa, ab, bb) = (products.at(0, 0), products.at(0, 1), products.at(1, 1));
        let (p, q) = factors(aa, ab, bb, self.t);
        Ok(match self.has_base {
            true => Arc::new(Deltas(vec![p, q])),
            false => Arc::new(Weighted {
                base: None,
                members: vec![p, q],
            }),
        })
    }
}

/// Lines along the last axis: each lies within a chunk.
struct ByLine {
    t: f64,
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
        for first in (0..out.len()).step_by(self.length) {
            let mut base = vec![T::ZERO; self.length];
            if let Some(stored) = chunk.base {
                widen(&stored[first..first + self.length], &mut base);
            }
            let vectors: Vec<Vec<T>> = last_axis::of(chunk.members, first, self.length)
                .iter()
                .map(|line| difference(line, &base))
                .collect();
            let [a, b] = vectors.as_slice() else { return };
            let products = Products::of_vectors(&[a, b]);
            let (aa, ab, bb) = (products.at(0, 0), products.at(0, 1), products.at(1, 1));
            let (p, q) = factors(aa, ab, bb, self.t);
            let (p, q) = (T::from_f64(p), T::from_f64(q));
            let places = out[first..first + self.length].iter_mut().zip(&base);
            for (((out, &base), &a), &b) in places.zip(a).zip(b) {
                *out = base + (p * a + q * b);
            }
        }
    }
}

/// Lines along the first axis: element `i` belongs to line `i mod n_lines`.
struct Columns {
    t: f64,
    has_base: bool,
    n_lines: usize,
}

impl Survey for Columns {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let found = sums(data, 3 * self.n_lines, self)?;
        let factors = found.chunks(3);
        let factors = factors.map(|line| factors_of(line, self.t)).collect();
        Ok(Arc::new(ByColumn(factors)))
    }
}

fn factors_of(line: &[f64], t: f64) -> (f64, f64) {
    factors(line[0], line[1], line[2], t)
}

impl Look for Columns {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        let mut note = vec![0.0; 3 * self.n_lines];
        let [a, b] = chunk.members else { return note };
        for index in 0..a.len() {
            let base = match chunk.base {
                Some(base) if self.has_base => base[index].real(),
                _ => T::ZERO,
            };
            let apart = |value: V| (value.real() - base).to_f64();
            let (a, b) = (apart(a[index]), apart(b[index]));
            let line = 3 * ((chunk.first + index) % self.n_lines);
            note[line] += a * a;
            note[line + 1] += a * b;
            note[line + 2] += b * b;
        }
        note
    }
}

struct ByColumn(Vec<(f64, f64)>);

impl Elementwise for ByColumn {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let [a, b] = chunk.members else { return };
        for (index, out) in out.iter_mut().enumerate() {
            let base = chunk.base.map_or(T::ZERO, |base| base[index].real());
            let (p, q) = self.0[(chunk.first + index) % self.0.len()];
            let (a, b) = (a[index].real() - base, b[index].real() - base);
            let sum = T::from_f64(p) * a + T::from_f64(q) * b;
            *out = base + sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_opposite_vectors_are_mixed_along_the_straight_line() {
        // `1 − c²` should be 0: `(1 − t) v + t (−2 v)`. For some vectors it rounds to 2.2e-16.
        for n in 1..200 {
            let v: Vec<f32> = (0..n).map(|i| ((i * i + n) as f32 * 0.37).sin()).collect();
            let w: Vec<f32> = v.iter().map(|x| -2.0 * x).collect();
            let products = Products::of_vectors(&[v.as_slice(), w.as_slice()]);
            let (aa, ab, bb) = (products.at(0, 0), products.at(0, 1), products.at(1, 1));
            assert_eq!(factors(aa, ab, bb, 0.25), (0.75, 0.25), "{n}");
        }
    }

    #[test]
    fn a_cosine_that_rounds_to_a_hair_above_minus_one_is_straight_and_an_angle_is_not() {
        // c = −1 + 1.1e-16: 1 − c² is 2.2e-16.
        let next = -1.0 + f64::EPSILON / 2.0;
        assert_eq!(factors(1.0, next, 1.0, 0.5), (0.5, 0.5));
        // 120 degrees: sin 60° / sin 120° = 1.
        let (p, q) = factors(1.0, -0.5, 1.0, 0.5);
        assert!((p - 1.0).abs() < 1e-14 && (q - 1.0).abs() < 1e-14);
        // 1 − c² = 1e-10 is an angle still: 1e-5 less than π, so sin(h / 2) / sin h is 1 / 1e-5.
        let (p, _) = factors(1.0, -(1.0f64 - 1e-10).sqrt(), 1.0, 0.5);
        assert!((p * 1e-5 - 1.0).abs() < 1e-4, "{p}");
    }
}
