//! Faults of models whose tensors lie in pieces over several files.

use std::path::PathBuf;

use crate::DType;

/// A fault of a model that trainers left in pieces, with the file and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssemblyFault {
    /// A piece has another dtype than its tensor.
    #[error("{}: the piece of `{key}` has dtype {dtype}, the tensor {wanted}", path.display())]
    OtherDtype {
        /// The file of the piece.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The value of the piece.
        dtype: DType,
        /// The value of the tensor.
        wanted: DType,
    },
    /// A piece reaches beyond its tensor, or beyond what its file holds.
    #[error("{}: the piece of `{key}` of size {size:?} at {start:?} does not fit into {shape:?}", path.display())]
    Outside {
        /// The file of the piece.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The size of the piece.
        size: Box<[usize]>,
        /// Where it begins.
        start: Box<[usize]>,
        /// The shape of the tensor.
        shape: Box<[usize]>,
    },
    /// Two pieces hold the same element.
    #[error("{}: two pieces hold the same part of `{key}`: {} and {}", path.display(), files[0].display(), files[1].display())]
    Overlap {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The files of the pieces.
        files: [PathBuf; 2],
    },
    /// The pieces leave a hole.
    #[error("{}: the pieces of `{key}` hold {n_given} of its {n_elements} elements", path.display())]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The number of elements found.
        n_given: usize,
        /// Elements of the tensor.
        n_elements: usize,
    },
    /// A tensor lies in more pieces than any trainer makes.
    #[error("{}: `{key}` lies in {n_pieces} pieces; at most {limit} are read", path.display())]
    TooManyPieces {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// How many there are.
        n_pieces: usize,
        /// How many are read.
        limit: usize,
    },
}
