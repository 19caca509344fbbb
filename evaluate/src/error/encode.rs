//! Faults of pictures to encode, and of their features.

use std::path::PathBuf;

/// A fault of pictures to encode, or of their features.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeFault {
    /// A picture file cannot be read or decoded.
    #[error("{}: {fault}", path.display())]
    BadPicture {
        /// The file.
        path: PathBuf,
        /// The fault.
        fault: String,
    },
    /// Rows of features are wider or narrower than those before.
    #[error("a row of features has {found} numbers, those before have {expected}")]
    FeatureWidth {
        /// Numbers of the row.
        found: usize,
        /// Numbers of the rows before.
        expected: usize,
    },
    /// A feature is not a finite number.
    #[error("the features of item {row} are not finite numbers")]
    FeatureNotFinite {
        /// The item, from 0.
        row: usize,
    },
}
