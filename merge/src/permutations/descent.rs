//! The best permutations by weights, one group after the other until none gains.

use ndarray::{Array2, ArrayD, Axis, IxDyn};

use super::axes::{Network, Segment, Tensor};
use super::similarity::Similarity;
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
                let models = (reference, source);
                compare(&mut found, network, tensor, index, models, &orders)?;
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

/// Adds the inner products of a tensor's numbers, the other model's with its other axes in these orders.
fn compare(
    found: &mut Similarity<'_>,
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
            found.add(&own, &moved, segment);
        }
    }
    Ok(())
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
