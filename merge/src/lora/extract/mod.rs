//! From a base and a fine-tuned model to a low-rank adapter, tensor by tensor.

mod kind;
mod output;
mod pair;

use std::sync::Arc;

use ndarray::Array2;
use regex::Regex;
use serde::Serialize;

use kind::Kind;
use output::{Spool, Whole};
use pair::Pair;

use crate::io::SourceFile;
use crate::low_rank::{LowRank, Truncation, residual_energy, truncated};
use crate::random::Draws;
use crate::ties::{self, TiedHead};
use crate::{AdapterFault, Checkpoint, DType, Progress, Result, TensorInfo};

pub use output::ExtractTarget;

/// Settings of an extraction.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// The cut of the singular values.
    pub truncation: Truncation,
    /// The dtype of the stored factors.
    pub dtype: DType,
    /// Tensors to look at, by name; all if there are no patterns.
    pub include: Vec<Regex>,
    /// Tensors to leave alone.
    pub exclude: Vec<Regex>,
    /// Whether embeddings get factors, too.
    pub embeddings: bool,
    /// Whether tensors without factors are kept whole.
    pub save_whole: bool,
    /// Whether linear weights are kept as `(in, out)`.
    pub fan_in_fan_out: bool,
    /// Of the random sketches.
    pub seed: u64,
}

/// A tensor that got factors.
#[derive(Clone, Debug, Serialize)]
pub struct Extracted {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The rank of its factors.
    pub rank: usize,
    /// Length of the difference beside that of the base's tensor (Frobenius).
    pub relative_change: f64,
    /// Length of what the factors as stored miss, beside that of the difference (Frobenius).
    pub relative_error: f64,
    /// Share of the squares of the difference that the factors keep.
    pub energy: f64,
}

/// A changed tensor that is not in the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The reason.
    pub why: &'static str,
    /// Length of the difference beside that of the base's tensor (Frobenius).
    pub relative_change: f64,
}

/// The result of an extraction.
#[derive(Clone, Debug, Serialize)]
pub struct Extraction {
    /// Tensors with factors, by name.
    pub tensors: Vec<Extracted>,
    /// Tensors kept whole, by name.
    pub whole: Vec<String>,
    /// Changed tensors that are not in the adapter, by name.
    pub left_out: Vec<LeftOut>,
    /// Tensors that are the same in both models.
    pub n_unchanged: usize,
    /// Tensors that were not looked at.
    pub n_excluded: usize,
    /// Length of all that the adapter misses, beside that of all differences (Frobenius), those that
    /// are left out included.
    pub relative_error: f64,
    /// Bytes of the adapter's tensors.
    pub output_bytes: u64,
    /// The files in place.
    pub files: Vec<std::path::PathBuf>,
    /// A note on using the adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Writes the adapter that turns `base` into something near `tuned`. One tensor is in memory at a time,
/// as f32, with its factors.
///
/// # Errors
/// Every tensor that only one model has or that has two shapes, at once; [`AdapterFault::NothingToExtract`];
/// [`crate::Error::NonFiniteInput`]; when a file cannot be read or written, or the user stops it. The
/// target is then as it was before.
pub fn extract(
    base: &Checkpoint,
    tuned: &Arc<Checkpoint>,
    options: &ExtractOptions,
    target: &ExtractTarget,
    progress: &dyn Progress,
) -> Result<Extraction> {
    target.check()?;
    let pair = Pair { base, tuned };
    let is_asked = |name: &str| {
        let fits = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(name));
        (options.include.is_empty() || fits(&options.include)) && !fits(&options.exclude)
    };
    let names = pair.names(&is_asked)?;
    let n_bytes = names.iter().map(|(_, info)| info.n_bytes()).sum();
    progress.start("extracting", n_bytes);
    let found = Found::look(&pair, &names, options, target, progress);
    progress.finish();
    let found = found?;
    let all_names = base.tensors().count();
    let n_excluded = all_names - names.len();
    found.write((base, tuned), options, target, n_excluded, progress)
}

