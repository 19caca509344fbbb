//! What models share whose images and texts meet in one space alone: nothing reads both.

use std::path::Path;

use candle_core::{DType, Tensor};

use super::{Branch, Head, Model};
use crate::nn::{Linear, Pass};
use crate::{Error, ModelFault, Result, Weights};

/// A classifier of images, the only head of such a model that scores.
#[derive(Clone, Debug)]
pub(super) struct ImageClassifier {
    /// `(classes, width)`.
    pub linear: Linear,
    /// Classes that it tells apart.
    pub n_classes: usize,
}

impl ImageClassifier {
    /// The classifier of this name, if the weights have one or it may start fresh.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        name: &str,
        width: usize,
        has_bias: bool,
    ) -> Result<Option<Self>> {
        if !weights.has(name) {
            return Ok(None);
        }
        let known = weights.shape(&format!("{name}.weight"));
        let known = known.and_then(|shape| shape.first().copied());
        let n_classes = known.or_else(|| weights.fresh_classes(name));
        let n_classes = n_classes.unwrap_or_default();
        let linear = match has_bias {
            true => Linear::load(weights, name, width, n_classes)?,
            false => Linear::load_without_bias(weights, name, width, n_classes)?,
        };
        Ok(Some(Self { linear, n_classes }))
    }

    /// The error of a checkpoint without one.
    pub fn missing(path: &Path, name: &'static str) -> Error {
        Error::NoHead {
            path: path.to_owned(),
            what: Head::ImageClasses.title(),
            prefix: name,
        }
    }
}

/// Refuses features of fusion blocks.
///
/// # Errors
/// [`ModelFault::Incapable`].
pub(super) fn check_branch(model: &dyn Model, of: Branch) -> Result<()> {
    match of {
        Branch::Apart => Ok(()),
        Branch::Fused => Err(model.cannot("give features of fusion blocks")),
    }
}

/// The features of each branch, which are computed once.
///
/// # Errors
/// As [`check_branch`], and as `features`.
pub(super) fn for_branches(
    model: &dyn Model,
    of: &[Branch],
    features: impl FnOnce() -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    (of.iter()).try_for_each(|&branch| check_branch(model, branch))?;
    match of.len() {
        0 => Ok(Vec::new()),
        n => Ok(vec![features()?; n]),
    }
}

/// `(b, w) -> (b, d)`, by the projection of this name.
///
/// # Errors
/// When the device fails.
pub(super) fn project(linear: &Linear, name: &str, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
    if pass.is_tapped() {
        pass.show(|| name.to_owned(), &x.unsqueeze(1)?, None)?;
    }
    Ok(linear.forward(x)?)
}

/// A single number of the weights, unless it is no number: clamping would make one of it.
///
/// # Errors
/// [`ModelFault::BadNumber`].
pub(super) fn finite(weights: &Weights, key: &'static str, number: Tensor) -> Result<Tensor> {
    let alone = number.reshape(())?.to_dtype(DType::F64)?;
    let value = alone.to_scalar::<f64>()?;
    match value.is_finite() {
        true => Ok(number),
        false => Err(Error::Model(ModelFault::BadNumber {
            path: weights.checkpoint().path().into(),
            key,
            value,
        })),
    }
}

/// A number as a scalar in f32 or wider, in which softmax and norms are computed.
///
/// # Errors
/// When there are several numbers, or the device fails.
pub(super) fn scalar(number: &Tensor) -> Result<Tensor> {
    let number = number.reshape(())?;
    Ok(match number.dtype() {
        DType::F64 => number,
        _ => number.to_dtype(DType::F32)?,
    })
}
