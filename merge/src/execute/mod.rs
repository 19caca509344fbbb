//! Running a plan: tensor by tensor, chunk by chunk, on all cores, in bounded memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::thread;

use rayon::prelude::*;
use serde::Serialize;

use crate::io::{Contents, ReadyFile, SourceFile, WriteOptions, Writer};
use crate::io::{check_target, n_complete_files};
use crate::plan::{Action, Entry, PIECE_ELEMENTS, piece_elements};
use crate::provenance::{HashKind, Hashes, Provenance};
use crate::{Error, MergePlan, Progress, Result, TensorInfo};

mod beside;
mod chunk;
mod compare;
mod fingerprint;
pub(crate) mod finite;
mod idle;
mod inputs;
mod kept;
mod masks;
mod memory;
mod overview;
mod stages;
mod survey;
mod verdict;
mod whole;

pub use compare::{Comparison, Differing, compare};
pub use masks::write_masks;
pub use memory::in_memory;

use chunk::Worker;
use idle::Idle;
use verdict::Watched;

/// The target of results' bytes: a file, or memory.
trait Sink: Sync {
    /// Takes bytes of entry `index` of the plan from `first_byte` on; from many threads.
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()>;
}

impl Sink for Writer {
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        Self::write(self, index, first_byte, bytes)
    }
}

/// Settings of running a plan.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Read and write infinities and NaNs instead of refusing them.
    pub allow_non_finite: bool,
    /// Look for them in tensors that are copied untouched, too.
    pub check_copies: bool,
    /// Record a hash of every input file.
    pub hash: Option<HashKind>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            allow_non_finite: false,
            check_copies: true,
            hash: Some(HashKind::default()),
        }
    }
}

/// The counts of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The files in place.
    pub files: Vec<PathBuf>,
    /// Tensors copied.
    pub n_copied: usize,
    /// Tensors among those copied that are no tensor of a file: an adapter was merged into them, codes were
    /// read as numbers, or rows were put in another order.
    pub n_computed: usize,
    /// Tensors combined from several, or made without an input.
    pub n_combined: usize,
    /// Tensors among those combined from several that are bit for bit what they are measured from: the base, or
    /// else the first model.
    pub n_unchanged: usize,
    /// Input tensors left out.
    pub n_dropped: usize,
    /// Files that a run before had completed.
    pub n_files_kept: usize,
    /// Tensor bytes read.
    pub input_bytes: u64,
    /// Tensor bytes written.
    pub output_bytes: u64,
}

/// The pieces of tensors to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chosen {
    All,
    /// Of each tensor the first, the last and one between.
    Sample,
}

impl Chosen {
    fn of(self, pieces: Vec<Piece>) -> Vec<Piece> {
        let (Self::Sample, Some(last)) = (self, pieces.len().checked_sub(1)) else {
            return pieces;
        };
        // Which one differs from tensor to tensor.
        let between = match pieces.first() {
            Some(first) if last > 1 => 1 + (first.entry * 7919) % (last - 1),
            _ => 0,
        };
        let is_chosen = |&(at, _): &(usize, Piece)| at == 0 || at == last || at == between;
        let chosen = pieces.into_iter().enumerate().filter(is_chosen);
        chosen.map(|(_, piece)| piece).collect()
    }
}

/// Elements `first..first + length` of an entry.
#[derive(Clone, Copy)]
struct Piece {
    entry: usize,
    first: usize,
    length: usize,
}

