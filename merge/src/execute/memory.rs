//! Running a plan into memory, for weights that are to be tried, not kept.

use std::sync::{Mutex, PoisonError};

use super::{Chosen, RunOptions, Sink, write_entries};
use crate::io::{Container, Memory, Root, SourceInfo, TensorEntry};
use crate::provenance::{Hashes, Provenance};
use crate::{Checkpoint, MergePlan, Progress, Result};

/// Runs a plan and keeps the result: a checkpoint like one read from a file. It goes by the path
/// of the plan's first input, and its metadata say how it was made.
///
/// # Errors
/// When an input cannot be read, an input or a result is not finite, or the user stops it; as
/// [`MergePlan::check_grams`], where inputs are hashed.
pub fn in_memory(
    plan: &MergePlan,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Checkpoint> {
    super::stages::in_memory(plan, run, progress)?;
    progress.start("merging", plan.output_bytes());
    let filled = fill(plan, run, progress);
    progress.finish();
    Ok(Checkpoint::new(Box::new(filled?)))
}

fn fill(plan: &MergePlan, run: &RunOptions, progress: &dyn Progress) -> Result<Memory> {
    plan.settle(progress)?;
    let entries = plan.entries().iter();
    let buffers = entries.map(|entry| Mutex::new(vec![0; entry.info.n_bytes() as usize]));
    let buffers = Buffers(buffers.collect());
    let range = 0..plan.entries().len();
    write_entries(plan, &range, &buffers, run, Chosen::All, progress)?;
    let files = plan.files();
    let provenance = Provenance::new(plan.recipe().to_owned(), &files);
    let known = Hashes::default();
    let provenance = match run.hash {
        Some(kind) => provenance.with_hashes(known.of(&files, kind, progress)?),
        None => provenance,
    };
    plan.check_grams(&provenance, &known, progress)?;
    super::require_unchanged(&files)?;
    super::require_unchanged(&plan.beside().seen)?;
    let tensors: Vec<TensorEntry> = (plan.entries().iter())
        .map(|entry| TensorEntry::named(entry.name.clone(), entry.info.clone()))
        .collect();
    let root = Root {
        name: String::new(),
        n_tensors: tensors.len(),
        n_bytes: plan.output_bytes(),
    };
    let info = SourceInfo {
        path: files
            .first()
            .map(|file| file.path.clone())
            .unwrap_or_default(),
        container: Container::Memory,
        files,
        metadata: plan.metadata(&provenance)?,
        roots: vec![root],
        root: String::new(),
        values: Vec::new(),
        opaque: Vec::new(),
    };
    let unlocked =
        |buffer: Mutex<Vec<u8>>| buffer.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(Memory {
        info,
        tensors,
        aliases: plan.aliases().clone(),
        data: (buffers.0.into_iter())
            .map(|buffer| Some(unlocked(buffer)))
            .collect(),
    })
}

/// Entries under way.
struct Buffers(Vec<Mutex<Vec<u8>>>);

impl Sink for Buffers {
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        let mut buffer = self.0[index].lock().unwrap_or_else(PoisonError::into_inner);
        let first = first_byte as usize;
        buffer[first..first + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}