/// The results for all tensors.
struct Found {
    spool: Spool,
    tensors: Vec<Extracted>,
    whole: Vec<Whole>,
    left_out: Vec<LeftOut>,
    n_unchanged: usize,
    /// Squares of all differences, and of what the adapter misses of them.
    energy: f64,
    missed: f64,
    note: Option<String>,
}

impl Found {
    fn look(
        pair: &Pair<'_>,
        names: &[(String, TensorInfo)],
        options: &ExtractOptions,
        target: &ExtractTarget,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let mut found = Self {
            spool: target.spool()?,
            tensors: Vec::new(),
            whole: Vec::new(),
            left_out: Vec::new(),
            n_unchanged: 0,
            energy: 0.0,
            missed: 0.0,
            note: None,
        };
        for (name, info) in names {
            if progress.is_cancelled() {
                return Err(crate::Error::Cancelled);
            }
            match Kind::of(name, info, options) {
                Kind::Product(form) => found.decompose(pair, name, info, form, options)?,
                Kind::Rest(why) => found.keep_or_leave(pair, name, info, why, options)?,
            }
            progress.advance(info.n_bytes());
        }
        found.keep_modules_whole(pair, names)?;
        Ok(found)
    }

    /// Decomposes the difference of a tensor.
    fn decompose(
        &mut self,
        pair: &Pair<'_>,
        name: &str,
        info: &TensorInfo,
        form: kind::Form,
        options: &ExtractOptions,
    ) -> Result<()> {
        let (matrix, squares) = pair.difference(name, info)?;
        if squares.difference == 0.0 {
            self.n_unchanged += 1;
            return Ok(());
        }
        let draws = Draws::new(options.seed, name);
        let found = truncated(&matrix, options.truncation, &draws);
        let LowRank { left, right, .. } = found.map_err(|_| AdapterFault::NoConvergence {
            key: name.to_owned(),
        })?;
        let left = self.spool.rounded(name, left, options.dtype)?;
        let right = self.spool.rounded(name, right, options.dtype)?;
        let missed = residual_energy(&matrix, &left, &right);
        let rank = left.ncols();
        self.spool
            .keep(name, info, form, (&left, &right), options.dtype)?;
        let head = match form {
            kind::Form::Embedding => self.head(pair, name)?,
            _ => None,
        };
        if let Some(head) = &head {
            let form = kind::Form::Linear;
            self.spool
                .keep(head, info, form, (&left, &right), options.dtype)?;
        }
        self.energy += squares.difference;
        self.missed += missed;
        for name in std::iter::once(name.to_owned()).chain(head) {
            self.tensors.push(Extracted {
                name,
                shape: info.shape.clone(),
                rank,
                relative_change: squares.relative_change(),
                relative_error: (missed / squares.difference).sqrt(),
                energy: 1.0 - missed / squares.difference,
            });
        }
        Ok(())
    }

    /// The head that shares embeddings in both models: PEFT changes the embeddings alone, so the head needs the
    /// same change of its own.
    fn head(&mut self, pair: &Pair<'_>, embedding: &str) -> Result<Option<String>> {
        Ok(match ties::head_of(pair.base, embedding)? {
            TiedHead::None => None,
            // A head that has parted from the embeddings has a difference of its own.
            TiedHead::Named(head) => {
                let is_tied = |model: &Checkpoint| model.name_of(&head) != head;
                let is_own = pair.tuned.get(&head).is_some() && !is_tied(pair.tuned);
                (!is_own).then_some(head)
            }
            TiedHead::Unknown => {
                self.note = Some(format!(
                    "the head shares `{embedding}`, and PEFT changes the embeddings alone: the adapter is right once \
                     it is merged by `vlmerge merge` into a base that has its head stored, not while it is on"
                ));
                None
            }
        })
    }

