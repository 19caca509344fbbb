//! Reading models that are split into several files, named by an index json.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::aliases::{self, Aliases};
use super::pairs::StringPairs;
use super::read_at::ReadAt;
use super::source::{Container, OpenOptions, Root, SourceFile, SourceInfo};
use super::source::{TensorEntry, TensorSource};
use crate::remote::address;
use crate::{Error, Result, SplitFault};

/// The longest index that is read: a hundred times that of the largest published models.
const MAX_INDEX_BYTES: u64 = 100_000_000;

/// The contents of an index.
#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    metadata: BTreeMap<String, Value>,
    weight_map: StringPairs,
}

/// Opens the model that the index in `file` describes; `open_shard` opens each of its files.
pub(super) fn open(
    path: &Path,
    file: &dyn ReadAt,
    options: &OpenOptions,
    open_shard: impl Fn(&Path) -> Result<Box<dyn TensorSource>>,
) -> Result<Box<dyn TensorSource>> {
    let text = read_text(path, file)?;
    let index: Index = serde_json::from_str(&text).map_err(|source| SplitFault::Index {
        path: path.into(),
        source,
    })?;
    let weight_map = index.weight_map.into_map(path, "weight_map")?;
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut shards = Vec::with_capacity(names.len());
    for name in &names {
        let shard = shard_path(path, name)?;
        if !address::is_address(&shard) && !shard.exists() {
            return Err(SplitFault::MissingShard {
                path: path.into(),
                shard: (*name).clone(),
                n_tensors: weight_map.values().filter(|other| other == name).count(),
            }
            .into());
        }
        shards.push((name.as_str(), open_shard(&shard)?));
    }
    check_names(path, &weight_map, &shards)?;
    let sources: Vec<_> = shards.into_iter().map(|(_, source)| source).collect();
    let aliases = joined_aliases(path, &sources)?;
    let index_file = SourceFile::of(path, file);
    let metadata = plain_metadata(index.metadata);
    let root = options.root.clone().unwrap_or_default();
    Ok(Box::new(ShardedModel {
        aliases,
        ..ShardedModel::new(index_file, metadata, root, sources)
    }))
}

fn read_text(path: &Path, file: &dyn ReadAt) -> Result<String> {
    let failed = |source| Error::io("read", path, source);
    let n_bytes = file.n_bytes();
    if n_bytes > MAX_INDEX_BYTES {
        return Err(SplitFault::IndexTooLong {
            path: path.into(),
            n_bytes,
        }
        .into());
    }
    let mut text = vec![0; n_bytes as usize];
    file.read_part(&mut text, 0, 0..n_bytes).map_err(failed)?;
    String::from_utf8(text).map_err(|fault| failed(std::io::Error::other(fault)))
}

/// The file of a shard, which must stand in the folder of the index or below it.
fn shard_path(index: &Path, name: &str) -> Result<PathBuf> {
    let stays_inside = !name.is_empty()
        && Path::new(name)
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
    if !stays_inside {
        return Err(SplitFault::ShardOutside {
            path: index.into(),
            shard: name.to_owned(),
        }
        .into());
    }
    Ok(index.with_file_name(name))
}

/// Holds the shards against the index: every listed tensor must stand where it is listed, and
/// nowhere else; every tensor found must be listed.
fn check_names(
    path: &Path,
    weight_map: &BTreeMap<String, String>,
    shards: &[(&str, Box<dyn TensorSource>)],
) -> Result<()> {
    let mut found = BTreeMap::new();
    for (shard, source) in shards {
        for name in source
            .tensors()
            .iter()
            .filter_map(|entry| entry.name.as_ref())
        {
            if !weight_map.contains_key(name) {
                return Err(SplitFault::UnlistedTensor {
                    path: path.into(),
                    key: name.clone(),
                    shard: (*shard).to_owned(),
                }
                .into());
            }
            if found.insert(name, *shard).is_some() {
                return Err(Error::DuplicateKey {
                    path: path.into(),
                    key: name.clone(),
                });
            }
        }
    }
    for (name, shard) in weight_map {
        if found.get(name) != Some(&shard.as_str()) {
            return Err(SplitFault::NotInShard {
                path: path.into(),
                key: name.clone(),
                shard: shard.clone(),
            }
            .into());
        }
    }
    Ok(())
}

/// The other names that all shards record. Each shard's are of its own tensors.
fn joined_aliases(path: &Path, shards: &[Box<dyn TensorSource>]) -> Result<Aliases> {
    let mut joined = Aliases::new();
    for (name, of) in shards.iter().flat_map(|shard| shard.aliases()) {
        if joined.insert(name.clone(), of).is_some() {
            return Err(Error::DuplicateKey {
                path: path.into(),
                key: name,
            });
        }
    }
    // In a torch file an alias is listed among the tensors; nowhere is it one of another shard.
    for (index, shard) in shards.iter().enumerate() {
        let own = shard.aliases();
        let others: Aliases = (joined.iter())
            .filter(|(name, _)| !own.contains_key(*name))
            .map(|(name, of)| (name.clone(), of.clone()))
            .collect();
        aliases::check_apart(
            shards[index].info().path.as_path(),
            &others,
            shard.tensors(),
        )?;
    }
    Ok(joined)
}

/// Strings as they are, anything else (such as the total size) as JSON.
fn plain_metadata(metadata: BTreeMap<String, Value>) -> BTreeMap<String, String> {
    metadata
        .into_iter()
        .map(|(key, value)| match value {
            Value::String(text) => (key, text),
            other => (key, other.to_string()),
        })
        .collect()
}

/// The tensors of all shards in a row.
struct ShardedModel {
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    /// Shard, and index within it, of each tensor.
    places: Vec<(usize, usize)>,
    shards: Vec<Box<dyn TensorSource>>,
    aliases: Aliases,
}

impl ShardedModel {
    fn new(
        index_file: SourceFile,
        mut metadata: BTreeMap<String, String>,
        root: String,
        shards: Vec<Box<dyn TensorSource>>,
    ) -> Self {
        let mut tensors = Vec::new();
        let mut places = Vec::new();
        for (shard, source) in shards.iter().enumerate() {
            tensors.extend_from_slice(source.tensors());
            places.extend((0..source.tensors().len()).map(|index| (shard, index)));
        }
        // A fact that all shards state holds for the whole.
        if let Some((first, others)) = shards.split_first() {
            for (key, value) in &first.info().metadata {
                if others
                    .iter()
                    .all(|other| other.info().metadata.get(key) == Some(value))
                {
                    metadata.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
        }
        let path = index_file.path.clone();
        let infos = || shards.iter().map(|source| source.info());
        let files = std::iter::once(index_file)
            .chain(infos().flat_map(|info| info.files.clone()))
            .collect();
        let named = tensors.iter().filter(|entry| entry.name.is_some());
        let info = SourceInfo {
            path,
            container: Container::Sharded,
            files,
            metadata,
            roots: vec![Root {
                name: root.clone(),
                n_tensors: named.clone().count(),
                n_bytes: named.map(|entry| entry.info.n_bytes()).sum(),
            }],
            root,
            values: infos().flat_map(|info| info.values.clone()).collect(),
            opaque: infos().flat_map(|info| info.opaque.clone()).collect(),
        };
        Self {
            info,
            tensors,
            places,
            shards,
            aliases: Aliases::new(),
        }
    }
}

impl TensorSource for ShardedModel {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (shard, within) = self.places[index];
        self.shards[shard].read(within, first, out)
    }
}
