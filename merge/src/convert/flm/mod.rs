//! Starting an FLM: from another FLM, as the published program loads one for a task, or from CLIP and RoBERTa.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::Resize;
use super::tables::{AbsoluteTable, ThirdTokenType, Windows};
use crate::layouts::{self, Flm, FlmSpec, FlmTask, OneStream, TableForm};
use crate::methods::WholeKernel;
use crate::plan::{Action, Entry, PlanBuilder, TensorRef};
use crate::recipe::OutputDType;
use crate::synth::{Fresh, FreshTensor, Spread, Synthesis};
use crate::{Checkpoint, ConversionFault, Error, Layout, MergePlan, Result, TensorInfo};

mod report;
mod rows;
mod spelled;
mod towers;

pub use report::LoadReport;
pub use towers::FlmTowers;

use rows::{AddedRows, OneRow};

/// Rows of the outer token type table in NLVR2 models.
const N_TYPES_OF_PAIRS: usize = 3;

/// Tokens that captions begin and end with.
const N_CAPTION_TOKENS: usize = 2;

/// The row of the matching head that ranking starts from: that of pairs that match.
const MATCH: usize = 1;

/// An FLM for a task, from the weights of another one. A part that the other one lacks is drawn as the published
/// program draws it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlmStart {
    /// The task of the model.
    pub task: FlmTask,
    /// Side of the image in pixels, if it changes.
    pub image_size: Option<usize>,
    /// Tokens, if they become more; captioning models get two more than the source unless given.
    pub vocabulary: Option<usize>,
    /// Answers of a new VQA classifier; 3,129 unless given.
    pub n_answers: Option<usize>,
    /// The seed of the draws.
    pub seed: u64,
    /// Element type of the output.
    pub dtype: OutputDType,
}

impl FlmStart {
    /// Nothing changed but the task.
    #[must_use]
    pub const fn of(task: FlmTask) -> Self {
        Self {
            task,
            image_size: None,
            vocabulary: None,
            n_answers: None,
            seed: 0,
            dtype: OutputDType::Keep,
        }
    }

    /// Says what happens to every key of `source`, and what the published program would report.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for any other family, [`ConversionFault::FewerTokens`],
    /// [`ConversionFault::PairTypes`], [`Error::ShapeMismatch`] for a head of another size, and those of the
    /// position table.
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<(MergePlan, LoadReport)> {
        source.require_unique_names()?;
        let layout = layouts::detect(&source)?;
        let Some(found) = Flm::read(&source)? else {
            return Err(ConversionFault::NoSuchConversion {
                path: source.path().into(),
                layout: layout.name(),
                wanted: "started as an FLM",
            }
            .into());
        };
        let from = found.spec(&source)?;
        let spec = self.target(&from);
        spec.check()?;
        let windows = match self.image_size {
            None => None,
            Some(_) => {
                if layout.position_tables().is_empty() {
                    source.require(layouts::FLM_POSITIONS)?;
                }
                Some(Windows::new(layout.dimensions(), self.image_size)?)
            }
        };
        let mut builder = Builder {
            source: &source,
            fresh: Synthesis {
                spec,
                seed: self.seed,
                spread: Spread::default(),
                is_fresh: true,
                dtype: OutputDType::Keep,
            },
            windows,
            layout: layout.as_ref(),
        };
        let mut plan = PlanBuilder::new(self.to_string());
        let index = plan.side_source(Arc::clone(&source));
        let mut used = BTreeSet::new();
        for tensor in spec.tensors(Spread::default()) {
            let mut entry = builder.entry(tensor)?;
            if entry.info.dtype.is_float() {
                entry.info.dtype = self.dtype.apply(entry.info.dtype);
            }
            used.extend(entry.action.tensors().map(|tensor| tensor.key.clone()));
            plan.add(entry)?;
        }
        for (name, of) in spec.aliases() {
            plan.alias(&name, &of)?;
        }
        for (key, _) in source.tensors().filter(|(key, _)| !used.contains(*key)) {
            let tensor = TensorRef {
                source: index,
                key: key.to_owned(),
            };
            plan.drop_tensor(
                tensor,
                format!("no part of a model for {}", self.task.name()),
            );
        }
        let report = LoadReport::of(&source, &from, &spec);
        Ok((plan.model(spec.record()).finish()?, report))
    }

    /// The spec of the output.
    fn target(&self, from: &FlmSpec) -> FlmSpec {
        let mut sizes = from.sizes;
        if let Some(image_size) = self.image_size {
            sizes.image_size = image_size;
        }
        let is_captioning = from.task == FlmTask::Caption;
        sizes.vocabulary = self.vocabulary.unwrap_or(match self.task {
            FlmTask::Caption if !is_captioning => sizes.vocabulary + N_CAPTION_TOKENS,
            _ => sizes.vocabulary,
        });
        sizes.n_token_types = match self.task {
            FlmTask::Nlvr2 => N_TYPES_OF_PAIRS,
            _ => 2,
        };
        if let Some(n_answers) = self.n_answers {
            sizes.n_answers = n_answers;
        }
        // A model without a reconstructor gets none.
        let is_three_stream = from.is_three_stream && self.task.is_three_stream();
        FlmSpec {
            task: self.task,
            is_three_stream,
            shares_heads: from.shares_heads,
            reading: match self.task {
                // Captions are written from left to right.
                FlmTask::Caption if !is_three_stream => Some(OneStream::Causal),
                task => task.reading().or(from.reading),
            },
            sizes,
        }
    }
}

