//! Holders of the elements of pieces.

use std::path::PathBuf;

use super::Piece;
use crate::io::TensorSource;
use crate::{DType, Result};

/// The holder of the elements of pieces: a file, or several.
pub(crate) trait Holder: Send + Sync {
    /// The file of a piece.
    fn path(&self, piece: &Piece) -> PathBuf;

    /// The dtype of the tensor that a piece is taken from, and how many elements it has.
    fn held(&self, piece: &Piece) -> (DType, usize);

    /// The type in which that tensor is stored, narrower than the type it is read as where it is computed.
    fn stored_dtype(&self, piece: &Piece) -> DType;

    /// Whether the values of that tensor are not those of a file.
    fn is_computed(&self, piece: &Piece) -> bool;

    /// Reads elements `first..` of that tensor.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
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
