//! The best permutations by weights, one group after the other until none gains.

use ndarray::{Array2, ArrayD, Axis, IxDyn};

use super::axes::{Group, Network, Segment, Tensor};
use crate::linear_algebra::spectral::product;
use crate::mixtures::assign;
use crate::{Checkpoint, Result, decode_f64};

/// Passes over the groups, as published.
const MAX_PASSES: usize = 100;

/// A gain that counts, of the sum that it is added to.
const LEAST_GAIN: f64 = 1e-12;

/// For each group and each thing of `reference` the thing of `source` that stands for it: group by group the best with
/// the others as they stand, until none gains (Ainsworth et al. 2022, "Git Re-Basin", <https://arxiv.org/abs/2209.04836>,
/// algorithm 1). In the first pass a group goes by those tensors alone whose other axes are in order already, where it
/// has any: a permuted copy is found at once.
///
/// Holds one tensor of both models in `f64`, and a matrix of the largest group by itself.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn match_networks(
    network: &Network,
    reference: &Checkpoint,
    source: &Checkpoint,
) -> Result<Vec<Vec<u32>>> {
    let groups = network.groups();
    let mut orders: Vec<Vec<u32>> = groups.iter().map(|of| (0..of.n as u32).collect()).collect();
    let mut is_settled = vec![false; groups.len()];
    for pass in 0..MAX_PASSES {
        let mut gains = false;
        for index in 0..groups.len() {
            let own = |of: &&Tensor| {
                of.axes
                    .iter()
                    .flatten()
                    .any(|segment| segment.group == index)
            };
            let tensors: Vec<&Tensor> = network.tensors.iter().filter(own).collect();
            let in_order = |of: &&&Tensor| {
                let mut others = of.axes.iter().flatten().filter(|of| of.group != index);
                others.all(|of| is_settled[of.group])
            };
            let first: Vec<&Tensor> = match pass {
                0 => tensors.iter().filter(in_order).copied().collect(),
                _ => Vec::new(),
            };
            let tensors = if first.is_empty() { tensors } else { first };
            let mut found = Similarity::new(&groups[index]);
            for tensor in tensors {
                found.add(network, tensor, index, (reference, source), &orders)?;
            }
            let before = found.sum(&orders[index]);
            let best = found.best();
            let after = found.sum(&best);
            gains |= after > before + LEAST_GAIN * before.abs().max(1.0);
            // The order stays where another is no better.
            if after > before {
                orders[index] = best;
            }
            is_settled[index] = true;
        }
        if !gains && pass > 0 {
            break;
        }
    }
    Ok(orders)
}

/// The likeness of each thing of one model with each of the other.
struct Similarity<'a> {
    group: &'a Group,
    /// Of all.
    of_each: Array2<f64>,
    /// Of heads of keys.
    of_outer: Array2<f64>,
}

impl<'a> Similarity<'a> {
    fn new(group: &'a Group) -> Self {
        let n_outer = group.n_outer();
        Self {
            group,
            of_each: Array2::zeros((group.n, group.n)),
            of_outer: Array2::zeros((n_outer, n_outer)),
        }
    }

    /// Adds the inner products of a tensor's numbers, the other model's with its other axes in these orders.
    fn add(
        &mut self,
        network: &Network,
        tensor: &Tensor,
        group: usize,
        (reference, source): (&Checkpoint, &Checkpoint),
        orders: &[Vec<u32>],
    ) -> Result<()> {
        let (own, theirs) = (read(reference, tensor)?, read(source, tensor)?);
        for axis in 0..tensor.axes.len() {
            let segments: Vec<&Segment> = tensor.axes[axis]
                .iter()
                .filter(|segment| segment.group == group)
                .collect();
            if segments.is_empty() {
                continue;
            }
            let mut moved = theirs.clone();
            for other in (0..tensor.axes.len()).filter(|other| *other != axis) {
                if !tensor.axes[other].is_empty() {
                    let order = network.order(tensor, other, orders);
                    let order: Vec<usize> = order.into_iter().map(|at| at as usize).collect();
                    moved = moved.select(Axis(other), &order);
                }
            }
            let (own, moved) = (in_front(&own, axis), in_front(&moved, axis));
            for segment in segments {
                let (sum, n) = match segment.is_outer {
                    true => (&mut self.of_outer, self.group.n_outer()),
                    false => (&mut self.of_each, self.group.n),
                };
                let rows = |matrix: &Array2<f64>| {
                    let width = matrix.ncols() * segment.len;
                    let part = matrix.slice_axis(
                        Axis(0),
                        (segment.start..segment.start + n * segment.len).into(),
                    );
                    let values: Vec<f64> = part.iter().copied().collect();
                    Array2::from_shape_vec((n, width), values).unwrap_or_default()
                };
                *sum += &product(rows(&own).view(), rows(&moved).t());
            }
        }
        Ok(())
    }

    /// The sum of the gains of an order.
    fn sum(&self, order: &[u32]) -> f64 {
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
    fn best(&self) -> Vec<u32> {
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

/// A tensor in `f64`.
fn read(model: &Checkpoint, tensor: &Tensor) -> Result<ArrayD<f64>> {
    let info = model.require(&tensor.key)?;
    let mut values = vec![0.0; info.n_elements()];
    decode_f64(
        &tensor.key,
        info.dtype,
        &model.read_all(&tensor.key)?,
        &mut values,
    )?;
    // As many as its shape says.
    Ok(ArrayD::from_shape_vec(IxDyn(&info.shape), values).unwrap_or_default())
}

/// An axis in rows, all others in columns.
fn in_front(tensor: &ArrayD<f64>, axis: usize) -> Array2<f64> {
    let n = tensor.shape()[axis];
    let mut view = tensor.view();
    view.swap_axes(0, axis);
    let values: Vec<f64> = view.iter().copied().collect();
    let width = values.len() / n.max(1);
    Array2::from_shape_vec((n, width), values).unwrap_or_default()
}
