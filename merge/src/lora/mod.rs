//! Low-rank adapters on top of a checkpoint: `W + s B A` and its relatives, made while it is read.
//!
//! The folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`). A file, or a
//! folder without settings, is one of kohya, LyCORIS or diffusers. The sum is computed in f32, or f64 where
//! the base is f64, and what comes out is as wide: f32 for bf16, so that whatever is merged next rounds once.
//!
//! [`extract`] goes the other way, from two models to an adapter; [`combine`] makes one adapter of several.
//!
//! References: Hu et al. 2021, <https://arxiv.org/abs/2106.09685>, section 4.1; Liu et al. 2024 (DoRA),
//! <https://arxiv.org/abs/2402.09353>, section 4.1; PEFT's `merge_and_unload`.

mod adapted;
mod changes;
mod combine;
mod config;
mod extract;
mod factors;
mod modules;
mod part;
pub(crate) mod plain;
mod updates;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use combine::{Combination, combine};
use config::Config;
pub(crate) use config::named_base;
pub use extract::{ExtractOptions, ExtractTarget, Extracted, Extraction, LeftOut, extract};
use regex::Regex;

use crate::io::{self, OpenOptions};
use crate::recipe::Place;
use crate::remote::address::is_address;
use crate::{Checkpoint, Error, Result};

/// Names of the file with an adapter's tensors, the better first.
const WEIGHTS: [&str; 4] = [
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
];

/// Changes of names: a pattern, and the replacement of the first part that it fits.
pub(crate) type Renames = Vec<(Regex, String)>;

/// The checkpoint with adapters merged into it, one after the other, each with its weight: of a weight `w`
/// the result is as far as `w` from the old value to the adapter's. Changed tensors are `f64` where
/// `keeps_rank`.
///
/// # Errors
/// [`crate::AdapterFault`], every misfit of an adapter at once; and as [`io::open`].
pub(crate) fn stacked(
    base: Arc<Checkpoint>,
    adapters: &[(PathBuf, f64)],
    renames: &Renames,
    place: Place,
    keeps_rank: bool,
) -> Result<Arc<Checkpoint>> {
    let mut below = Arc::clone(&base);
    for (folder, weight) in adapters {
        below = adapted(&base, &below, (folder, *weight), renames, place, keeps_rank)?;
    }
    Ok(below)
}

/// The tensors that an adapter changes.
pub(crate) struct Targets {
    /// Tensors of the adapter.
    pub(crate) n_tensors: usize,
    /// Tensors of the base that it changes, and heads that it adds.
    pub(crate) names: Vec<String>,
    /// Its tensors for other parts of a pipeline.
    pub(crate) others: Vec<String>,
}

/// The tensors of a checkpoint that the adapter of `folder` changes; its headers alone are read.
///
/// # Errors
/// As [`stacked`].
pub(crate) fn targets(
    below: &Checkpoint,
    folder: &Path,
    renames: &Renames,
    place: Place,
) -> Result<Targets> {
    let config = match config::has_settings(folder) {
        true => Config::open(folder, place)?.0,
        false => Config::without_settings(),
    };
    let adapter = io::open(&weights(folder), &OpenOptions::default())?;
    let changes = changes::of(below, &adapter, &config, renames, place)?;
    let names = changes.by_target.keys().chain(changes.heads.keys());
    let names: BTreeSet<String> = names.cloned().collect();
    Ok(Targets {
        n_tensors: adapter.tensors().count(),
        names: names.into_iter().collect(),
        others: changes.others,
    })
}

/// The checkpoint `below` with the adapter of `folder` merged into it, whose names of the tensors are changed
/// by `renames`. Lengths of weights are those of `unmerged`, as PEFT takes them.
///
/// # Errors
/// As [`stacked`].
pub(crate) fn adapted(
    unmerged: &Arc<Checkpoint>,
    below: &Arc<Checkpoint>,
    (folder, weight): (&Path, f64),
    renames: &Renames,
    place: Place,
    keeps_rank: bool,
) -> Result<Arc<Checkpoint>> {
    let (config, settings) = match config::has_settings(folder) {
        true => {
            let (config, file) = Config::open(folder, place)?;
            (config, Some(file))
        }
        false => (Config::without_settings(), None),
    };
    let adapter = io::open(&weights(folder), &OpenOptions::default())?;
    adapter.require_unique_names()?;
    let changes = changes::of(below, &adapter, &config, renames, place)?;
    let n_targets = changes.by_target.len();
    let view = adapted::Adapted::new(
        Arc::clone(unmerged),
        Arc::clone(below),
        adapter,
        settings,
        changes,
        weight,
        keeps_rank,
    )?;
    let idle = view.is_idle()?.then(|| {
        let why = match weight == 0.0 {
            true => "its weight is 0",
            false => "its factors make zero: was it trained?",
        };
        let folder = folder.display();
        format!("{folder}: changes none of {n_targets} weights; {why}")
    });
    let notes = below.notes().iter().cloned().chain(idle);
    let merged = Checkpoint::new(Box::new(view));
    Ok(Arc::new(
        notes.fold(merged, |merged, note| merged.with_note(Some(note))),
    ))
}

/// Names in an adapter that stand for other parts of a pipeline than the base, and how many it has.
///
/// # Errors
/// As [`stacked`].
pub(crate) fn other_parts(
    base: &Checkpoint,
    folder: &Path,
    renames: &Renames,
    place: Place,
) -> Result<Vec<String>> {
    if config::has_settings(folder) {
        return Ok(Vec::new());
    }
    // Headers alone are read, as for the merge itself.
    let adapter = io::open(&weights(folder), &OpenOptions::default())?;
    let changes = changes::of(base, &adapter, &Config::without_settings(), renames, place)?;
    Ok(changes.others)
}

/// The file with an adapter's tensors.
fn weights(folder: &Path) -> PathBuf {
    if folder.is_file() || is_address(folder) && !config::has_settings(folder) {
        return folder.to_owned();
    }
    let mut paths = WEIGHTS.iter().map(|name| folder.join(name));
    let found = match is_address(folder) {
        true => None,
        false => paths.find(|path| path.is_file()),
    };
    found.unwrap_or_else(|| folder.join(WEIGHTS[0]))
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
    io::require_fetched(path, &bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| failed("no UTF-8".into()))?;
    Ok((text, io::SourceFile::of(path, file.as_ref())))
}
