//! Shards of safetensors: `shard-00001-model-00001-of-00001.safetensors`, which the storage writer of
//! `torch.distributed.checkpoint` for Hugging Face leaves, a file or several for each process.
//!
//! A shard holds boxes of tensors under the tensors' names, and says in its metadata where each begins. Nothing says how
//! large a tensor is: it reaches to the end of its last box.
//!
//! Source: `torch/distributed/checkpoint/{hf_storage,_hf_utils,filesystem}.py` of torch 2.8 and 2.9.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::pool::Pool;
use super::{Kind, Listing, Opened, Role, info_of, inside};
use crate::io::assembled::{Assembled, InPieces, Piece};
use crate::io::safetensors::{self, require_root};
use crate::io::{
    Aliases, Container, OpenOptions, Root, SourceFile, SourceInfo, TensorEntry, TensorInfo,
    TensorSource,
};
use crate::{DType, Error, Result, TrainerFault};

/// The row of the table of kinds.
pub(super) const KIND: Kind = Kind {
    name: "model in shards of safetensors",
    is_in: |listing| listing.files.iter().any(|name| shard(name).is_some()),
    role: |name, _| shard(name).map(|_| Role::Part),
    open,
};

/// The entry of a shard's metadata that says where boxes begin.
const INFO_KEY: &str = "DCP_SHARDING_INFO";

/// The most memory for what files say of their boxes.
const LIMIT_BYTES: usize = 96 << 20;

/// Absent shards that a note names.
const NAMED: usize = 8;

/// The memory of a box, beside twice its name and its shape.
const BOX_BYTES: usize = 256;

/// The number of a shard, from 1 on, by the name of its file.
fn shard(name: &str) -> Option<usize> {
    let rest = name.strip_prefix("shard-")?.strip_suffix(".safetensors")?;
    let (number, rest) = rest.split_once("-model-")?;
    let (part, n_parts) = rest.split_once("-of-")?;
    let count = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<usize>().ok()).flatten()
    };
    let (number, part, n_parts) = (count(number)?, count(part)?, count(n_parts)?);
    (number > 0 && (1..=n_parts).contains(&part)).then_some(number)
}

/// Where a box begins.
#[derive(Deserialize)]
struct Saved {
    saved_offsets: Vec<usize>,
}

/// A tensor as far as its boxes were met.
struct Found {
    dtype: DType,
    /// Where its furthest box ends.
    shape: Vec<usize>,
    /// File, number in it, size and start of each box.
    boxes: Vec<(usize, usize, Vec<usize>, Vec<usize>)>,
}

fn open(listing: &Listing, options: &OpenOptions) -> Result<Opened> {
    let folder = &listing.folder;
    require_root(folder, options)?;
    let shards = listing.files.iter();
    let shards: Vec<(usize, &String)> =
        (shards.filter_map(|name| Some((shard(name)?, name)))).collect();
    let note = note(listing, &shards);
    let pool = Arc::new(Pool::default());
    let mut model = Model::default();
    let mut source_files = Vec::new();
    for (_, name) in shards {
        let path = inside(folder, name)?;
        let file = pool.open(&path)?;
        source_files.push(SourceFile::of(&path, &file));
        model.add(
            path.clone(),
            safetensors::open(&path, Box::new(file), options)?,
        )?;
    }
    let source = model.finish(listing, source_files)?;
    Ok(Opened {
        source,
        notes: vec![note],
    })
}

/// Notes for users on the shards. A process that holds nothing that another does not hold writes no
/// shard, so a number that is not there need not be missing.
fn note(listing: &Listing, shards: &[(usize, &String)]) -> String {
    let numbers: BTreeSet<usize> = shards.iter().map(|(number, _)| *number).collect();
    let last = numbers.last().copied().unwrap_or(0);
    let absent: Vec<String> = (1..last)
        .filter(|number| !numbers.contains(number))
        .take(NAMED)
        .map(|number| number.to_string())
        .collect();
    let mut note = format!(
        "{}: put together of {} shards, the last of them number {last}; their files do not say how many there were",
        listing.folder.display(),
        numbers.len()
    );
    if !absent.is_empty() {
        note.push_str(&format!("; not there: {}", absent.join(", ")));
    }
    note
}

/// The model as far as its shards were met.
#[derive(Default)]
struct Model {
    order: Vec<String>,
    tensors: HashMap<String, Found>,
    files: Vec<Box<dyn TensorSource>>,
    n_boxes: usize,
    n_bytes: usize,
}

