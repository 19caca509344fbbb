//! Faults of lists of the best items.

use std::path::PathBuf;

/// A fault of lists of the best items.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShortlistFault {
    /// A shortlist of no items, or of more than there are.
    #[error(
        "a shortlist of {k} cannot be chosen from {n_images} images and {n_texts} texts: take between 1 and {}",
        n_images.min(n_texts)
    )]
    TooLong {
        /// Items of a query.
        k: usize,
        /// Images of the split.
        n_images: usize,
        /// Texts of the split.
        n_texts: usize,
    },
    /// A shortlist names an item twice.
    #[error("the shortlist of {what} {query} has item {item} twice")]
    Twice {
        /// The kind of the query.
        what: &'static str,
        /// The query, from 0.
        query: usize,
        /// The item, from 0.
        item: u32,
    },
    /// A shortlist names an item that does not exist.
    #[error("{}: `{key}` names item {item}, but there are {n_items}", path.display())]
    NoSuchItem {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: &'static str,
        /// The item, from 0.
        item: i64,
        /// The number of items.
        n_items: usize,
    },
    /// A file says in no known way how items stand to each other that were not ranked once more.
    #[error("{}: `rerank_rest` in its metadata must be {expected}", path.display())]
    OtherRest {
        /// The file.
        path: PathBuf,
        /// The values that it may have.
        expected: String,
    },
    /// Folds of scores that were ranked once more.
    #[error(
        "the file's shortlists were chosen among all images and texts, so folds cannot be ranked by them: evaluate each \
         fold alone, or judge the whole file without `--folds`"
    )]
    Folds,
}
