//! Faults in building a plan.

use std::path::PathBuf;

use crate::DType;

/// A reason of the builder to refuse a plan. A recipe or a file alone leads to none of these: earlier checks name its
/// faults.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanFault {
    /// Two output tensors of one name.
    #[error("two tensors of the output are called `{name}`")]
    NameTwice {
        /// The name.
        name: String,
    },
    /// Another name of an output tensor that does not exist.
    #[error("`{name}` is to be another name of `{of}`, which is no tensor of the output")]
    AliasOfNothing {
        /// The other name.
        name: String,
        /// The tensor.
        of: String,
    },
    /// A tensor of a source that the plan does not have.
    #[error("`{key}` is to be read from source {source_index}, and there is none of this number")]
    NoSource {
        /// The tensor.
        key: String,
        /// The source's number.
        source_index: usize,
    },
    /// A gram matrix that no gram file of the plan has.
    #[error("`{name}` is to be made with the gram matrix `{key}`, which its file lacks")]
    NoGram {
        /// The output tensor.
        name: String,
        /// The matrix.
        key: String,
    },
    /// An input of another shape than the output that is made of it element by element.
    #[error("`{name}` has shape {expected:?}, and `{key}`, of which it is made, {found:?}")]
    Shapes {
        /// The output tensor.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
        /// The input.
        key: String,
        /// The input's shape.
        found: Vec<usize>,
    },
    /// A cast that changes what values are.
    #[error("`{name}` is to be {to}, and `{key}`, of which it is made, is {from}")]
    Casts {
        /// The output tensor.
        name: String,
        /// Its dtype.
        to: DType,
        /// The input.
        key: String,
        /// The input's dtype.
        from: DType,
    },
    /// A source key that is neither used nor dropped for a reason.
    #[error("{}: `{key}` is neither used nor left out for a reason", path.display())]
    LeftOver {
        /// The source.
        path: PathBuf,
        /// The key.
        key: String,
    },
}
