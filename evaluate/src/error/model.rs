//! Reasons to refuse a checkpoint with the given settings.

use std::path::{Path, PathBuf};

/// A checkpoint in messages; one that was drawn or merged in memory has no file.
fn named(path: &Path) -> std::path::Display<'_> {
    let no_file = Path::new("the weights in memory, of `init.synth` or the like");
    match path.as_os_str().is_empty() {
        true => no_file.display(),
        false => path.display(),
    }
}

/// A reason to refuse a checkpoint with the given settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelFault {
    /// A checkpoint is of a family that cannot be run.
    #[error("{}: layout {layout} cannot be run", named(path))]
    NotRunnable {
        /// The checkpoint.
        path: PathBuf,
        /// The family it was taken for.
        layout: String,
    },
    /// A text of another length than the family reads together with an image.
    #[error(
        "a text of {found} tokens cannot be read together with an image: the model takes exactly {expected}"
    )]
    TextLength {
        /// Its tokens, padding included.
        found: usize,
        /// Tokens of every text.
        expected: usize,
    },
    /// A text of more tokens than there are positions.
    #[error("a text of {found} tokens is longer than the {room} positions of the model")]
    TextPositions {
        /// Its tokens, padding included.
        found: usize,
        /// Positions.
        room: usize,
    },
    /// A checkpoint does not tell a size.
    #[error("{}: does not tell {what}", named(path))]
    UnknownSize {
        /// The checkpoint.
        path: PathBuf,
        /// The unknown size, as a noun phrase.
        what: &'static str,
    },
    /// Sizes of a checkpoint do not fit together.
    #[error("{}: {fault}", named(path))]
    BadSize {
        /// The checkpoint.
        path: PathBuf,
        /// The fault, as a clause.
        fault: String,
    },
    /// A number of a checkpoint is none that a model can compute with.
    #[error(
        "{}: `{key}` is {value}, and no pass can compute with it; give a checkpoint from before the run diverged",
        named(path)
    )]
    BadNumber {
        /// The checkpoint.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: f64,
    },
    /// A family of models lacks a capability.
    #[error("models of the family {family} cannot {what}")]
    Incapable {
        /// The family.
        family: &'static str,
        /// The missing capability, as a verb phrase.
        what: &'static str,
    },
    /// A setting that a family of models does not know, and would ignore.
    #[error("`{setting}` means nothing to models of the family {family}; leave it out")]
    IgnoredSetting {
        /// The setting.
        setting: &'static str,
        /// The family.
        family: &'static str,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_without_a_file_is_named_in_messages() {
        let fault = |path: &str| ModelFault::BadSize {
            path: path.into(),
            fault: "it is too small".into(),
        };
        let said = fault("").to_string();
        assert!(said.starts_with("the weights in memory"), "{said}");
        assert_eq!(fault("a.pt").to_string(), "a.pt: it is too small");
    }
}
