//! Faults of the masks of tasks.

use std::path::PathBuf;

/// A reason why a merged file and its masks do not give a task's model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaskFault {
    /// The method of the recipe keeps no masks.
    #[error("the merge method keeps no masks of tasks; `emr` and `tall_masks` do")]
    None,
    /// The merged file packs what masks keep apart.
    #[error(
        "masks of tasks hold the names that merges use, and the merged file would hold other names; `vlmerge convert --to hf` writes the names that merges use"
    )]
    Respelled,
    /// Slices of a merge are of other models.
    #[error(
        "slices of the recipe merge different models, so that there are no tasks of the whole model"
    )]
    TasksDiffer,
    /// Factors of tasks are over all tensors, and one is to be counted otherwise.
    #[error("`rescale_by` has one value for all tensors, and `{slot}` has another")]
    RulesDiffer {
        /// The tensor.
        slot: String,
    },
    /// The file holds no masks, or damaged ones.
    #[error("{}: holds no masks of tasks that fit the merged file; `vlmerge merge --masks` writes them", path.display())]
    NotMasks {
        /// The file.
        path: PathBuf,
    },
    /// The masks were not written with the merged file.
    #[error("{}: these masks are not of the merge that made {}", masks.display(), merged.display())]
    Foreign {
        /// The masks.
        masks: PathBuf,
        /// The merged file.
        merged: PathBuf,
    },
    /// The base is not the one that the merge measured from.
    #[error("{}: is not the base of the merge that wrote {}, by the sizes and hashes of its files", base.display(), masks.display())]
    OtherBase {
        /// The base.
        base: PathBuf,
        /// The masks.
        masks: PathBuf,
    },
    /// A task that the masks do not have, or have several of.
    #[error("no task is called `{task}`; there are {}", known.join(", "))]
    UnknownTask {
        /// The requested task.
        task: String,
        /// The tasks.
        known: Vec<String>,
    },
}