impl Model {
    /// Adds the boxes of a file.
    fn add(&mut self, path: PathBuf, source: Box<dyn TensorSource>) -> Result<()> {
        let said = source.info().metadata.get(INFO_KEY);
        let said = said.ok_or_else(|| TrainerFault::NoShardingInfo { path: path.clone() })?;
        let mut saved: HashMap<String, Saved> =
            serde_json::from_str(said).map_err(|source| TrainerFault::BadShardingInfo {
                path: path.clone(),
                source,
            })?;
        for (number, TensorEntry { name, info, .. }) in source.tensors().iter().enumerate() {
            let key = name.clone().unwrap_or_default();
            let start = saved.remove(&key).map(|saved| saved.saved_offsets);
            let start = start.filter(|start| start.len() == info.shape.len());
            let start = start.ok_or_else(|| TrainerFault::NoOffsets {
                path: path.clone(),
                key: key.clone(),
                shape: info.shape.clone(),
            })?;
            self.n_boxes += 1;
            self.n_bytes += BOX_BYTES + 2 * key.len() + 24 * info.shape.len();
            if self.n_bytes > LIMIT_BYTES {
                return Err(TrainerFault::ManyPieces {
                    path,
                    n_tensors: self.tensors.len(),
                    n_pieces: self.n_boxes,
                    limit: LIMIT_BYTES,
                }
                .into());
            }
            self.add_box(&path, key, info, number, start)?;
        }
        self.files.push(source);
        Ok(())
    }

    fn add_box(
        &mut self,
        path: &Path,
        key: String,
        info: &TensorInfo,
        number: usize,
        start: Vec<usize>,
    ) -> Result<()> {
        let ends = start.iter().zip(&info.shape);
        let ends: Option<Vec<usize>> = ends.map(|(start, size)| start.checked_add(*size)).collect();
        let too_large = |shape: &[usize]| {
            Error::from(TrainerFault::TooLarge {
                path: path.into(),
                key: key.clone(),
                shape: shape.to_vec(),
            })
        };
        let ends = ends.ok_or_else(|| too_large(&start))?;
        let found = self.tensors.get_mut(&key);
        let shape = match &found {
            Some(found) if found.dtype != info.dtype || found.shape.len() != ends.len() => {
                return Err(TrainerFault::RanksDisagree {
                    path: path.into(),
                    key,
                    found: format!("{} of {} axes", info.dtype, ends.len()),
                    wanted: format!("{} of {} axes", found.dtype, found.shape.len()),
                }
                .into());
            }
            Some(found) => (found.shape.iter().zip(&ends))
                .map(|(one, other)| *one.max(other))
                .collect(),
            None => ends,
        };
        info_of(info.dtype, &shape).ok_or_else(|| too_large(&shape))?;
        let one = (self.files.len(), number, info.shape.clone(), start);
        match found {
            Some(found) => {
                found.shape = shape;
                found.boxes.push(one);
            }
            None => {
                self.order.push(key.clone());
                let found = Found {
                    dtype: info.dtype,
                    shape,
                    boxes: vec![one],
                };
                self.tensors.insert(key, found);
            }
        }
        Ok(())
    }

    fn finish(
        mut self,
        listing: &Listing,
        files: Vec<SourceFile>,
    ) -> Result<Box<dyn TensorSource>> {
        let found: Vec<(String, Found)> = (self.order.into_iter())
            .filter_map(|key| self.tensors.remove_entry(&key))
            .collect();
        let infos = found
            .iter()
            .map(|(_, Found { dtype, shape, .. })| TensorInfo {
                dtype: *dtype,
                shape: shape.clone(),
            });
        let n_bytes = infos
            .map(|info| info.n_bytes())
            .fold(0, u64::saturating_add);
        let info = SourceInfo {
            path: listing.folder.clone(),
            container: Container::Shards,
            files,
            metadata: BTreeMap::new(),
            roots: vec![Root {
                name: String::new(),
                n_tensors: found.len(),
                n_bytes,
            }],
            root: String::new(),
            values: Vec::new(),
            opaque: Vec::new(),
        };
        let tensors = found.into_iter().map(|(key, found)| {
            let Found {
                dtype,
                shape,
                boxes,
            } = found;
            let boxes = boxes.into_iter();
            let pieces = boxes.map(|(file, number, size, start)| {
                Piece::whole(file, number, &size, &shape, &start)
            });
            Ok(InPieces {
                pieces: pieces.collect(),
                entry: TensorEntry::named(key, TensorInfo { dtype, shape }),
            })
        });
        let source = Assembled::new(info, tensors, self.files, Aliases::new())?;
        Ok(Box::new(source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_told_by_their_names() {
        assert_eq!(
            shard("shard-00002-model-00001-of-00003.safetensors"),
            Some(2)
        );
        for name in [
            "model-00001-of-00003.safetensors",
            "shard-00000-model-00001-of-00003.safetensors",
            "shard-00001-model-00004-of-00003.safetensors",
            "shard-1-model--of-00003.safetensors",
            "shard-00001-model-00001-of-00003.bin",
            "shard-+1-model-1-of-1.safetensors",
        ] {
            assert_eq!(shard(name), None, "{name}");
        }
    }
}
