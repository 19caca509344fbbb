//! How alike the things of two models are, and the order that makes the most of it.

use ndarray::{Array2, Axis};

use super::axes::{Group, Segment};
use crate::linear_algebra::spectral::product;
use crate::mixtures::assign;

/// How alike each thing of one model and each of the other are.
pub(super) struct Similarity<'a> {
    group: &'a Group,
    /// Of all.
    of_each: Array2<f64>,
    /// Of heads of keys.
    of_outer: Array2<f64>,
}

impl<'a> Similarity<'a> {
    pub(super) fn new(group: &'a Group) -> Self {
        let n_outer = group.n_outer();
        Self {
            group,
            of_each: Array2::zeros((group.n, group.n)),
            of_outer: Array2::zeros((n_outer, n_outer)),
        }
    }

    /// Adds the inner products of what both models have of each thing, with a row for each number along an axis of which
    /// `segment` holds the things.
    pub(super) fn add(&mut self, own: &Array2<f64>, theirs: &Array2<f64>, segment: &Segment) {
        let (sum, n) = match segment.is_outer {
            true => (&mut self.of_outer, self.group.n_outer()),
            false => (&mut self.of_each, self.group.n),
        };
        let of_each = |matrix: &Array2<f64>| {
            let width = matrix.ncols() * segment.len;
            let part = matrix.slice_axis(
                Axis(0),
                (segment.start..segment.start + n * segment.len).into(),
            );
            let values: Vec<f64> = part.iter().copied().collect();
            Array2::from_shape_vec((n, width), values).unwrap_or_default()
        };
        *sum += &product(of_each(own).view(), of_each(theirs).t());
    }

    /// The sum of the gains of an order.
    pub(super) fn sum(&self, order: &[u32]) -> f64 {
        let each = order.iter().enumerate();
        let of_each: f64 = each
            .map(|(to, &from)| self.of_each[(to, from as usize)])
            .sum();
        let outer = order.iter().step_by(self.group.shared).enumerate();
        let of_outer =
            outer.map(|(to, &from)| self.of_outer[(to, from as usize / self.group.shared)]);
        of_each + of_outer.sum::<f64>()
    }

    /// The order with the largest sum; things that share something stay together.
    pub(super) fn best(&self) -> Vec<u32> {
        let (shared, n_outer) = (self.group.shared, self.group.n_outer());
        if shared == 1 {
            let gain = |to, from| self.of_each[(to, from)] + self.of_outer[(to, from)];
            return assign(self.group.n, gain)
                .into_iter()
                .map(|at| at as u32)
                .collect();
        }
        let within = |to: usize, from: usize| {
            let gain = |a: usize, b: usize| self.of_each[(to * shared + a, from * shared + b)];
            let order = assign(shared, gain);
            let sum: f64 = order.iter().enumerate().map(|(a, &b)| gain(a, b)).sum();
            (sum + self.of_outer[(to, from)], order)
        };
        let pairs: Vec<(f64, Vec<usize>)> = (0..n_outer * n_outer)
            .map(|pair| within(pair / n_outer, pair % n_outer))
            .collect();
        let outer = assign(n_outer, |to, from| pairs[to * n_outer + from].0);
        let each = outer.iter().enumerate().flat_map(|(to, &from)| {
            let order = pairs[to * n_outer + from].1.iter();
            order.map(move |at| (from * shared + at) as u32)
        });
        each.collect()
    }
}
