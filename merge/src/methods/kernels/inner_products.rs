//! Inner products of a group's inputs, from which angles and norms of any of their sums follow.

use crate::Result;
use crate::methods::kernels::passes::{Look, sums};
use crate::methods::kernels::sums::dot;
use crate::methods::{Chunk, Passes, Real, Value, reals};

/// A sum of unit vectors that cancel is shorter than this by rounding alone: its square is a difference of products,
/// each with an error near 1e-16.
pub(in crate::methods) const CANCELED: f64 = 1e-7;

/// The products `vᵢ · vⱼ` of a group's inputs (minus the base, if so asked), in `f64`.
pub(in crate::methods) struct Products {
    n: usize,
    values: Vec<f64>,
}

impl Products {
    /// Of the members, or of their differences from the base if `from_base`.
    pub(in crate::methods) fn of_members(
        data: &dyn Passes,
        n: usize,
        from_base: bool,
    ) -> Result<Self> {
        let look = Pairs { n, from_base };
        let values = sums(data, n * n, &look)?;
        Ok(Self { n, values })
    }

    /// Of given vectors.
    pub(in crate::methods) fn of_vectors<V: Value>(vectors: &[&[V]]) -> Self {
        let n = vectors.len();
        let mut values = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let product = dot(vectors[i], vectors[j]);
                values[i * n + j] = product;
                values[j * n + i] = product;
            }
        }
        Self { n, values }
    }

    /// `vᵢ · vⱼ`.
    pub(in crate::methods) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.n + j]
    }

    /// `|vᵢ|`.
    pub(in crate::methods) fn norm(&self, i: usize) -> f64 {
        self.at(i, i).sqrt()
    }

    /// `(Σ aᵢ vᵢ) · (Σ bⱼ vⱼ)`.
    pub(in crate::methods) fn between(&self, a: &[f64], b: &[f64]) -> f64 {
        let mut sum = 0.0;
        for (i, &a) in a.iter().enumerate() {
            for (j, &b) in b.iter().enumerate() {
                sum += a * b * self.at(i, j);
            }
        }
        sum
    }

    /// `|Σ aᵢ vᵢ|`.
    pub(in crate::methods) fn norm_of(&self, a: &[f64]) -> f64 {
        self.between(a, a).max(0.0).sqrt()
    }
}

struct Pairs {
    n: usize,
    from_base: bool,
}

impl Look for Pairs {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        if !self.from_base {
            return Products::of_vectors(chunk.members).values;
        }
        let deltas: Vec<Vec<T>> = (chunk.members.iter())
            .map(|member| difference(member, chunk.base.unwrap_or_default()))
            .collect();
        let deltas: Vec<&[T]> = deltas.iter().map(Vec::as_slice).collect();
        debug_assert_eq!(deltas.len(), self.n);
        Products::of_vectors(&deltas).values
    }
}

/// `a − b`.
pub(in crate::methods) fn difference<V: Value>(
    a: &[V],
    b: &[impl Value<Real = V::Real>],
) -> Vec<V::Real> {
    reals(a).zip(reals(b)).map(|(a, b)| a - b).collect()
}
