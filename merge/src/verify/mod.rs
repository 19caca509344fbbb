//! Whether a merged file is what its recipe says, and whether loaders can use it.

mod adapters;
mod folder;

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::execute::compare;
use crate::execute::finite::{first_of, is_finite};
use crate::io::{self, OpenOptions};
use crate::plan::PIECE_ELEMENTS;
use crate::provenance::{HashKind, Hashes, InputFile, Provenance};
use crate::recipe::OutputDType;
use crate::{Checkpoint, Error, MergePlan, MergeRecipe, Progress, Result};

/// Findings of one check that are listed; the others are counted.
const LISTED: usize = 20;

/// The outcome of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All is well.
    Passed,
    /// It may be meant, but should be looked at.
    Note,
    /// Something is wrong.
    Failed,
    /// There was nothing to check it by.
    Skipped,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// The name of the check.
    pub name: &'static str,
    /// Its outcome.
    pub outcome: Outcome,
    /// The findings, in words.
    pub findings: Vec<String>,
}

impl Check {
    /// Fails if anything was found.
    fn failing(name: &'static str, findings: Vec<String>) -> Self {
        Self::new(name, Outcome::Failed, findings)
    }

    fn new(name: &'static str, if_found: Outcome, mut findings: Vec<String>) -> Self {
        let n = findings.len();
        let outcome = if n == 0 { Outcome::Passed } else { if_found };
        findings.truncate(LISTED);
        if n > LISTED {
            findings.push(format!("and {} more", n - LISTED));
        }
        Self {
            name,
            outcome,
            findings,
        }
    }

    /// With words about what passed.
    fn with(mut self, findings: Vec<String>) -> Self {
        self.findings = findings;
        self.findings.truncate(LISTED);
        self
    }

    fn said(name: &'static str, outcome: Outcome, finding: impl Into<String>) -> Self {
        Self {
            name,
            outcome,
            findings: vec![finding.into()],
        }
    }
}

/// The outcome of all checks.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether none failed.
    pub passed: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// Checks a file or folder that a merge wrote: that its values are finite, that its configuration, tokenizer and
/// template fit its weights; and, given its recipe, that it was made from these inputs and holds what the recipe
/// gives: all elements (`is_full`), or some of each tensor.
///
/// # Errors
/// When the file or an input cannot be read, the recipe is wrong, or the user stops it.
pub fn verify(
    path: &Path,
    against: Option<&MergeRecipe>,
    is_full: bool,
    progress: &dyn Progress,
) -> Result<Verdict> {
    let found = io::open(path, &OpenOptions::default())?;
    found.require_unique_names()?;
    let made = Provenance::from_metadata(&found.info().metadata);
    let mut checks = vec![finite(&found, progress)?];
    checks.extend(noted("reading", found.notes()));
    checks.extend(folder::checks(path, &found)?);
    match against {
        None => checks.push(Check::said(
            "recipe",
            Outcome::Skipped,
            "give the recipe, or the folder of the inputs, to compare values with it",
        )),
        Some(recipe) => checks.extend(by_recipe(recipe, &found, made.as_ref(), is_full, progress)?),
    }
    Ok(Verdict {
        passed: checks.iter().all(|check| check.outcome != Outcome::Failed),
        checks,
    })
}

/// Notes on reading the files, as on names of one tensor that hold different values.
fn noted(name: &'static str, notes: &[String]) -> Option<Check> {
    let check = || Check::new(name, Outcome::Note, notes.to_vec());
    (!notes.is_empty()).then(check)
}

/// Whether all floats are finite.
fn finite(found: &Checkpoint, progress: &dyn Progress) -> Result<Check> {
    let floats: Vec<_> = (found.tensors())
        .filter(|(_, info)| info.dtype.is_float())
        .collect();
    let n_bytes = floats.iter().map(|(_, info)| info.n_bytes()).sum();
    progress.start("reading", n_bytes);
    let looked = floats.par_iter().map(|(name, info)| {
        let n = info.n_elements();
        for first in (0..n).step_by(PIECE_ELEMENTS) {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let mut bytes = vec![0; info.dtype.bytes_of(PIECE_ELEMENTS.min(n - first))];
            found.read(name, first, &mut bytes)?;
            progress.advance(bytes.len() as u64);
            if !is_finite(info.dtype, &bytes) {
                let (at, value) = first_of(name, info.dtype, &bytes)?;
                return Ok(Some(format!("`{name}`: element {} is {value}", first + at)));
            }
        }
        Ok(None)
    });
    let findings: Result<Vec<Option<String>>> = looked.collect();
    progress.finish();
    Ok(Check::failing(
        "finite",
        findings?.into_iter().flatten().collect(),
    ))
}

