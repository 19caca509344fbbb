//! Reasons to refuse a mixture of dense models.

use std::path::PathBuf;

/// A reason to refuse a mixture of dense models.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoeFault {
    /// No architecture takes these models and shared experts.
    #[error("no mixture can be made of these models: {reasons}")]
    NoArchitecture {
        /// Why not, by architecture.
        reasons: String,
    },
    /// A gate needs a forward pass of a model that this program cannot run.
    #[error(
        "gate_mode `{gate_mode}` needs the hidden states of a `{model_type}`, which this program does not run"
    )]
    NoForward {
        /// The gate mode.
        gate_mode: &'static str,
        /// The architecture of the base.
        model_type: String,
    },
    /// A tensor of the base has no place in the mixture.
    #[error("{}: `{key}` has no place in a `{model_type}`", path.display())]
    NoPlace {
        /// The base.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The architecture of the mixture.
        model_type: &'static str,
    },
    /// A model has no configuration.
    #[error("{}: there is no config.json beside it, which says what model it is", path.display())]
    NoConfig {
        /// The model.
        path: PathBuf,
    },
    /// Two models are not of one size.
    #[error("{}: `{key}` is {found}, and {expected} in {}", path.display(), base.display())]
    OtherSize {
        /// The model.
        path: PathBuf,
        /// The key of its configuration.
        key: &'static str,
        /// Its value.
        found: usize,
        /// The base.
        base: PathBuf,
        /// The value of the base.
        expected: usize,
    },
    /// A token of a prompt is beyond the embeddings.
    #[error("{}: token {id} of a prompt is beyond the {n_rows} rows of `{key}`", path.display())]
    TokenBeyond {
        /// The base.
        path: PathBuf,
        /// The token.
        id: u32,
        /// The embeddings.
        key: &'static str,
        /// Their rows.
        n_rows: usize,
    },
    /// Prompts give no direction to tell experts apart.
    #[error("the prompts of {what} cancel each other, or hold no token: its gate would be zero")]
    NoDirection {
        /// The expert.
        what: String,
    },
}
