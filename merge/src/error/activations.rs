//! Faults of files of activations, and hints for them.

use std::path::PathBuf;

use crate::recipe::Place;

/// A fault of activations by which models are matched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationFault {
    /// Models are to be matched by activations, and nothing says what those are.
    #[error(
        "`align: activations` needs `activations`, files of `vlmerge activations`, for {model}{place}"
    )]
    NotGiven {
        /// The checkpoint.
        model: String,
        /// Its entry.
        place: Place,
    },
    /// Activation files that nothing reads.
    #[error("`activations` of a model are read for `align: activations` alone{place}")]
    Unused {
        /// The model's entry.
        place: Place,
    },
    /// Models with other numbers of activation files.
    #[error(
        "{model} has {found} activation files and {first} has {expected}: they are compared file by file{place}"
    )]
    Counts {
        /// The checkpoint.
        model: String,
        /// Its files.
        found: usize,
        /// The one whose order counts.
        first: String,
        /// That one's files.
        expected: usize,
        /// The checkpoint's entry.
        place: Place,
    },
    /// A file that is no activation file, or a broken one.
    #[error("{} is no file of `vlmerge activations`: {why}", path.display())]
    NoFile {
        /// The file.
        path: PathBuf,
        /// The fault, as a clause.
        why: String,
    },
    /// Activation files of other data.
    #[error(
        "{}: its rows are not of the tokens of {}: {what}: {found}, there {expected}",
        path.display(), first.display()
    )]
    OtherRows {
        /// The file.
        path: PathBuf,
        /// The file of the model whose order counts.
        first: PathBuf,
        /// The fact in which they differ.
        what: String,
        /// The fact in the file.
        found: String,
        /// The fact in the first.
        expected: String,
    },
    /// Things of which no file has an activation.
    #[error("`align: activations`: {group}: {why}")]
    Missing {
        /// The things.
        group: String,
        /// Why nothing is known of them, as a clause.
        why: String,
    },
    /// Activations of a layer of another width.
    #[error("{}: rows of `{layer}` have {found} numbers, and the layer reads {expected}", path.display())]
    Width {
        /// The file.
        path: PathBuf,
        /// The layer.
        layer: String,
        /// Numbers of a row.
        found: usize,
        /// Inputs of the layer.
        expected: usize,
    },
}

impl ActivationFault {
    /// Whether the fault lies in the recipe rather than in a file.
    pub(super) const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NotGiven { .. } | Self::Unused { .. } | Self::Counts { .. }
        )
    }

    /// A hint for the user.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotGiven { .. } | Self::NoFile { .. } => Some(
                "`vlmerge activations --checkpoint MODEL` writes one, over the same data for each model",
            ),
            Self::OtherRows { .. } | Self::Counts { .. } => Some(
                "run `vlmerge activations` over each model with the same flags: data, task, tokenizer, batch size, rows",
            ),
            Self::Missing { .. } => Some(
                "`activations` may be a list: add a file of a task that runs these layers; or leave them in their order by \
                 `align: { by: activations, of: [...] }`",
            ),
            Self::Unused { .. } | Self::Width { .. } => None,
        }
    }
}
