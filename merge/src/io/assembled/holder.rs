//! The files that hold the elements of pieces.

use std::path::PathBuf;

use super::Piece;
use crate::io::TensorSource;
use crate::{DType, Result};

/// Holds the elements of pieces, in one file or several.
pub(crate) trait Holder: Send + Sync {
    /// The file that holds a piece.
    fn path(&self, piece: &Piece) -> PathBuf;

    /// The dtype of the tensor that holds a piece, and the number of its elements.
    fn held(&self, piece: &Piece) -> (DType, usize);

    /// The dtype that the file stores for that tensor. It may be narrower than that of [`Self::held`] if the tensor is
    /// computed.
    fn stored_dtype(&self, piece: &Piece) -> DType;

    /// Whether the values of that tensor are computed from those of the file.
    fn is_computed(&self, piece: &Piece) -> bool;

    /// Fills `out` with the elements of that tensor from `first` on.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    fn read(&self, piece: &Piece, first: usize, out: &mut [u8]) -> Result<()>;
}

impl Holder for Box<dyn TensorSource> {
    fn path(&self, _: &Piece) -> PathBuf {
        self.info().path.clone()
    }

    fn held(&self, piece: &Piece) -> (DType, usize) {
        let info = &self.tensors()[piece.tensor].info;
        (info.dtype, info.n_elements())
    }

    fn stored_dtype(&self, piece: &Piece) -> DType {
        self.as_ref().stored_dtype(piece.tensor)
    }

    fn is_computed(&self, piece: &Piece) -> bool {
        self.as_ref().is_computed(piece.tensor)
    }

    fn read(&self, piece: &Piece, first: usize, out: &mut [u8]) -> Result<()> {
        self.as_ref().read(piece.tensor, first, out)
    }
}