impl fmt::Display for FlmStart {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "expand: {{ to: flm-{}, seed: {}",
            self.task.name(),
            self.seed
        )?;
        for (name, value) in [
            ("image_size", self.image_size),
            ("vocabulary", self.vocabulary),
            ("answers", self.n_answers),
        ] {
            if let Some(value) = value {
                write!(f, ", {name}: {value}")?;
            }
        }
        f.write_str(" }")
    }
}

/// Makes the tensors of the output one by one.
struct Builder<'a> {
    source: &'a Checkpoint,
    fresh: Synthesis<FlmSpec>,
    windows: Option<Windows>,
    layout: &'a dyn Layout,
}

impl Builder<'_> {
    fn entry(&mut self, tensor: FreshTensor) -> Result<Entry> {
        let name = tensor.name.clone();
        let Some(found) = self.source.get(&name) else {
            return self.made(tensor);
        };
        let wanted = tensor.info.shape.clone();
        let (found, shape) = (found.clone(), found.shape.clone());
        if let Some(entry) = self.resized(&name, &found)? {
            return Ok(entry);
        }
        if shape == wanted {
            return Ok(copy(&name, &found));
        }
        let (Some((&rows, width)), Some((&old, old_width))) =
            (wanted.split_first(), shape.split_first())
        else {
            return Err(self.misfit(&name, found.shape, wanted));
        };
        let is_by_token = name.ends_with("embeddings.word_embeddings.weight")
            || name.ends_with("score.decoder.weight")
            || name.ends_with("score.bias");
        match name.as_str() {
            _ if width != old_width => Err(self.misfit(&name, shape, wanted)),
            "token_type_embeddings.weight" if (old, rows) == (2, N_TYPES_OF_PAIRS) => Ok(whole(
                &name,
                &name,
                (wanted, &found),
                Arc::new(ThirdTokenType),
                "row 2 for the second image, equal to row 1".into(),
            )),
            "token_type_embeddings.weight" => {
                Err(ConversionFault::PairTypes { key: name, shape }.into())
            }
            _ if is_by_token && rows < old => Err(ConversionFault::FewerTokens {
                key: name,
                from: old,
                to: rows,
            }
            .into()),
            _ if is_by_token => {
                let kernel = AddedRows::new(rows - old, self.fresh.seed, &name);
                let why = format!("{} new rows, drawn", rows - old);
                Ok(whole(&name, &name, (wanted, &found), Arc::new(kernel), why))
            }
            _ => Err(self.misfit(&name, shape, wanted)),
        }
    }

    /// The table of image positions for another image size.
    fn resized(&self, name: &str, found: &TensorInfo) -> Result<Option<Entry>> {
        let mut tables = self.layout.position_tables().iter();
        let is_table =
            tables.any(|table| table.key == name && table.form == TableForm::AbsoluteRows);
        let Some(Windows { from, to }) = self.windows.filter(|windows| windows.from != windows.to)
        else {
            return Ok(None);
        };
        let &[rows, width] = found.shape.as_slice() else {
            return Ok(None);
        };
        if !is_table {
            return Ok(None);
        }
        if rows != from * from + 1 {
            return Err(ConversionFault::TableShape {
                key: name.to_owned(),
                shape: found.shape.clone(),
                window: from,
            }
            .into());
        }
        let why = format!("{from}x{from} positions to {to}x{to}, bicubic");
        let shape = vec![to * to + 1, width];
        let kernel = Arc::new(AbsoluteTable {
            from,
            to,
            resize: Resize::Bicubic,
        });
        Ok(Some(whole(name, name, (shape, found), kernel, why)))
    }

    /// A tensor that the source lacks.
    fn made(&self, tensor: FreshTensor) -> Result<Entry> {
        let of_ranking = tensor.name.strip_prefix("rank_output.");
        let matching = of_ranking.map(|end| format!("itm_score.fc.{end}"));
        if let Some(matching) = matching
            && let Some(found) = self.source.get(&matching)
        {
            let kernel = Arc::new(OneRow(MATCH));
            let why = format!("row {MATCH} of `{matching}`: pairs that match");
            let shape = tensor.info.shape;
            return Ok(whole(&tensor.name, &matching, (shape, found), kernel, why));
        }
        let mut entry = self.fresh.entry(tensor);
        entry.why = format!("fresh: {}", entry.why);
        Ok(entry)
    }

    fn misfit(&self, name: &str, found: Vec<usize>, expected: Vec<usize>) -> Error {
        Error::ShapeMismatch {
            slot: self.source.path().display().to_string(),
            key: name.to_owned(),
            found,
            expected,
        }
    }
}

/// The tensor `key` of the source, under the same name.
fn copy(key: &str, info: &TensorInfo) -> Entry {
    copy_of(0, key, key, info)
}

/// The tensor `key` of source `source`, as `name`.
fn copy_of(source: usize, name: &str, key: &str, info: &TensorInfo) -> Entry {
    Entry {
        name: name.to_owned(),
        info: info.clone(),
        action: Action::Copy(TensorRef {
            source,
            key: key.to_owned(),
        }),
        why: "copied".to_owned(),
    }
}

/// An entry that a kernel makes of the tensor `key` of the first source.
fn whole(
    name: &str,
    key: &str,
    (shape, found): (Vec<usize>, &TensorInfo),
    kernel: Arc<dyn WholeKernel>,
    why: String,
) -> Entry {
    Entry {
        name: name.to_owned(),
        info: TensorInfo {
            dtype: found.dtype,
            shape,
        },
        action: Action::Whole {
            members: vec![TensorRef {
                source: 0,
                key: key.to_owned(),
            }],
            base: None,
            grams: vec![None],
            kernel,
        },
        why,
    }
}
