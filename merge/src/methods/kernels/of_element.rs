//! Methods that make each element of its own task vectors, in `f64`.

use crate::methods::{Chunk, Elementwise, Masks, Real, Value};

/// The number that a method adds to an element of the base.
pub(in crate::methods) trait OfElement: Send + Sync {
    /// For an element with these differences from the base, one a model.
    fn change(&self, deltas: &[f64]) -> f64;

    /// As [`Elementwise::masks`].
    fn masks(&self) -> Option<&dyn Masks> {
        None
    }
}

impl<F: Fn(&[f64]) -> f64 + Send + Sync> OfElement for F {
    fn change(&self, deltas: &[f64]) -> f64 {
        self(deltas)
    }
}

/// The kernel of such a method; differences are exact, and the result is rounded once.
pub(in crate::methods) struct EachElement<M>(pub(in crate::methods) M);

impl<M: OfElement> Elementwise for EachElement<M> {
    fn masks(&self) -> Option<&dyn Masks> {
        self.0.masks()
    }

    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        each(chunk, |index, base, deltas| {
            out[index] = T::from_f64(base + self.0.change(deltas));
        });
    }
}

/// Hands over each element of a chunk: its number in the chunk, the base's value and the differences from it.
#[inline(always)]
pub(crate) fn each<V: Value>(chunk: &Chunk<'_, V>, mut see: impl FnMut(usize, f64, &[f64])) {
    let base = chunk.base.unwrap_or_default();
    let mut deltas = vec![0.0; chunk.members.len()];
    for (index, base) in base.iter().enumerate() {
        let base = base.real().to_f64();
        for (delta, member) in deltas.iter_mut().zip(chunk.members) {
            *delta = member[index].real().to_f64() - base;
        }
        see(index, base, &deltas);
    }
}