    /// Notes a tensor that gets no factors, if it is changed.
    fn keep_or_leave(
        &mut self,
        pair: &Pair<'_>,
        name: &str,
        info: &TensorInfo,
        why: &'static str,
        options: &ExtractOptions,
    ) -> Result<()> {
        let squares = pair.squares(name, info)?;
        if squares.difference == 0.0 {
            self.n_unchanged += 1;
            return Ok(());
        }
        self.energy += squares.difference;
        if options.save_whole && kind::can_be_whole(name) {
            self.whole.push(Whole::of(name));
            return Ok(());
        }
        self.missed += squares.difference;
        self.left_out.push(LeftOut {
            name: name.to_owned(),
            shape: info.shape.clone(),
            why,
            relative_change: squares.relative_change(),
        });
        Ok(())
    }

    /// Settles where tensors kept whole go: the bias of a module with factors goes beside them, the others
    /// with all tensors of their module, which PEFT replaces as one.
    fn keep_modules_whole(
        &mut self,
        pair: &Pair<'_>,
        names: &[(String, TensorInfo)],
    ) -> Result<()> {
        let with_factors: Vec<String> = (self.tensors.iter())
            .map(|tensor| kind::module(&tensor.name).to_owned())
            .collect();
        let wanted = std::mem::take(&mut self.whole);
        for whole in wanted {
            let module = kind::module(&whole.name);
            if with_factors.iter().any(|known| known == module) {
                self.whole.push(whole.beside_factors());
                continue;
            }
            let start = format!("{module}.");
            let siblings = pair.tuned.tensors().map(|(name, _)| name).filter(|name| {
                let rest = name.strip_prefix(&start);
                rest.is_some_and(|rest| !rest.contains('.'))
            });
            for sibling in siblings {
                if self.whole.iter().all(|known| known.name != sibling) {
                    self.whole.push(Whole::of(sibling));
                }
            }
            if let Some(head) = self.head(pair, &whole.name)? {
                self.whole.push(Whole::of_head(&whole.name, &head));
            }
        }
        self.whole.sort_by(|a, b| a.name.cmp(&b.name));
        match self.tensors.is_empty() && self.whole.is_empty() {
            false => Ok(()),
            true => Err(AdapterFault::NothingToExtract {
                path: pair.tuned.path().into(),
                n_tensors: names.len(),
                n_left_out: self.left_out.len(),
            }
            .into()),
        }
    }

    fn write(
        self,
        (base, tuned): (&Checkpoint, &Arc<Checkpoint>),
        options: &ExtractOptions,
        target: &ExtractTarget,
        n_excluded: usize,
        progress: &dyn Progress,
    ) -> Result<Extraction> {
        let mut inputs: Vec<SourceFile> = base.info().files.clone();
        inputs.extend(tuned.info().files.iter().cloned());
        let settings = output::settings(base, &self.tensors, &self.whole, options, target);
        let (files, output_bytes) =
            target.write_extracted(self.spool, &self.whole, tuned, &settings, &inputs, progress)?;
        let whole = self.whole.into_iter().map(|whole| whole.name);
        Ok(Extraction {
            whole: whole.collect(),
            note: self.note,
            tensors: self.tensors,
            left_out: self.left_out,
            n_unchanged: self.n_unchanged,
            n_excluded,
            relative_error: match self.energy > 0.0 {
                true => (self.missed / self.energy).sqrt(),
                false => 0.0,
            },
            output_bytes,
            files,
        })
    }
}

/// Rows and columns of the matrix that a tensor is: further axes count as columns.
fn matrix_shape(shape: &[usize]) -> (usize, usize) {
    let rows = shape.first().copied().unwrap_or(1);
    (rows, shape.iter().skip(1).product())
}

/// A matrix of zeros as a tensor has it.
fn zeros(shape: &[usize]) -> Array2<f32> {
    Array2::zeros(matrix_shape(shape))
}
