//! A matrix of scores, or the ids of its rows and columns, cannot be ranked.

use std::path::PathBuf;

/// A matrix of scores, or the ids of its rows and columns, cannot be ranked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScoresFault {
    /// A tensor has another shape than the tensors beside it.
    #[error("{}: `{key}` has shape {found:?}, expected {expected}", path.display())]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: &'static str,
        /// Its shape.
        found: Vec<usize>,
        /// The expected shape, in words.
        expected: String,
    },
    /// A tensor of ids holds no integers.
    #[error("{}: `{key}` has dtype {dtype}, expected integers", path.display())]
    IdsNotIntegers {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: &'static str,
        /// Its dtype.
        dtype: merge::DType,
    },
    /// A score matrix without queries.
    #[error("the score matrix is empty: {n_images} images, {n_texts} texts")]
    EmptyScores {
        /// Rows.
        n_images: usize,
        /// Columns.
        n_texts: usize,
    },
    /// Two rows are of the same image.
    #[error("rows {first} and {second} are both of image {id}")]
    DuplicateImage {
        /// The id.
        id: i64,
        /// A row, from 0.
        first: usize,
        /// The other.
        second: usize,
    },
    /// An image has no text, so its query has no answer.
    #[error("image {id} (row {row}) has no text")]
    ImageWithoutText {
        /// The id.
        id: i64,
        /// Its row, from 0.
        row: usize,
    },
    /// A text belongs to an image that has no row.
    #[error("text {column} belongs to image {id}, which has no row")]
    TextWithoutImage {
        /// The id.
        id: i64,
        /// The column of the text, from 0.
        column: usize,
    },
}
