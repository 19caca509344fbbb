//! Running a plan: tensor by tensor, chunk by chunk, on all cores, in bounded memory.

use std::ops::Range;
use std::path::PathBuf;
use std::thread;

use rayon::prelude::*;
use serde::Serialize;

use crate::io::{WriteOptions, Writer, check_target, n_complete_files};
use crate::plan::{Action, Entry, PIECE_ELEMENTS, piece_elements};
use crate::provenance::{Hashes, Provenance};
use crate::{Error, MergePlan, Progress, Result, TensorInfo};

mod beside;
mod chunk;
mod fingerprint;
mod finite;
mod idle;
mod inputs;
mod kept;
mod memory;
mod stages;
mod survey;
mod whole;

pub use memory::in_memory;

use chunk::Worker;
use idle::Idle;

/// Where the bytes of results go: a file, or memory.
trait Sink: Sync {
    /// Takes bytes of entry `index` of the plan from `first_byte` on; from many threads.
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()>;
}

impl Sink for Writer {
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        Self::write(self, index, first_byte, bytes)
    }
}

/// How to run a plan.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Read and write infinities and NaNs instead of refusing them.
    pub allow_non_finite: bool,
    /// Look for them in tensors that are copied untouched, too.
    pub check_copies: bool,
    /// Record the SHA-256 of every input file.
    pub hash: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            allow_non_finite: false,
            check_copies: true,
            hash: true,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The files in place.
    pub files: Vec<PathBuf>,
    /// Tensors copied.
    pub n_copied: usize,
    /// Tensors combined from several or made anew.
    pub n_combined: usize,
    /// Input tensors left out.
    pub n_dropped: usize,
    /// Files that a run before had completed.
    pub n_files_kept: usize,
    /// Tensor bytes read.
    pub input_bytes: u64,
    /// Tensor bytes written.
    pub output_bytes: u64,
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
    let placeholder = Provenance::new(plan.recipe().to_owned(), &plan.files());
    let placeholder = placeholder.with_placeholder_hashes(run.hash);
    let fingerprint = fingerprint::of(plan, &plan.metadata(&placeholder)?, write, run);
    let n_files_kept = n_complete_files(&write.path, &fingerprint);
    // What stands under the target's names is what an unfinished run put there.
    let write = &WriteOptions {
        force: write.force || n_files_kept > 0,
        ..write.clone()
    };
    beside::check(plan, write)?;
    let _folder = beside::OutputFolder::make(write)?;
    // Announced before the first file is made, for from here on an interrupt must clean up.
    stages::write(plan, write, run, progress, &mut Vec::new())?;
    progress.start("writing", plan.output_bytes());
    let files = write_all(plan, write, run, &fingerprint, progress);
    progress.finish();
    let is_copy = |entry: &&Entry| matches!(entry.action, Action::Copy(_));
    let n_copied = plan.entries().iter().filter(is_copy).count();
    Ok(Summary {
        files: files?,
        n_copied,
        n_combined: plan.entries().len() - n_copied,
        n_dropped: plan.dropped().len(),
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
    let placeholder = Provenance::new(plan.recipe().to_owned(), &plan.files());
    let metadata = plan.metadata(&placeholder.with_placeholder_hashes(run.hash))?;
    beside::check(plan, write)?;
    check_target(&tensors(plan), &metadata, write)
}

/// Names, shapes and dtypes of the output.
fn tensors(plan: &MergePlan) -> Vec<(String, TensorInfo)> {
    let entries = plan.entries().iter();
    entries
        .map(|entry| (entry.name.clone(), entry.info.clone()))
        .collect()
}

/// Writes the whole output and puts it in place.
fn write_all(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    fingerprint: &str,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    let files = plan.files();
    let provenance = Provenance::new(plan.recipe().to_owned(), &files);
    let placeholder = provenance.clone().with_placeholder_hashes(run.hash);
    let metadata = plan.metadata(&placeholder)?;
    let writer = Writer::resume(&tensors(plan), &metadata, write, fingerprint)?;
    let (written, hashes) = thread::scope(|scope| {
        let hashes = scope.spawn(|| {
            run.hash
                .then(|| Hashes::default().of(&files, progress))
                .transpose()
        });
        let written = write_runs(plan, &writer, run, progress);
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
    let provenance = match hashes.map_err(stopped)? {
        Some(hashes) => provenance.with_hashes(hashes),
        None => provenance,
    };
    plan.check_grams(&provenance)?;
    // Before the weights have their name: who finds those finds all.
    let companions = beside::write(plan, write, &provenance)?;
    let mut files = writer.finish(&plan.metadata(&provenance)?)?;
    files.extend(companions);
    Ok(files)
}

/// Writes one file after the other, where there are several.
fn write_runs(
    plan: &MergePlan,
    writer: &Writer,
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
        write_entries(plan, entries, writer, run, progress)?;
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
            pieces_of(index, entry.info.n_elements(), unit)
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
    let surveys = entries().filter(|(_, entry)| is_survey(entry));
    // Small tensors go to the cores as wholes, the large ones chunk by chunk: a thread that waits for
    // the chunks of one tensor never begins another, so that buffers stay few.
    let (small, large): (Vec<_>, Vec<_>) =
        surveys.partition(|(_, entry)| entry.info.n_elements() <= SMALL_ELEMENTS);
    let memory = survey::Memory::new();
    let is_checked = !run.allow_non_finite;
    small.into_par_iter().try_for_each(|(index, entry)| {
        let Some(surveyed) = survey::survey(plan, entry, &memory, is_checked, progress, false)?
        else {
            return Ok(());
        };
        workers.with(new_worker, |worker| {
            for piece in surveyed.pieces(index, entry) {
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
        let pieces = surveyed.pieces(index, entry).collect();
        each(pieces, &|worker, piece| {
            worker.write_surveyed(&surveyed, piece)
        })?;
    }
    // Whole-tensor operations use all cores themselves, one tensor at a time to bound memory.
    for (index, entry) in entries().filter(|(_, entry)| is_whole(entry)) {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let merged = whole::merge(plan, entry, is_checked)?;
        let values = merged.as_standard_layout();
        let values = values.as_slice().unwrap_or_default();
        let pieces = pieces_of(index, values.len(), 1).collect();
        each(pieces, &|worker, Piece { first, length, .. }| {
            worker.write_values(index, first, &values[first..first + length])
        })?;
    }
    Ok(())
}

/// Tensors of up to so many elements are surveyed and written by one thread.
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