/// Runs a plan and puts the result in place. Inputs are hashed at the same time.
///
/// # Errors
/// When an input cannot be read, an input or a result is not finite, the target cannot be written, or the user
/// stops it; the target is then as it was before.
pub fn execute(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Summary> {
    execute_beside(plan, write, run, &[], progress)
}

/// As [`execute`], with texts that go into files of their own just before the output gets its name.
///
/// # Errors
/// As [`execute`].
pub(crate) fn execute_beside(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    texts: &[(PathBuf, String)],
    progress: &dyn Progress,
) -> Result<Summary> {
    let fingerprint = fingerprint::of(plan, &placeholder(plan, run)?, write, run);
    let n_files_kept = n_complete_files(&write.path, &fingerprint);
    // An unfinished run put the files under the target's names.
    let may_replace = write.force || n_files_kept > 0;
    let stale = beside::check(plan, write, may_replace)?;
    let write = &WriteOptions {
        force: may_replace,
        gguf: plan.beside().gguf.clone(),
        ..write.clone()
    };
    // Announced before the first folder is made, for from here on an interrupt must clean up.
    progress.start("writing", plan.output_bytes());
    let _folder = beside::make_folders(plan, write)?;
    stages::write(plan, write, run, progress, &mut Vec::new())?;
    progress.start("writing", plan.output_bytes());
    let around = Around {
        fingerprint: &fingerprint,
        stale: &stale,
        texts,
    };
    let files = write_all(plan, write, run, &around, progress);
    progress.finish();
    let is_copy = |entry: &&Entry| matches!(entry.action, Action::Copy(_));
    let combining = plan.combining();
    let n_copied = combining.entries().iter().filter(is_copy).count();
    let is_computed = |entry: &&Entry| match &entry.action {
        Action::Copy(tensor) => combining.sources()[tensor.source].is_computed(&tensor.key),
        _ => false,
    };
    let n_computed = combining.entries().iter().filter(is_computed).count();
    let (files, n_unchanged) = files?;
    Ok(Summary {
        files,
        n_copied,
        n_computed,
        n_combined: combining.entries().len() - n_copied,
        n_unchanged,
        n_dropped: combining.dropped().len(),
        n_files_kept,
        input_bytes: plan.input_bytes(),
        output_bytes: plan.output_bytes(),
    })
}

/// Checks all that can be checked of the target before the work.
///
/// # Errors
/// When the target cannot be written; nothing is created.
pub fn check(plan: &MergePlan, write: &WriteOptions, run: &RunOptions) -> Result<()> {
    let metadata = placeholder(plan, run)?;
    beside::check(plan, write, write.force)?;
    let write = &WriteOptions {
        gguf: plan.beside().gguf.clone(),
        ..write.clone()
    };
    check_target(contents(plan, &tensors(plan)), &metadata, write)
}

/// The metadata of the output, with stand-ins for the hashes of the inputs.
fn placeholder(plan: &MergePlan, run: &RunOptions) -> Result<BTreeMap<String, String>> {
    let made = Provenance::new(plan.recipe().to_owned(), &plan.files());
    plan.metadata(&made.with_placeholder_hashes(run.hash))
}

/// Names, shapes and dtypes of the output.
fn tensors(plan: &MergePlan) -> Vec<(String, TensorInfo)> {
    let entries = plan.entries().iter();
    entries
        .map(|entry| (entry.name.clone(), entry.info.clone()))
        .collect()
}

/// The tensors of the output with their other names.
fn contents<'a>(plan: &'a MergePlan, tensors: &'a [(String, TensorInfo)]) -> Contents<'a> {
    let aliases = plan.aliases();
    Contents { tensors, aliases }
}

/// The places around a run's output.
#[derive(Default)]
struct Around<'a> {
    /// One number for everything that the output's bytes depend on.
    fingerprint: &'a str,
    /// Files that it takes the place of.
    stale: &'a [PathBuf],
    /// Texts for files of their own.
    texts: &'a [(PathBuf, String)],
}

/// Writes the whole output and puts it in place of stale files. Returns its files, and how many tensors
/// were combined without a change.
fn write_all(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    around: &Around<'_>,
    progress: &dyn Progress,
) -> Result<(Vec<PathBuf>, usize)> {
    plan.settle(progress)?;
    let files = plan.files();
    let tensors = tensors(plan);
    let contents = contents(plan, &tensors);
    let writer = Writer::resume(
        contents,
        &placeholder(plan, run)?,
        write,
        around.fingerprint,
    )?;
    let watched = Watched::new(plan, &writer);
    let known = Hashes::default();
    let (written, hashes) = thread::scope(|scope| {
        let hashes = scope.spawn(|| {
            run.hash
                .map(|kind| known.of(&files, kind, progress))
                .transpose()
        });
        let written = write_runs(plan, &writer, &watched, run, progress);
        // A panic of the hashing thread is a bug and goes on as one.
        let hashes = hashes
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (written, hashes)
    });
    let stopped = |fault| match fault {
        Error::Cancelled if writer.n_complete() > 0 => Error::Stopped {
            n_files: writer.n_complete(),
        },
        other => other,
    };
    written.map_err(stopped)?;
    let provenance = Provenance::new(plan.recipe().to_owned(), &files);
    let provenance = match hashes.map_err(stopped)? {
        Some(hashes) => provenance.with_hashes(hashes),
        None => provenance,
    };
    plan.check_grams(&provenance, &known, progress)?;
    let mut belongings = beside::prepare(plan, write, &provenance, around.stale)?;
    for (path, text) in around.texts {
        let file = ReadyFile::new(path, text.as_bytes(), write.force)?;
        belongings.files.push(file);
    }
    // After the last byte was read and hashed: both are of the files that were opened.
    require_unchanged(&files)?;
    require_unchanged(&plan.beside().seen)?;
    let n_unchanged = watched.n_unchanged();
    let files = writer.finish_with(&plan.metadata(&provenance)?, belongings)?;
    Ok((files, n_unchanged))
}

