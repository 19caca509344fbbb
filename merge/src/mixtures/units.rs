//! Matches the hidden units of one feed-forward network with those of another.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, Axis, Slice};
use serde::Serialize;

use super::assignment::assign;
use super::ffn::{Ffn, Strand};
use super::similarity::read;
use super::{ExpertTensor, Piece};
use crate::{Checkpoint, MergeFault, Result};

/// The units of a network that moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnitMatching {
    /// The model whose units are moved.
    pub model: String,
    /// The network.
    pub network: String,
    /// Its hidden units.
    pub n_units: usize,
    /// The number of units that change their place.
    pub n_moved: usize,
}

/// Elements that are read at a time.
const BLOCK_ELEMENTS: usize = 1 << 20;

impl Strand {
    /// The strand with one of its rows or columns a unit.
    pub(super) fn only(&self, part: usize) -> Self {
        Self {
            steps: self.steps[part..=part].to_vec(),
            ..self.clone()
        }
    }

    /// The row (or column) in each place for units in the order `units`.
    pub(crate) fn order(&self, units: &[u32]) -> Arc<[u32]> {
        let n = match self.along_columns {
            true => self.n_columns,
            false => self.n_rows,
        };
        let mut order: Vec<u32> = (0..n as u32).collect();
        for &(start, step) in &self.steps {
            for (unit, &from) in units.iter().enumerate() {
                order[start + step * unit] = (start + step * from as usize) as u32;
            }
        }
        order.into()
    }
}

/// The numbers of each unit in a strand with one row or column a unit: `(units, numbers)`.
pub(super) fn read_matrix(source: &Checkpoint, strand: &Strand) -> Result<Array2<f32>> {
    let mut all = Array2::zeros((strand.n_rows, strand.n_columns));
    let values = all.as_slice_mut().unwrap_or_default();
    for (block, out) in values.chunks_mut(BLOCK_ELEMENTS).enumerate() {
        let first = strand.first + block * BLOCK_ELEMENTS;
        read(source, &strand.key, first, out)?;
    }
    let (start, step) = strand.steps.first().copied().unwrap_or((0, 1));
    let n_units = strand.n_units;
    let end = start + step * n_units.saturating_sub(1) + usize::from(n_units > 0);
    Ok(match strand.along_columns {
        false => every(all, Axis(0), start..end, step),
        true => every(all, Axis(1), start..end, step).reversed_axes(),
    })
}

/// Each `step`-th row or column of a range; the matrix itself if that is all of it.
fn every(mut all: Array2<f32>, axis: Axis, range: Range<usize>, step: usize) -> Array2<f32> {
    let slice = Slice::new(
        range.start as isize,
        Some(range.end as isize),
        step as isize,
    );
    all.slice_axis_inplace(axis, slice);
    all
}

/// For each unit of `one` the unit of `other` that is nearest to it, each once, so that the sum of the inner products
/// of all their weights, into them and out of them, is the largest: Git Re-Basin's weight matching (Ainsworth et al.
/// 2022, <https://arxiv.org/abs/2209.04836>, §3.2) of one layer, whose inputs and outputs stay in order.
///
/// Holds a matrix of units by units in `f32`, and the network's largest layer twice.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn match_units(
    (reference, one): (&Checkpoint, &Ffn),
    (source, other): (&Checkpoint, &Ffn),
) -> Result<Vec<u32>> {
    let n = one.n_units;
    let mut gains = Array2::<f32>::zeros((n, n));
    for (own, theirs) in one.strands.iter().zip(&other.strands) {
        for part in 0..own.steps.len() {
            let own = read_matrix(reference, &own.only(part))?;
            let theirs = read_matrix(source, &theirs.only(part))?;
            ndarray::linalg::general_mat_mul(1.0, &own, &theirs.t(), 1.0, &mut gains);
        }
    }
    let units = assign(n, |row, column| f64::from(gains[(row, column)]));
    Ok(units.into_iter().map(|unit| unit as u32).collect())
}

/// For each expert of a group but the first the units of it that stand for those of the first one.
///
/// # Errors
/// [`MergeFault::CannotAlign`], and as [`match_units`].
pub(crate) fn units_of_group(
    source: &Checkpoint,
    networks: &[Ffn],
    group: &[usize],
) -> Result<Vec<(usize, Vec<u32>)>> {
    let Some(first) = group.first().and_then(|&first| networks.get(first)) else {
        return Ok(Vec::new());
    };
    if first.is_out_of_proportion() {
        return Err(MergeFault::CannotAlign {
            setting: "align_units",
            why: "an expert has more than 64 hidden units for each of its inputs",
        }
        .into());
    }
    (group.iter().skip(1))
        .filter_map(|&expert| Some((expert, networks.get(expert)?)))
        .map(|(expert, other)| Ok((expert, match_units((source, first), (source, other))?)))
        .collect()
}

/// A tensor of an expert, with the hidden units of its network in another order.
pub(crate) fn moved_piece(
    tensor: &ExpertTensor,
    expert: usize,
    network: Option<&Ffn>,
    units: Option<&Vec<u32>>,
) -> Piece {
    let (key, first) = tensor.place(expert);
    let width = tensor.info.shape.last().copied().unwrap_or(1).max(1);
    let mut piece = Piece::of(key, first, tensor.info.n_elements() / width);
    let (Some(units), Some(network)) = (units, network) else {
        return piece;
    };
    let mut strands = network.strands.iter();
    if let Some(strand) = strands.find(|strand| strand.key == piece.key && strand.first == first) {
        let order = Some(strand.order(units));
        match strand.along_columns {
            true => piece.columns = order,
            false => piece.rows = order,
        }
    }
    piece
}
