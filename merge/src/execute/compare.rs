//! Runs a merge once more, and compares its result with a file.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::verdict::Watched;
use super::{Chosen, RunOptions, Sink, stages, write_entries};
use crate::{Checkpoint, MergePlan, Progress, Result};

/// The differences between a file and the result of its recipe.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Bytes that were compared.
    pub n_bytes: u64,
    /// Tensors with other values.
    pub differing: Vec<Differing>,
    /// Tensors of the recipe that the file does not have, or has in another shape or type.
    pub unfit: Vec<String>,
    /// Tensors of the file that the recipe does not make.
    pub unexpected: Vec<String>,
    /// Tensors that the recipe combines of several.
    pub n_combined: usize,
    /// Those among them that equal their base.
    pub n_unchanged: usize,
}

/// A tensor with other values.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Differing {
    /// Its name.
    pub name: String,
    /// Elements that differ among those that were compared.
    pub n_elements: u64,
    /// The first of them, counted row by row.
    pub first: u64,
}

/// Runs a plan, and compares its tensors with those of a file: all elements, or of each tensor the first, the
/// last and one piece between.
///
/// # Errors
/// When an input or the file cannot be read, or the user stops it.
pub fn compare(
    plan: &MergePlan,
    found: &Checkpoint,
    is_full: bool,
    progress: &dyn Progress,
) -> Result<Comparison> {
    // The check asks for the contents of the file, not whether they are allowed.
    let run = RunOptions {
        allow_non_finite: true,
        check_copies: false,
        hash: None,
    };
    let mut comparison = Comparison::default();
    for entry in plan.entries() {
        match found.get(&entry.name) {
            Some(info) if *info == entry.info => {}
            Some(info) => comparison.unfit.push(format!(
                "`{}` is {} {:?}, the recipe makes {} {:?}",
                entry.name, info.dtype, info.shape, entry.info.dtype, entry.info.shape
            )),
            None => comparison
                .unfit
                .push(format!("`{}` is missing", entry.name)),
        }
    }
    for (name, of) in plan.aliases() {
        if found.aliases().get(name) != Some(of) {
            comparison.unfit.push(match found.get(name) {
                None => format!("`{name}`, another name of `{of}`, is missing"),
                Some(_) => format!("`{name}` is not the tensor `{of}`, as the recipe makes it"),
            });
        }
    }
    let is_made = |name: &str| {
        let is_alias = plan.aliases().contains_key(name);
        is_alias
            || (plan
                .entries()
                .binary_search_by(|entry| entry.name.as_str().cmp(name)))
            .is_ok()
    };
    let others = found.aliases().keys().map(String::as_str);
    let names = found.tensors().map(|(name, _)| name).chain(others);
    comparison.unexpected = names
        .filter(|name| !is_made(name))
        .map(str::to_owned)
        .collect();
    stages::in_memory(plan, &run, progress)?;
    plan.settle(progress)?;
    progress.start("comparing", plan.output_bytes());
    let comparing = Comparing {
        plan,
        found,
        differing: Mutex::default(),
        n_bytes: AtomicU64::new(0),
    };
    let watched = Watched::new(plan, &comparing);
    let chosen = match is_full {
        true => Chosen::All,
        false => Chosen::Sample,
    };
    let range = 0..plan.entries().len();
    let compared = write_entries(plan, &range, &watched, &run, chosen, progress);
    progress.finish();
    compared?;
    comparison.n_combined = watched.n_combined();
    comparison.n_unchanged = watched.n_unchanged();
    comparison.n_bytes = comparing.n_bytes.into_inner();
    let differing = comparing.differing.into_inner();
    comparison.differing = differing
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect();
    Ok(comparison)
}

struct Comparing<'a> {
    plan: &'a MergePlan,
    found: &'a Checkpoint,
    differing: Mutex<BTreeMap<usize, Differing>>,
    n_bytes: AtomicU64,
}

impl Sink for Comparing<'_> {
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        let entry = &self.plan.entries()[index];
        if self.found.get(&entry.name) != Some(&entry.info) {
            return Ok(());
        }
        let size = entry.info.dtype.size_bytes();
        let first = first_byte as usize / size;
        let mut there = vec![0; bytes.len()];
        self.found.read(&entry.name, first, &mut there)?;
        self.n_bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        let pairs = there.chunks(size).zip(bytes.chunks(size));
        let mut others = pairs.enumerate().filter(|(_, (found, made))| found != made);
        let Some((at, _)) = others.next() else {
            return Ok(());
        };
        let n_elements = 1 + others.count() as u64;
        let mut differing = self
            .differing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = differing.entry(index).or_insert_with(|| Differing {
            name: entry.name.clone(),
            n_elements: 0,
            first: u64::MAX,
        });
        known.n_elements += n_elements;
        known.first = known.first.min((first + at) as u64);
        Ok(())
    }
}
