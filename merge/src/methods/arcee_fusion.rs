use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::last_axis;
use crate::methods::kernels::passes::{Look, notes};
use crate::methods::kernels::two_ends;
use crate::methods::parameters::ParameterSpec;
use crate::methods::ranking::by_count::{Measure, Rank, find};
use crate::methods::{
    Chunk, ElementKernel, Elementwise, GroupShape, MergeMethod, Needs, Operation, Passes, Value,
    reals,
};
use crate::methods::{Real, Survey};

/// ## What it does
/// Takes the other model's elements where they matter most: an element's importance is its difference from
/// the base times the divergence `Σ P ln(P/Q)` of its line, where P and Q are the softmax of the two models'
/// weights along the last axis (plus 10⁻⁸). Elements whose importance is at least the median plus 1.5
/// interquartile ranges are taken over, all others are the base's.
///
/// The quartiles are exact; mergekit draws a sample of tensors above a million elements.
/// ## Why
/// Most differences between two models matter little. The divergence of their lines finds those that matter.
/// ## Cost
/// Several passes over each tensor, because the quartiles are exact; in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | - | | | none |
/// ## References
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for more or fewer than two inputs.
#[derive(Clone, Copy, Debug)]
pub struct ArceeFusion;

/// Added to every probability.
const FLOOR: f64 = 1e-8;

impl MergeMethod for ArceeFusion {
    fn name(&self) -> &'static str {
        "arcee_fusion"
    }

    fn needs(&self) -> Needs {
        Needs::two_ends()
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        two_ends::check(group, self.name())?;
        Ok(Operation::Survey(Arc::new(Fuse {
            length: last_axis::length(group.shape),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let (a, b) = two_ends::names(group);
        format!("{a}, with the most important elements of {b}")
    }
}

struct Fuse {
    /// Elements of a line.
    length: usize,
}

impl Survey for Fuse {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let divergences: Vec<f64> = notes(data, self)?.concat();
        let importance = Importance {
            length: self.length,
            divergences,
        };
        let n = data.n_elements();
        let quantile = |share: f64| Rank {
            row: 0,
            rank: (share * (n.saturating_sub(1)) as f64) as u64,
        };
        let ranks = [quantile(0.25), quantile(0.5), quantile(0.75)];
        let found = find(data, &importance, &ranks)?;
        let value = |index: usize| match data.is_double() {
            true => f64::from_bits(found[index].key),
            false => f64::from(f32::from_bits(found[index].key as u32)),
        };
        Ok(Arc::new(Replace {
            threshold: value(1) + 1.5 * (value(2) - value(0)),
            importance,
        }))
    }

    fn unit(&self) -> usize {
        self.length
    }
}

impl Look for Fuse {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        let (base, other) = two_ends::of(chunk);
        let pairs = base.chunks(self.length).zip(other.chunks(self.length));
        pairs.map(|(base, other)| divergence(other, base)).collect()
    }
}

/// `Σ P ln(P/Q)` of two lines' softmax.
fn divergence<V: Value>(p: &[V], q: &[V]) -> f64 {
    let softmax = |values: &[V]| -> Vec<f64> {
        let values = reals(values).map(Real::to_f64);
        let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = values.map(|value| (value - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.iter().map(|power| power / sum + FLOOR).collect()
    };
    let (p, q) = (softmax(p), softmax(q));
    p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum()
}

struct Importance {
    length: usize,
    divergences: Vec<f64>,
}

impl Measure for Importance {
    fn measure<T: Real, V: Value<Real = T>>(
        &self,
        _: usize,
        chunk: &Chunk<'_, V>,
        first: usize,
        out: &mut [T],
    ) {
        let (base, other) = two_ends::of(chunk);
        for (index, out) in out.iter_mut().enumerate() {
            let at = first + index;
            let line = (chunk.first + at) / self.length;
            let factor = self.divergences.get(line).copied().unwrap_or_default();
            // Rounding may leave the divergence of equal lines just below zero.
            let apart = (other[at].real() - base[at].real()).abs() * T::from_f64(factor);
            *out = if apart > T::ZERO { apart } else { T::ZERO };
        }
    }
}

struct Replace {
    importance: Importance,
    threshold: f64,
}

impl Elementwise for Replace {
    fn unit(&self) -> usize {
        self.importance.length
    }

    // Must be part of its caller, which chooses the vector instructions.
    #[inline(always)]
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        _: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let (base, other) = two_ends::of(chunk);
        let threshold = T::from_f64(self.threshold);
        self.importance.measure(0, chunk, 0, out);
        for ((out, base), other) in out.iter_mut().zip(reals(base)).zip(reals(other)) {
            *out = if *out >= threshold { other } else { base };
        }
    }
}