/// The parts that can be compared with the recipe.
fn by_recipe(
    recipe: &MergeRecipe,
    found: &Checkpoint,
    made: Option<&Provenance>,
    is_full: bool,
    progress: &dyn Progress,
) -> Result<Vec<Check>> {
    let mut recipe = recipe.clone();
    // A type that was asked for by a flag is in the file's own recipe only.
    let own = made.and_then(|made| MergeRecipe::parse(&made.recipe, found.path()).ok());
    if let Some(own) = own.filter(|_| recipe.out_dtype == OutputDType::Keep) {
        recipe.out_dtype = own.out_dtype;
    }
    let adapters = adapters::check(&recipe, progress)?;
    if let Some(adapters) = adapters
        .clone()
        .filter(|check| check.outcome == Outcome::Failed)
        && MergePlan::resolve(&recipe).is_err()
    {
        return Ok(vec![adapters]);
    }
    let (plan, _) = MergePlan::resolve(&recipe)?;
    let mut checks = vec![inputs(&plan, made, progress)?];
    checks.extend(noted("reading the inputs", &plan.beside().notes));
    checks.extend(adapters);
    let compared = compare(&plan, found, is_full, progress)?;
    let unexpected = compared
        .unexpected
        .iter()
        .map(|name| format!("`{name}` is not of the recipe"));
    let unfit = compared.unfit.iter().cloned().chain(unexpected);
    checks.push(Check::failing("tensors", unfit.collect()));
    let differing = compared.differing.iter().map(|tensor| {
        format!(
            "`{}`: {} elements differ from what the recipe gives, the first is element {}",
            tensor.name, tensor.n_elements, tensor.first
        )
    });
    let mut values = Check::failing("values", differing.collect());
    if values.outcome == Outcome::Passed {
        let extent = if is_full {
            "all"
        } else {
            "some of each tensor"
        };
        values
            .findings
            .push(format!("{} bytes compared, {extent}", compared.n_bytes));
    }
    checks.push(values);
    let unchanged = match (compared.n_unchanged, compared.n_combined) {
        (0, _) => Check::failing("changed", Vec::new()),
        (n, all) if n == all => Check::said(
            "changed",
            Outcome::Failed,
            format!(
                "all {n} tensors that the recipe combines are those of its base or first model"
            ),
        ),
        (n, all) => Check::said(
            "changed",
            Outcome::Note,
            format!(
                "{n} of {all} tensors that the recipe combines are those of its base or first model"
            ),
        ),
    };
    checks.push(unchanged);
    Ok(checks)
}

/// Whether the inputs are those that the file was made from.
fn inputs(plan: &MergePlan, made: Option<&Provenance>, progress: &dyn Progress) -> Result<Check> {
    let Some(made) = made else {
        return Ok(Check::said(
            "inputs",
            Outcome::Skipped,
            "the file does not say what it was made from",
        ));
    };
    let files = plan.files();
    let own = Provenance::new(String::new(), &files);
    if made.inputs.len() != own.inputs.len() {
        let finding = format!(
            "the file was made from {} files, the recipe has {}",
            made.inputs.len(),
            own.inputs.len()
        );
        return Ok(Check::said("inputs", Outcome::Failed, finding));
    }
    let hashes = made.inputs.iter().filter_map(InputFile::hash);
    let kinds: BTreeSet<HashKind> = hashes.map(|hash| hash.kind).collect();
    let own = kinds.iter().try_fold(own, |own, &kind| {
        let hashes = Hashes::default().of(&files, kind, progress)?;
        Ok::<_, Error>(own.with_hashes(hashes))
    })?;
    let pairs = made.inputs.iter().zip(&own.inputs);
    let differing = pairs.filter(|(then, now)| then.differs_from(now));
    let findings: Vec<String> = differing
        .map(|(_, now)| format!("{} is not the file that the output was made from", now.name))
        .collect();
    Ok(match !kinds.is_empty() || !findings.is_empty() {
        true => Check::failing("inputs", findings),
        false => Check::said(
            "inputs",
            Outcome::Note,
            "made without hashes; only sizes were compared",
        ),
    })
}
