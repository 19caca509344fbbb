//! Reasons that keep a model from becoming a GGUF file.

use std::path::PathBuf;

/// A reason why a model cannot be written as a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportFault {
    /// A model without its settings.
    #[error("{}: a GGUF file has the settings of its model, and there is no config.json beside the weights", path.display())]
    NoConfig {
        /// The model.
        path: PathBuf,
    },
    /// An architecture that is not written.
    #[error("{}: config.json has `model_type` `{model_type}`, which is not written as GGUF", path.display())]
    Architecture {
        /// The model.
        path: PathBuf,
        /// Its architecture.
        model_type: String,
    },
    /// A tensor that has no name in GGUF.
    #[error("{}: `{key}` has no name in the GGUF file of a model of the architecture `{architecture}`", path.display())]
    UnknownTensor {
        /// The model.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// Experts of one mixture that are not alike.
    #[error("{}: `{key}` and `{other}` are of one mixture, and differ in shape or dtype", path.display())]
    Experts {
        /// The model.
        path: PathBuf,
        /// The tensor of the first expert.
        key: String,
        /// That of another.
        other: String,
    },
    /// A setting that is missing, or that a GGUF file cannot say.
    #[error("{}: config.json has `{key}` as {found}, and a GGUF file needs {wanted}", path.display())]
    Setting {
        /// The model.
        path: PathBuf,
        /// The setting.
        key: String,
        /// Its value, as JSON.
        found: String,
        /// The expected value, in words.
        wanted: String,
    },
    /// A CLIP without the numbers by which its pictures are made.
    #[error("{}: preprocessor_config.json has `{key}` as {found}, and a GGUF file of a CLIP needs three numbers", path.display())]
    Pictures {
        /// The model.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// Its value, as JSON; null if the file is not there.
        found: serde_json::Value,
    },
    /// A tokenizer that a GGUF file cannot hold.
    #[error("{}: the tokenizer cannot be written: {reason}", path.display())]
    Tokenizer {
        /// The file, or the model.
        path: PathBuf,
        /// The reason, in words.
        reason: String,
    },
    /// A number that the written type cannot hold.
    #[error("{}: `{key}` has a number near element {element} that is not finite, or too large for {kind}", path.display())]
    TooLarge {
        /// The model.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The element, or the first of its block, in the order of the output.
        element: usize,
        /// The type.
        kind: &'static str,
    },
    /// An adapter that a GGUF file cannot hold.
    #[error("{}: the adapter cannot be written: {reason}", path.display())]
    Adapter {
        /// The adapter's file.
        path: PathBuf,
        /// The reason, in words.
        reason: String,
    },
}

impl ExportFault {
    /// A hint for the user.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoConfig { .. } => Some("name the model's folder"),
            Self::Pictures { .. } => {
                Some("put the model's preprocessor_config.json beside its config.json")
            }
            Self::Architecture { .. } => {
                Some("docs/formats.md lists the architectures that are written")
            }
            Self::Tokenizer { .. } => Some("--no-tokenizer writes the weights and settings alone"),
            Self::TooLarge { .. } => Some("pass --outtype bf16 or f32"),
            Self::Adapter { .. } => {
                Some("merge the adapter into its base with `vlmerge merge`, and convert the result")
            }
            _ => None,
        }
    }
}
