//! Reasons to refuse another model's tokenizer.

use std::path::PathBuf;

/// A reason to refuse another model's tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransplantFault {
    /// A model has no file that says its tokens.
    #[error("{}: there is no tokenizer.json beside it, which says what its rows stand for", path.display())]
    NoTokenizer {
        /// The model.
        path: PathBuf,
    },
    /// Two tokens have one id.
    #[error("{}: `{first}` and `{second}` of its tokenizer both have the id {id}", path.display())]
    TwoTokens {
        /// The model.
        path: PathBuf,
        /// The id.
        id: usize,
        /// One token.
        first: String,
        /// The other token.
        second: String,
    },
    /// No tensor has a row for each token, or several might.
    #[error("{}: no tensor, or more than one, is the embeddings of its tokens by the end of its name (known are {known})", path.display())]
    NoTable {
        /// The model.
        path: PathBuf,
        /// The endings of such names.
        known: String,
    },
    /// A tensor whose name says that it has a row for each token is no table of floats.
    #[error("{}: `{key}` should have a row for each token, and has the shape {shape:?} or no floats", path.display())]
    NotATable {
        /// The model.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// The model has a head, and the one with the tokens has none to compare with.
    #[error("{}: it has no head, and `{key}` of the other model needs the rows of one", path.display())]
    NoHead {
        /// The model with the tokens.
        path: PathBuf,
        /// The other model's head.
        key: String,
    },
    /// Two models share too few tokens.
    #[error("`{key}`: the models share {shared} tokens, and `{method}` needs {needed} of them")]
    FewShared {
        /// The table.
        key: String,
        /// Tokens that both have.
        shared: usize,
        /// The method.
        method: &'static str,
        /// Tokens that it needs.
        needed: usize,
    },
    /// A setting is out of its range.
    #[error("{setting} is {value}; it may be {range}")]
    OutOfRange {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// The range.
        range: &'static str,
    },
    /// The method splits texts, and no tokenizer was given.
    #[error("`subword` needs a tokenizer that splits the texts of tokens")]
    NoSplitter,
    /// The model's tokenizer does not split the text of a token.
    #[error("the model's tokenizer cannot split `{text}`: {reason}")]
    Split {
        /// The text.
        text: String,
        /// The fault.
        reason: String,
    },
    /// A piece of a text is beyond the model's rows.
    #[error("`{text}`: its piece {piece} is beyond the {rows} rows of `{key}`")]
    PieceBeyond {
        /// The text.
        text: String,
        /// The piece's id.
        piece: u32,
        /// The table.
        key: String,
        /// Its rows.
        rows: usize,
    },
    /// A decomposition did not converge.
    #[error("`{key}`: the principal components of its rows do not converge")]
    NoConvergence {
        /// The table.
        key: String,
    },
}
