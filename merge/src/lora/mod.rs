//! Low-rank adapters on top of a checkpoint: `W + s B A`, made while it is read.
//!
//! The folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`). The sum is
//! computed in f32, or f64 where the base is f64, and what comes out is as wide: f32 for bf16, so that
//! whatever is merged next rounds once.
//!
//! [`extract`] goes the other way, from two models to an adapter.
//!
//! Reference: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 4.1.

mod changes;
mod config;
mod extract;
mod factors;
mod part;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use changes::Change;
use config::Config;
pub(crate) use config::named_base;
pub use extract::{ExtractOptions, ExtractTarget, Extracted, Extraction, LeftOut, extract};
use factors::{Factors, Pair};
use regex::Regex;

use crate::io::{self, OpenOptions, SourceInfo, TensorEntry};
use crate::recipe::Place;
use crate::remote::address::is_address;
use crate::{Checkpoint, DType, Error, Result, TensorInfo, TensorSource, decode_f32, decode_f64};

/// Names of the file with an adapter's tensors, the better first.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];

/// How many tensors' factors are kept: as many as threads are likely to be at.
const N_KEPT: usize = 8;

/// Changes of names: a pattern, and what stands in the place of the first part that it fits.
pub(crate) type Renames = Vec<(Regex, String)>;

/// The checkpoint with the adapter of `folder` merged into it, whose names of the base's tensors are
/// changed by `renames`.
///
/// # Errors
/// [`crate::AdapterFault`], every misfit at once; and as [`io::open`].
pub(crate) fn adapted(
    base: Arc<Checkpoint>,
    folder: &Path,
    renames: &Renames,
    place: Place,
) -> Result<Arc<Checkpoint>> {
    let (config, settings) = Config::open(folder, place)?;
    let adapter = io::open(&weights(folder), &OpenOptions::default())?;
    adapter.require_unique_names()?;
    let mut changes = changes::of(&base, &adapter, &config, renames, place)?;
    let mut info = base.info().clone();
    info.files.extend(adapter.info().files.iter().cloned());
    info.files.push(settings);
    let mut tensors = Vec::new();
    for (key, stored) in base.tensors() {
        let change = changes.remove(key);
        let dtype = match (&change, stored.dtype) {
            (Some(_), DType::F16 | DType::BF16) => DType::F32,
            (_, dtype) => dtype,
        };
        let entry = TensorEntry {
            path: crate::ObjectPath(vec![crate::PathSegment::Key(key.to_owned())]),
            name: Some(key.to_owned()),
            info: TensorInfo {
                dtype,
                shape: stored.shape.clone(),
            },
        };
        tensors.push((entry, (key.to_owned(), stored.dtype, change)));
    }
    let (tensors, own) = tensors.into_iter().unzip();
    Ok(Arc::new(Checkpoint::new(Box::new(Adapted {
        base,
        adapter,
        info,
        tensors,
        own,
        kept: Mutex::default(),
    }))))
}

/// The file with an adapter's tensors.
fn weights(folder: &Path) -> PathBuf {
    let mut paths = WEIGHTS.iter().map(|name| folder.join(name));
    let found = match is_address(folder) {
        true => None,
        false => paths.find(|path| path.is_file()),
    };
    found.unwrap_or_else(|| folder.join(WEIGHTS[0]))
}

/// Factors of some tensors, by their index, while they are likely to be used again.
type Kept = VecDeque<(usize, Arc<Factors>)>;

struct Adapted {
    base: Arc<Checkpoint>,
    adapter: Checkpoint,
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    /// Each tensor's name, what the base has it in, and what the adapter does to it.
    own: Vec<(String, DType, Option<Change>)>,
    kept: Mutex<Kept>,
}

impl TensorSource for Adapted {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.own[index].1
    }

    fn held_bytes(&self) -> u64 {
        let pairs = (self.own.iter()).filter_map(|(_, _, change)| change.as_ref()?.added.as_ref());
        let mut sizes: Vec<u64> = pairs.map(Pair::n_bytes).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.iter().take(N_KEPT).sum()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let (key, _, change) = &self.own[index];
        let Some(change) = change else {
            return self.base.read(key, first, out);
        };
        let (source, name) = match &change.replaced {
            Some(name) => (&self.adapter, name),
            None => (&*self.base, key),
        };
        let from = source.require(name)?.dtype;
        let to = self.tensors[index].info.dtype;
        if from == to && change.added.is_none() {
            return source.read(name, first, out);
        }
        let n = out.len() / to.size_bytes();
        let mut bytes = vec![0; n * from.size_bytes()];
        source.read(name, first, &mut bytes)?;
        let mut added = vec![0.0; n];
        if let Some(pair) = &change.added {
            self.factors(index, pair)?.fill(first, &mut added);
        }
        match to {
            DType::F64 => {
                let mut values = vec![0.0; n];
                decode_f64(name, from, &bytes, &mut values)?;
                for (value, &added) in values.iter_mut().zip(&added) {
                    *value += f64::from(added);
                }
                out.copy_from_slice(bytemuck::cast_slice(&values));
            }
            _ => {
                let mut values = vec![0.0; n];
                decode_f32(name, from, &bytes, &mut values)?;
                for (value, &added) in values.iter_mut().zip(&added) {
                    *value += added;
                }
                out.copy_from_slice(bytemuck::cast_slice(&values));
            }
        }
        Ok(())
    }
}

impl Adapted {
    /// The factors of a tensor, read unless they were used a short while ago.
    fn factors(&self, index: usize, pair: &Pair) -> Result<Arc<Factors>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = lock().iter().find(|(known, _)| *known == index) {
            return Ok(Arc::clone(known));
        }
        let factors = Arc::new(pair.read(&self.adapter)?);
        let mut kept = lock();
        if kept.len() >= N_KEPT {
            kept.pop_front();
        }
        kept.push_back((index, Arc::clone(&factors)));
        Ok(factors)
    }
}

/// Text of a file of at most `max_bytes`, here or by its address, and the file for the list of inputs.
fn read_settings(path: &Path, max_bytes: u64) -> Result<(String, io::SourceFile)> {
    let file = io::open_bytes(path)?;
    let n_bytes = file.n_bytes();
    let failed = |reason: String| {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        Error::io("read", path, source)
    };
    if n_bytes > max_bytes {
        return Err(failed(format!("{n_bytes} bytes are more than {max_bytes}")));
    }
    let mut bytes = vec![0; n_bytes as usize];
    (file.read_exact_at(&mut bytes, 0)).map_err(|source| Error::io("read", path, source))?;
    let text = String::from_utf8(bytes).map_err(|_| failed("no UTF-8".into()))?;
    let file = io::SourceFile {
        path: path.into(),
        n_bytes,
        etag: file.etag(),
    };
    Ok((text, file))
}