/// Checks that the inputs are still those that were opened.
fn require_unchanged(files: &[SourceFile]) -> Result<()> {
    files.iter().try_for_each(SourceFile::require_unchanged)
}

/// Writes one file after the other, where there are several.
fn write_runs(
    plan: &MergePlan,
    writer: &Writer,
    sink: &dyn Sink,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let open = writer.open_runs();
    let n_bytes = |run: &Range<usize>| -> u64 {
        let entries = plan.entries()[run.clone()].iter();
        entries.map(|entry| entry.info.n_bytes()).sum()
    };
    let kept = plan.output_bytes() - open.iter().map(n_bytes).sum::<u64>();
    progress.advance(kept);
    for entries in &open {
        write_entries(plan, entries, sink, run, Chosen::All, progress)?;
        writer.complete(entries)?;
    }
    Ok(())
}

/// Makes the entries of a range of a plan.
fn write_entries(
    plan: &MergePlan,
    range: &Range<usize>,
    sink: &dyn Sink,
    run: &RunOptions,
    chosen: Chosen,
    progress: &dyn Progress,
) -> Result<()> {
    let entries = || {
        (plan.entries().iter().enumerate())
            .take(range.end)
            .skip(range.start)
    };
    let is_whole = |entry: &Entry| matches!(entry.action, Action::Whole { .. });
    let is_survey = |entry: &Entry| matches!(entry.action, Action::Survey { .. });
    let pieces: Vec<Piece> = entries()
        .filter(|(_, entry)| !is_whole(entry) && !is_survey(entry))
        .flat_map(|(index, entry)| {
            let unit = match &entry.action {
                Action::Elementwise { kernel, .. } => kernel.unit(),
                _ => 1,
            };
            chosen.of(pieces_of(index, entry.info.n_elements(), unit).collect())
        })
        .collect();
    let workers = Idle::default();
    let new_worker = || Worker::new(plan, sink, run);
    let each = |pieces: Vec<Piece>,
                write: &(dyn Fn(&mut Worker<'_>, Piece) -> Result<u64> + Sync)| {
        pieces.into_par_iter().try_for_each(|piece| {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            progress.advance(workers.with(new_worker, |worker| write(worker, piece))?);
            Ok(())
        })
    };
    each(pieces, &|worker, piece| worker.write(piece))?;
    let memory = survey::Memory::new();
    let is_checked = !run.allow_non_finite;
    overview::look(plan, &memory, is_checked, progress)?;
    let surveys = entries().filter(|(_, entry)| is_survey(entry));
    // Small tensors go to the cores as wholes, the large ones chunk by chunk: a thread that waits for
    // the chunks of one tensor never begins another, so that buffers stay few.
    let (small, large): (Vec<_>, Vec<_>) =
        surveys.partition(|(_, entry)| entry.info.n_elements() <= SMALL_ELEMENTS);
    small.into_par_iter().try_for_each(|(index, entry)| {
        let Some(surveyed) = survey::survey(plan, entry, &memory, is_checked, progress, false)?
        else {
            return Ok(());
        };
        workers.with(new_worker, |worker| {
            for piece in chosen.of(surveyed.pieces(index, entry).collect()) {
                progress.advance(worker.write_surveyed(&surveyed, piece)?);
            }
            Ok::<(), Error>(())
        })
    })?;
    for (index, entry) in large {
        let Some(surveyed) = survey::survey(plan, entry, &memory, is_checked, progress, true)?
        else {
            continue;
        };
        let pieces = chosen.of(surveyed.pieces(index, entry).collect());
        each(pieces, &|worker, piece| {
            worker.write_surveyed(&surveyed, piece)
        })?;
    }
    // Whole-tensor operations that use all cores themselves run one at a time, to bound memory.
    let wholes: Vec<_> = entries().filter(|(_, entry)| is_whole(entry)).collect();
    whole::each(plan, &wholes, |&(index, entry)| {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let merged = whole::merge(plan, entry, is_checked)?;
        let values = merged.as_standard_layout();
        let values = values.as_slice().unwrap_or_default();
        let pieces = chosen.of(pieces_of(index, values.len(), 1).collect());
        each(pieces, &|worker, Piece { first, length, .. }| {
            worker.write_values(index, first, &values[first..first + length])
        })
    })
}

/// One thread surveys and writes tensors of up to this number of elements.
const SMALL_ELEMENTS: usize = 4 * PIECE_ELEMENTS;

/// The pieces of an entry of which chunks hold whole units.
fn pieces_of(entry: usize, n_elements: usize, unit: usize) -> impl Iterator<Item = Piece> {
    let piece_elements = piece_elements(unit);
    (0..n_elements)
        .step_by(piece_elements)
        .map(move |first| Piece {
            entry,
            first,
            length: piece_elements.min(n_elements - first),
        })
}
