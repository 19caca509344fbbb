//! The masks of a merge: which elements are of which task, in a file beside the merged one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::overview::{Part, Shared};
use super::survey::{Memory, with_data};
use super::{RunOptions, require_unchanged};
use crate::io::{SourceFile, WriteOptions, Writer};
use crate::methods::{AnyChunk, Chunk, Masks, Real, Value};
use crate::plan::Action;
use crate::provenance::{Hashes, InputFile, Provenance, short_names};
use crate::restore::{MaskRecord, RECORD, packed};
use crate::{DType, MaskFault, MergePlan, Progress, Result, TensorInfo};

/// Writes the masks of a plan whose method keeps some; returns the files in place.
///
/// # Errors
/// [`MaskFault::None`]; when an input cannot be read or the target cannot be written, or the user stops it.
pub fn write_masks(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    progress: &dyn Progress,
) -> Result<Vec<PathBuf>> {
    if plan.is_respelled() {
        return Err(MaskFault::Respelled.into());
    }
    let masked: Vec<(&str, Part<'_>, &dyn Masks)> = (plan.entries().iter())
        .filter_map(|entry| {
            let (part, kernel) = Part::of_elements(entry)?;
            Some((entry.name.as_str(), part, kernel.masks()?))
        })
        .collect();
    let Some(&(_, _, first)) = masked.first() else {
        return Err(MaskFault::None.into());
    };
    if masked
        .iter()
        .any(|(_, _, masks)| masks.tasks() != first.tasks())
    {
        return Err(MaskFault::TasksDiffer.into());
    }
    let is_other = |(_, _, masks): &&(&str, Part<'_>, &dyn Masks)| masks.rule() != first.rule();
    if let Some((slot, ..)) = masked.iter().find(is_other) {
        return Err(MaskFault::RulesDiffer {
            slot: (*slot).to_owned(),
        }
        .into());
    }
    let memory = Memory::new();
    let is_checked = !run.allow_non_finite;
    let shared = Shared {
        plan,
        parts: masked.iter().map(|(_, part, _)| *part).collect(),
        memory: &memory,
        is_checked,
        progress,
    };
    let tasks: Vec<&Path> = first.tasks().iter().map(Path::new).collect();
    let files = plan.files();
    let mut provenance = Provenance::new(plan.recipe().to_owned(), &files);
    if let Some(kind) = run.hash {
        provenance = provenance.with_hashes(Hashes::default().of(&files, kind, progress)?);
    }
    let record = MaskRecord {
        tasks: short_names(&tasks),
        factors: first.factors(&shared)?,
        base: Some(base_of(plan, &files, &provenance)),
    };
    let mut metadata = provenance.to_metadata();
    // Names and numbers always have a JSON form.
    let text = serde_json::to_string(&record).unwrap_or_default();
    metadata.insert(RECORD.to_owned(), text);
    let n_tasks = tasks.len();
    let tensors: Vec<(String, TensorInfo)> = (masked.iter())
        .flat_map(|(name, part, _)| {
            let shape = vec![part.n_elements.div_ceil(8)];
            (0..n_tasks).map(move |task| {
                let (dtype, shape) = (DType::U8, shape.clone());
                (format!("{task}.{name}"), TensorInfo { dtype, shape })
            })
        })
        .collect();
    let writer = Writer::create(&tensors, &metadata, write)?;
    for (index, &(_, part, masks)) in masked.iter().enumerate() {
        let bits = of_tensor(plan, part, masks, n_tasks, (&memory, is_checked, progress))?;
        for (task, bits) in bits.iter().enumerate() {
            writer.write(index * n_tasks + task, 0, bits)?;
        }
    }
    require_unchanged(&files)?;
    writer.finish(&metadata)
}

/// The files of the base, as the provenance records them.
fn base_of(plan: &MergePlan, files: &[SourceFile], provenance: &Provenance) -> Vec<InputFile> {
    let bases = plan
        .entries()
        .iter()
        .filter_map(|entry| match &entry.action {
            Action::Elementwise { base, .. } | Action::Survey { base, .. } => base.as_ref(),
            _ => None,
        });
    let sources: BTreeSet<usize> = bases.map(|base| base.source).collect();
    let paths: BTreeSet<&Path> = (sources.into_iter())
        .flat_map(|source| &plan.sources()[source].info().files)
        .map(|file| file.path.as_path())
        .collect();
    let inputs = files.iter().zip(&provenance.inputs);
    inputs
        .filter(|(file, _)| paths.contains(file.path.as_path()))
        .map(|(_, input)| input.clone())
        .collect()
}

/// The bits of each task for one tensor.
fn of_tensor(
    plan: &MergePlan,
    part: Part<'_>,
    masks: &dyn Masks,
    n_tasks: usize,
    (memory, is_checked, progress): (&Memory, bool, &dyn Progress),
) -> Result<Vec<Vec<u8>>> {
    with_data(plan, part, memory, is_checked, progress, |data| {
        let all = vec![vec![0; part.n_elements.div_ceil(8)]; n_tasks];
        let all = Mutex::new(all);
        data.visit(0..data.n_chunks(), 1, &|_, chunk| {
            let (first, own) = match chunk {
                AnyChunk::Bf16(chunk) => (chunk.first, of_chunk(chunk, masks)),
                AnyChunk::F32(chunk) => (chunk.first, of_chunk(chunk, masks)),
                AnyChunk::F64(chunk) => (chunk.first, of_chunk(chunk, masks)),
            };
            // Chunks begin at multiples of eight elements.
            let start = first / 8;
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            for (all, own) in all.iter_mut().zip(own) {
                all[start..start + own.len()].copy_from_slice(&own);
            }
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
    })
}

fn of_chunk<V: Value>(chunk: &Chunk<'_, V>, masks: &dyn Masks) -> Vec<Vec<u8>> {
    let base = chunk.base.unwrap_or_default();
    let n_tasks = chunk.members.len();
    let mut all = vec![vec![false; base.len()]; n_tasks];
    let (mut deltas, mut own) = (vec![0.0; n_tasks], vec![false; n_tasks]);
    for (index, base) in base.iter().enumerate() {
        let base = base.real().to_f64();
        for (delta, member) in deltas.iter_mut().zip(chunk.members) {
            *delta = member[index].real().to_f64() - base;
        }
        masks.of_element(&deltas, &mut own);
        for (all, own) in all.iter_mut().zip(&own) {
            all[index] = *own;
        }
    }
    all.iter().map(|mask| packed(mask)).collect()
}
