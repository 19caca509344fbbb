//! How a model is split into files, and what the index says of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Contents;
use crate::TensorInfo;

/// Splits tensors, in their order, into runs of at most `max_bytes`; a larger tensor has a run of
/// its own.
pub(super) fn split(tensors: &[(String, TensorInfo)], max_bytes: u64) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    let (mut first, mut n_bytes) = (0, 0_u64);
    for (index, (_, info)) in tensors.iter().enumerate() {
        if index > first && n_bytes.saturating_add(info.n_bytes()) > max_bytes {
            runs.push(first..index);
            (first, n_bytes) = (index, 0);
        }
        n_bytes += info.n_bytes();
    }
    runs.push(first..tensors.len());
    runs
}

/// The file of shard `index` of `n_shards` (counted from 0) beside `target`:
/// `stem-00001-of-00003.extension`.
pub(super) fn shard_path(target: &Path, index: usize, n_shards: usize) -> PathBuf {
    let stem = target.file_stem().unwrap_or_default();
    let mut name = stem.to_os_string();
    name.push(format!("-{:05}-of-{n_shards:05}", index + 1));
    if let Some(extension) = target.extension() {
        name.push(".");
        name.push(extension);
    }
    target.with_file_name(name)
}

/// The index beside `target`: `stem.extension.index.json`.
pub(super) fn index_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_os_string();
    name.push(".index.json");
    target.with_file_name(name)
}

/// The index's text: which tensor is in which file.
pub(super) fn index_text(contents: Contents<'_>, runs: &[Range<usize>], target: &Path) -> String {
    let mut weight_map = BTreeMap::new();
    let mut total_size = 0;
    for (shard, run) in runs.iter().enumerate() {
        let path = shard_path(target, shard, runs.len());
        let file = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for (name, info) in &contents.tensors[run.clone()] {
            weight_map.insert(name, file.clone());
            total_size += info.n_bytes();
        }
    }
    for (name, of) in contents.aliases {
        if let Some(file) = weight_map.get(of).cloned() {
            weight_map.insert(name, file);
        }
    }
    let index = json!({
        "metadata": { "total_size": total_size },
        "weight_map": weight_map,
    });
    format!("{index:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn tensors_fill_shards_in_order_and_large_ones_stand_alone() {
        let tensors: Vec<_> = [4, 4, 9, 1, 2]
            .iter()
            .map(|&size| {
                let shape = vec![size];
                (
                    String::new(),
                    TensorInfo {
                        dtype: DType::U8,
                        shape,
                    },
                )
            })
            .collect();
        assert_eq!(split(&tensors, 8), [0..2, 2..3, 3..5]);
        assert_eq!(
            split(&[], 8).len(),
            1,
            "a model without tensors is one file"
        );
    }

    #[test]
    fn shards_are_named_as_published_models_name_them() {
        let target = Path::new("out/model.v2.safetensors");
        let shard = Path::new("out/model.v2-00002-of-00012.safetensors");
        assert_eq!(shard_path(target, 1, 12), shard);
        let index = Path::new("out/model.v2.safetensors.index.json");
        assert_eq!(index_path(target), index);
    }
}
