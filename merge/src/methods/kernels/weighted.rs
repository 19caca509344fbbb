//! Two kernels that most methods end in: a weighted sum, and a base with weighted differences.

use crate::methods::{Chunk, Elementwise, Real, Value, reals};

/// `out = base · b + Σ memberₖ · xₖ`.
pub(in crate::methods) struct Weighted {
    /// Factor on the base, where there is one.
    pub(in crate::methods) base: Option<f64>,
    /// Factor on each member.
    pub(in crate::methods) members: Vec<f64>,
}

impl Elementwise for Weighted {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let base = self.base.zip(chunk.base);
        let weights: Vec<T> = self.members.iter().map(|&w| T::from_f64(w)).collect();
        match (base, chunk.members, weights.as_slice()) {
            (Some((p, a)), &[b], &[q]) => {
                let p = T::from_f64(p);
                for ((out, a), b) in out.iter_mut().zip(reals(a)).zip(reals(b)) {
                    *out = step(step(p * a) + step(q * b));
                }
            }
            (None, &[a, b], &[p, q]) => {
                for ((out, a), b) in out.iter_mut().zip(reals(a)).zip(reals(b)) {
                    *out = step(step(p * a) + step(q * b));
                }
            }
            (base, members, weights) => {
                match base {
                    None => out.fill(T::ZERO),
                    Some((p, base)) => {
                        let p = T::from_f64(p);
                        for (out, value) in out.iter_mut().zip(reals(base)) {
                            *out = step(p * value);
                        }
                    }
                }
                for (member, &weight) in members.iter().zip(weights) {
                    for (out, value) in out.iter_mut().zip(reals(member)) {
                        *out = step(*out + step(weight * value));
                    }
                }
            }
        }
    }
}

/// `out = b + Σ memberₖ · (xₖ − b)`.
pub(in crate::methods) struct Deltas(pub(in crate::methods) Vec<f64>);

impl Elementwise for Deltas {
    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let base = chunk.base.unwrap_or_default();
        let weights: Vec<T> = self.0.iter().map(|&w| T::from_f64(w)).collect();
        match (chunk.members, weights.as_slice()) {
            (&[x, y], &[p, q]) => {
                let inputs = reals(base).zip(reals(x)).zip(reals(y));
                for (out, ((b, x), y)) in out.iter_mut().zip(inputs) {
                    let sum = step(step(p * step(x - b)) + step(q * step(y - b)));
                    *out = step(b + sum);
                }
            }
            (members, weights) => {
                out.fill(T::ZERO);
                for (member, &weight) in members.iter().zip(weights) {
                    for ((out, b), value) in out.iter_mut().zip(reals(base)).zip(reals(member)) {
                        *out = step(*out + step(weight * step(value - b)));
                    }
                }
                for (out, b) in out.iter_mut().zip(reals(base)) {
                    *out = step(b + *out);
                }
            }
        }
    }
}
