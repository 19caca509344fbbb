//! Faults of numbers that other passes left for a merge: gram matrices, activations, Fisher information.

use std::path::PathBuf;

use crate::recipe::Place;
use crate::{Checkpoint, Result};

/// A number that is none of the kind that its file holds, or that gives a merge nothing to go by.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatisticsFault {
    /// A gram file sums only some of the parts of its data.
    #[error("{}: sums only part {held} of the data; part {missing} is missing", path.display())]
    GramParts {
        /// The gram file.
        path: PathBuf,
        /// The parts that are in it.
        held: String,
        /// Those that are not, if they are few.
        missing: String,
    },
    /// An element of Fisher information below 0. It is a mean of squares.
    #[error(
        "{}: the Fisher information of {member} for `{slot}` is {value} at {index:?}, and a mean of squares is never below 0",
        path.display()
    )]
    NegativeInformation {
        /// The Fisher file.
        path: PathBuf,
        /// The model or expert.
        member: String,
        /// The merged key.
        slot: String,
        /// The element, one number per axis.
        index: Vec<usize>,
        /// Its value.
        value: f64,
    },
    /// An element whose shares are all 0, or cancel.
    #[error(
        "cannot merge `{slot}`: the shares of all models add up to 0 at {index:?}: Fisher information {information:?} plus \
         `floor` {floor}, times `weight` {weights:?}{place}"
    )]
    NoInformation {
        /// The merged key.
        slot: String,
        /// The element, one number per axis.
        index: Vec<usize>,
        /// The information of each model.
        information: Vec<f64>,
        /// The number added to it.
        floor: f64,
        /// The weights of the models.
        weights: Vec<f64>,
        /// The place of `floor`.
        place: Place,
    },
    /// An element of a gram matrix or of activations that is no number.
    #[error("{}: `{key}`, {what}, is {value} at {index:?}", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// The contents.
        what: &'static str,
        /// The tensor.
        key: String,
        /// The element, one number per axis of the tensor in the file.
        index: Vec<usize>,
        /// NaN or an infinity.
        value: f64,
    },
    /// A gram matrix whose triangles differ by more than rounding.
    #[error(
        "{}: the gram matrix `{key}` is not symmetric: it is {upper} at [{row}, {column}] and {lower} at [{column}, {row}]",
        path.display()
    )]
    AsymmetricGram {
        /// The gram file.
        path: PathBuf,
        /// The matrix.
        key: String,
        /// The row, which is above the diagonal.
        row: usize,
        /// The column.
        column: usize,
        /// The element there.
        upper: f64,
        /// The element across the diagonal.
        lower: f64,
    },
}

impl StatisticsFault {
    /// Refuses numbers of a file that are none; `values` are all of the tensor `key`, which is `what`.
    pub(crate) fn check(
        file: &Checkpoint,
        what: &'static str,
        key: &str,
        values: &[f64],
    ) -> Result<()> {
        let Some(at) = values.iter().position(|value| !value.is_finite()) else {
            return Ok(());
        };
        Err(Self::NonFinite {
            path: file.path().into(),
            what,
            key: key.to_owned(),
            index: file.require(key)?.index_of(at),
            value: values[at],
        }
        .into())
    }

    /// Whether the fault lies in the recipe rather than in a file.
    pub(super) const fn is_usage(&self) -> bool {
        matches!(self, Self::NoInformation { .. })
    }

    /// A hint for the user.
    pub(super) const fn hint(&self) -> &'static str {
        match self {
            Self::GramParts { .. } => {
                "`vlmerge gram --shard K/N` sums a missing part, and `vlmerge gram add FILES --out FILE` adds the parts up"
            }
            Self::NegativeInformation { .. } => {
                "`vlmerge fisher` writes such a file; other programs must store squares"
            }
            Self::NoInformation { .. } => {
                "a `floor` above 0, as the default of 1e-6, gives the plain mean where no model has information"
            }
            Self::NonFinite { .. } | Self::AsymmetricGram { .. } => {
                "the file is broken there and must be written again"
            }
        }
    }
}
