//! Parts of models that never read image and text together: the head for classes of images, projections, similarities.

use std::path::PathBuf;

use candle_core::{DType, Tensor};

use super::{Branch, Head, Model};
use crate::forward::Kind;
use crate::nn::{Linear, Pass};
use crate::{Error, ModelFault, Result, Weights};

/// A classifier of images.
#[derive(Clone, Debug)]
pub(super) struct ImageClassifier {
    /// `(classes, width)`.
    pub linear: Linear,
    /// Classes that it tells apart.
    pub n_classes: usize,
}

/// The place of the classifier of images, the only head of such a model that scores. A checkpoint may lack it.
#[derive(Clone, Debug)]
pub(super) struct ImageHead {
    name: &'static str,
    classifier: Option<ImageClassifier>,
    file: PathBuf,
}

impl ImageHead {
    /// Loads the classifier of this name, if the weights have one or it may start fresh.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(
        weights: &Weights,
        name: &'static str,
        width: usize,
        has_bias: bool,
    ) -> Result<Self> {
        let load = || -> Result<ImageClassifier> {
            let known = weights.shape(&format!("{name}.weight"));
            let known = known.and_then(|shape| shape.first().copied());
            let n_classes = known.or_else(|| weights.fresh_classes(name));
            let n_classes = n_classes.unwrap_or_default();
            let linear = match has_bias {
                true => Linear::load(weights, name, width, n_classes)?,
                false => Linear::load_without_bias(weights, name, width, n_classes)?,
            };
            Ok(ImageClassifier { linear, n_classes })
        };
        Ok(Self {
            name,
            classifier: weights.has(name).then(load).transpose()?,
            file: weights.checkpoint().path().to_owned(),
        })
    }

    /// Whether the checkpoint has the classifier.
    pub fn is_there(&self) -> bool {
        self.classifier.is_some()
    }

    /// The classifier, if `head` is for classes of images.
    ///
    /// # Errors
    /// [`Error::NoHead`] if the checkpoint lacks it; `incapable` for any other head.
    pub fn of(&self, head: Head, incapable: impl FnOnce() -> Error) -> Result<&ImageClassifier> {
        match (head, &self.classifier) {
            (Head::ImageClasses, Some(classifier)) => Ok(classifier),
            (Head::ImageClasses, None) => Err(Error::NoHead {
                path: self.file.clone(),
                what: Head::ImageClasses.title(),
                prefix: self.name,
            }),
            _ => Err(incapable()),
        }
    }

    /// Passes pooled images `(b, w)` through the classifier, if there is one, so that its inputs reach a tap.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pass(&self, pooled: &Tensor, pass: &Pass<'_>) -> Result<()> {
        match &self.classifier {
            Some(classifier) => project(&classifier.linear, self.name, pooled, pass).map(drop),
            None => Ok(()),
        }
    }
}

/// Ids of the classes that a model's classifier of images tells apart; any ids if it has none.
pub(super) fn class_ids(model: &dyn Model) -> Kind {
    let below = model.n_classes(Head::ImageClasses);
    Kind::Ids {
        below: below.unwrap_or(usize::MAX >> 1),
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
