//! Faults of quantized tensors.

use std::path::PathBuf;

use crate::DType;

/// A reason why a model whose weights are stored as codes cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantizationFault {
    /// A way of quantizing that is not read.
    #[error("{}: the model is quantized ({scheme}), and `{key}` cannot be read as numbers: {reason}", path.display())]
    Unreadable {
        /// The model.
        path: PathBuf,
        /// The way.
        scheme: String,
        /// A tensor.
        key: String,
        /// The reason.
        reason: String,
    },
    /// Codes whose scales have another shape.
    #[error("{}: {codes} is quantized, and {scales} beside it does not fit", path.display())]
    Misfit {
        /// The model.
        path: PathBuf,
        /// The codes, with dtype and shape.
        codes: String,
        /// The scales, likewise.
        scales: String,
    },
    /// Codes without what gives them a meaning.
    #[error("{}: `{key}` is quantized, and `{missing}` is not there", path.display())]
    Missing {
        /// The model.
        path: PathBuf,
        /// The codes.
        key: String,
        /// The missing tensor.
        missing: String,
    },
    /// Bits of a sparse weight that do not go with its kept values.
    #[error("{}: `{key}` keeps {n_set} elements of row {row}, whose values are {begin}..{end}", path.display())]
    Mask {
        /// The model.
        path: PathBuf,
        /// The bits.
        key: String,
        /// The row.
        row: usize,
        /// Bits that are set in it.
        n_set: usize,
        /// The number of its first value, as the file says.
        begin: i64,
        /// The number behind its last.
        end: i64,
    },
    /// Scales beside weights that are no codes.
    #[error("{}: `{key}` is {dtype}, but `{scales}` says that it is quantized", path.display())]
    Orphan {
        /// The model.
        path: PathBuf,
        /// The weight.
        key: String,
        /// Its dtype.
        dtype: DType,
        /// The scales.
        scales: String,
    },
    /// Codes of experts that other experts were to be made of as if they were numbers.
    #[error("{}: the model is quantized ({scheme}), so `{key}` holds codes, and new experts cannot be made from codes", path.display())]
    Experts {
        /// The model.
        path: PathBuf,
        /// The way.
        scheme: String,
        /// A weight.
        key: String,
    },
    /// Codes that were to be converted to another dtype as if they were numbers.
    #[error("{}: the model is quantized ({scheme}), so that another dtype would change what `{key}` means", path.display())]
    Cast {
        /// The model.
        path: PathBuf,
        /// The way.
        scheme: String,
        /// A weight.
        key: String,
    },
}

impl QuantizationFault {
    /// A hint for the user.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreadable { .. } | Self::Misfit { .. } => Some(
                "take the model that it was quantized from, or a copy that its own library has dequantized",
            ),
            Self::Missing { .. } | Self::Mask { .. } => Some("fetch or copy the whole model again"),
            Self::Orphan { .. } => {
                Some("a program has converted codes without their scales: take the original model")
            }
            Self::Experts { .. } => Some(
                "`vlmerge convert --dequantize` writes the numbers that the codes stand for, and takes --experts beside",
            ),
            Self::Cast { .. } => {
                Some("pass --dequantize to write the numbers that the codes stand for")
            }
        }
    }
}
