//! The common part of methods that merge linear layers by their gram matrices.

use std::sync::Arc;

use ndarray::{Array2, ArrayD, Ix2};

use super::interpolate::Shares;
use super::{Member, Operation};
use crate::{Error, Result, Slot};

/// The plain mean of tensors without gram matrices.
pub(super) fn mean(n_members: usize) -> Operation {
    match n_members {
        1 => Operation::Take(0),
        n => Operation::Elementwise(Arc::new(Shares(vec![1.0 / n as f64; n]))),
    }
}

/// A weight as a matrix with as many columns as the gram matrix.
///
/// # Errors
/// [`Error::GramShape`].
pub(super) fn matrix(
    weight: ArrayD<f64>,
    (slot, member): (&Slot, &Member),
    gram: &Array2<f64>,
) -> Result<Array2<f64>> {
    let shape = weight.shape().to_vec();
    let weight = weight
        .into_dimensionality::<Ix2>()
        .ok()
        .filter(|weight| weight.ncols() == gram.nrows());
    weight.ok_or_else(|| Error::GramShape {
        slot: slot.key.clone(),
        member: member.clone(),
        weight: shape,
        gram: gram.shape().to_vec(),
    })
}

/// `γ G + (1 − γ) diag(G)`, in place.
pub(super) fn shrink(gram: &mut Array2<f64>, factor: f64) {
    if factor == 1.0 {
        return;
    }
    let diagonal = gram.diag().to_owned();
    gram.mapv_inplace(|value| factor * value);
    gram.diag_mut().assign(&diagonal);
}
