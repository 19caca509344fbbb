//! Predictions, or the ground truth beside them, cannot be judged.

use std::path::PathBuf;

/// Predictions, or the ground truth beside them, cannot be judged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JudgedFault {
    /// Examples of the ground truth have no prediction.
    #[error("{}: {n_missing} of {n} have no answer; the first is {what} {first}", path.display())]
    MissingPredictions {
        /// The file of predictions.
        path: PathBuf,
        /// The kind of the id: `question`, `example`.
        what: &'static str,
        /// The first id without a prediction, in the order of the ground truth.
        first: String,
        /// The number of examples without a prediction.
        n_missing: usize,
        /// The number of examples.
        n: usize,
    },
    /// Two files say that a question belongs to different images.
    #[error("{}: question {question} belongs to image {found}, in {} to image {expected}",
            path.display(), other.display())]
    ImageDiffers {
        /// The file.
        path: PathBuf,
        /// The question.
        question: i64,
        /// Its image in this file.
        found: i64,
        /// Its image in the other file.
        expected: i64,
        /// The other file.
        other: PathBuf,
    },
    /// A question has no ground truth answers.
    #[error("{}: question {question} has no answers", path.display())]
    NoAnswers {
        /// The file.
        path: PathBuf,
        /// The question.
        question: i64,
    },
    /// A caption is longer than captions are.
    #[error("{}: a caption of image {image} has {n_bytes} bytes, at most {limit}", path.display())]
    CaptionTooLong {
        /// The file.
        path: PathBuf,
        /// The image.
        image: i64,
        /// Its size.
        n_bytes: usize,
        /// The largest size that is judged.
        limit: usize,
    },
    /// An image has no captions written by people.
    #[error("{}: image {image} has no captions", path.display())]
    NoCaptions {
        /// The file.
        path: PathBuf,
        /// The image.
        image: i64,
    },
}
