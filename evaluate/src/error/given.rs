//! Faults of tensors that a user gives to a model.

use std::path::PathBuf;

/// A fault of tensors that a user gives to a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GivenFault {
    /// A family has no pass of this name.
    #[error("there is no pass `{name}`; the model has: {known}")]
    UnknownPass {
        /// The name.
        name: String,
        /// Those that the family has.
        known: String,
    },
    /// A file of inputs has a tensor that the model does not take.
    #[error("{}: the model takes no tensor `{name}`; it takes {known}", path.display())]
    UnknownInput {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Those that the model takes.
        known: String,
    },
    /// A file of several batches has none of this name.
    #[error("{}: no tensor's name begins with `{batch}.`", path.display())]
    NoBatch {
        /// The file.
        path: PathBuf,
        /// The name.
        batch: String,
    },
    /// A pass or a loss lacks an input.
    #[error("{}: has no `{name}`, which {pass} needs; expected {expected}", path.display())]
    MissingInput {
        /// The file.
        path: PathBuf,
        /// The pass or the loss.
        pass: String,
        /// The tensor.
        name: String,
        /// The expected form.
        expected: String,
    },
    /// A tensor of a file of inputs is not as the model takes it.
    #[error("{}: `{name}` {fault}", path.display())]
    BadInput {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// The fault and the expectation, as a clause.
        fault: String,
    },
}
