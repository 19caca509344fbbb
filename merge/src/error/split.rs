//! Faults of split models and of folders, with the shard and the key.

use std::path::PathBuf;

/// A fault of a split model or a folder, with the shard and the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SplitFault {
    /// The file is JSON, but no index of a split model.
    #[error("{}: is JSON, but not the index of a split model: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// The fault and its place.
        source: serde_json::Error,
    },
    /// An index is longer than any real one.
    #[error("{}: an index of {n_bytes} bytes is not read", path.display())]
    IndexTooLong {
        /// The index.
        path: PathBuf,
        /// Its size.
        n_bytes: u64,
    },
    /// An index names a file outside its folder.
    #[error("{}: the shard `{shard}` is not in the folder of the index", path.display())]
    ShardOutside {
        /// The index.
        path: PathBuf,
        /// The shard as named there.
        shard: String,
    },
    /// An index names a file that is not there.
    #[error("{}: the shard `{shard}` with {n_tensors} tensors is missing", path.display())]
    MissingShard {
        /// The index.
        path: PathBuf,
        /// The shard.
        shard: String,
        /// The number of tensors that the index lists for it.
        n_tensors: usize,
    },
    /// A tensor is not where the index lists it.
    #[error("{}: `{key}` is listed for `{shard}`, which does not hold it", path.display())]
    NotInShard {
        /// The index.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shard.
        shard: String,
    },
    /// A shard holds a tensor that the index does not list.
    #[error("{}: `{shard}` holds `{key}`, which the index does not list", path.display())]
    UnlistedTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shard.
        shard: String,
    },
    /// A folder holds no model.
    #[error(
        "{}: no `*.index.json` and no .safetensors, .bin, .pt, .pth or .ckpt file in this folder",
        folder.display()
    )]
    NoModel {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder holds several models.
    #[error("{}: several models in this folder: {}", folder.display(), files.join(", "))]
    SeveralModels {
        /// The folder.
        folder: PathBuf,
        /// The candidates.
        files: Vec<String>,
    },
    /// A folder holds parts of a model, but no index.
    #[error("{}: `{shard}` is a part of a split model, but its index is missing", folder.display())]
    LoneShard {
        /// The folder.
        folder: PathBuf,
        /// A part.
        shard: String,
    },
}
