//! Starting an EVE for a task from another one, as the published program loads one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::eve_of_beit::{self, BeitStart, is_beit, reshaped, sizes};
use super::tables::{AbsoluteTable, Windows};
use super::{LoadReport, Resize};
use crate::layouts::{self, Eve, EveSpec, EveTask, without_module};
use crate::plan::{Action, Entry, PlanBuilder, TensorRef};
use crate::recipe::OutputDType;
use crate::synth::{Fresh, FreshTensor, Spread, Synthesis};
use crate::{Checkpoint, ConversionFault, Error, MergePlan, Result, TensorInfo};

/// The sources of the heads of retrieval; later ones are preferred.
const HEADS: [(&str, &[&str]); 5] = [
    ("itc_temp", &["itc_temp", "mitc_temp"]),
    (
        "itc_vision_proj_head.weight",
        &[
            "itc_vision_proj_head.weight",
            "mitc_vision_proj_head.weight",
            "itc_vl_vision_proj_head.weight",
        ],
    ),
    (
        "itc_text_proj_head.weight",
        &[
            "itc_text_proj_head.weight",
            "mitc_text_proj_head.weight",
            "itc_vl_text_proj_head.weight",
        ],
    ),
    ("itm_head.weight", &["itm_head.weight", "mitm_head.weight"]),
    ("itm_head.bias", &["itm_head.bias", "mitm_head.bias"]),
];

/// The table of image positions.
const POSITIONS: &str = "backbone.pos_embed_vision";

/// An EVE for a task, from the weights of another one or of a BEiT. A part that it lacks is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EveStart {
    /// The task of the model.
    pub task: EveTask,
    /// Side of the image in pixels, if it changes.
    pub image_size: Option<usize>,
    /// Rows that the table of text positions must have, if that is to be checked.
    pub text_positions: Option<usize>,
    /// Tokens that the table of embeddings must have, if that is to be checked.
    pub vocabulary: Option<usize>,
    /// Answers of a new VQA classifier; 3,128 unless given.
    pub n_answers: Option<usize>,
    /// Draw the heads of retrieval, even if the file has them. The published program does so by default.
    pub with_fresh_heads: bool,
    /// The settings that a BEiT leaves open; for a BEiT alone.
    pub of_beit: BeitStart,
    /// The seed of the draws.
    pub seed: u64,
    /// Element type of the output.
    pub dtype: OutputDType,
}

impl EveStart {
    /// Nothing changed but the task.
    #[must_use]
    pub const fn of(task: EveTask) -> Self {
        Self {
            task,
            image_size: None,
            text_positions: None,
            vocabulary: None,
            n_answers: None,
            with_fresh_heads: false,
            of_beit: BeitStart {
                mixtures: None,
                n_experts: None,
                vocabulary: None,
            },
            seed: 0,
            dtype: OutputDType::Keep,
        }
    }

    /// Says what happens to every key of `source`, and what the published program would report.
    ///
    /// # Errors
    /// [`ConversionFault::NoSuchConversion`] for any other family, [`Error::ShapeMismatch`] for a tensor of another
    /// size, [`ConversionFault::UnknownSize`] and [`ConversionFault::LastBlocks`] for a BEiT, and as [`Eve::spec`].
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<(MergePlan, LoadReport)> {
        source.require_unique_names()?;
        let layout = layouts::detect(&source)?;
        let found = Eve::read(&source)?;
        let is_beit = found.is_none() && is_beit(layout.as_ref());
        if !is_beit && self.of_beit != BeitStart::default() {
            return Err(ConversionFault::NoSuchConversion {
                path: source.path().into(),
                layout: layout.name(),
                wanted: "given other mixtures or another vocabulary as the start of an EVE: a BEiT can",
            }
            .into());
        }
        let (source, spec) = match &found {
            Some(found) => {
                let spec = found.spec(&source)?;
                (source, spec)
            }
            None if is_beit => {
                let spec = EveSpec {
                    task: self.task,
                    sizes: sizes(&source, layout.as_ref(), &self.of_beit, self.task)?,
                    with_buffers: false,
                };
                (reshaped(&source), spec)
            }
            None => {
                return Err(ConversionFault::NoSuchConversion {
                    path: source.path().into(),
                    layout: layout.name(),
                    wanted: "started as an EVE",
                }
                .into());
            }
        };
        let spec = self.target(&spec);
        spec.check()?;
        let keys = match is_beit {
            true => {
                let tensors = spec.tensors(Spread::default());
                eve_of_beit::keys(&source, tensors.iter().map(|tensor| tensor.name.as_str()))
            }
            false => keys(&source),
        };
        let windows = match self.image_size {
            Some(_) if keys.contains_key(POSITIONS) => {
                Some(Windows::new(layout.dimensions(), self.image_size)?)
            }
            _ => None,
        };
        let builder = Builder {
            start: self,
            source: &source,
            keys,
            windows,
            fresh: Synthesis {
                spec,
                seed: self.seed,
                spread: Spread::default(),
                is_fresh: true,
                dtype: OutputDType::Keep,
            },
        };
        let mut plan = PlanBuilder::new(self.to_string());
        let index = plan.side_source(Arc::clone(&source));
        let (mut used, mut missing, mut wanted) = (BTreeSet::new(), Vec::new(), BTreeSet::new());
        for tensor in spec.tensors(Spread::default()) {
            let name = tensor.name.clone();
            let (mut entry, is_missing) = builder.entry(tensor)?;
            if entry.info.dtype.is_float() {
                entry.info.dtype = self.dtype.apply(entry.info.dtype);
            }
            used.extend(entry.action.tensors().map(|tensor| tensor.key.clone()));
            if is_missing {
                missing.push(name.clone());
            }
            wanted.insert(name);
            plan.add(entry)?;
        }
        let mut unexpected = Vec::new();
        for (key, _) in source.tensors() {
            let name = canonical(key);
            let is_left_out = builder.is_left_out(&name);
            let is_used = used.contains(key);
            // The names of a BEiT are none of an EVE, whether they are used or not.
            let has_place = wanted.contains(&name) || (is_beit && is_used);
            if !has_place && !is_left_out {
                unexpected.push(name);
            }
            if is_used {
                continue;
            }
            let why = match (is_left_out, is_beit) {
                (true, _) => "heads start fresh".to_owned(),
                (false, true) => "EVE has no place for it".to_owned(),
                (false, false) => format!("no part of a model for {}", self.task.name()),
            };
            let tensor = TensorRef {
                source: index,
                key: key.to_owned(),
            };
            plan.drop_tensor(tensor, why);
        }
        let report = LoadReport {
            missing,
            unexpected,
        };
        let record = match &found {
            Some(found) => found.told(spec.record()),
            None => spec.record(),
        };
        Ok((plan.model(record).finish()?, report))
    }

    /// The spec of the output.
    fn target(&self, from: &EveSpec) -> EveSpec {
        let mut sizes = from.sizes;
        sizes.image_size = self.image_size.unwrap_or(sizes.image_size);
        sizes.text_positions = self.text_positions.unwrap_or(sizes.text_positions);
        sizes.pair_len = sizes.pair_len.min(sizes.text_positions);
        sizes.vocabulary = self.vocabulary.unwrap_or(sizes.vocabulary);
        sizes.n_answers = self.n_answers.unwrap_or(sizes.n_answers);
        EveSpec {
            task: self.task,
            sizes,
            with_buffers: from.with_buffers,
        }
    }
}

impl fmt::Display for EveStart {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.task.name().replace('_', "-");
        write!(f, "expand: {{ to: eve-{name}, seed: {}", self.seed)?;
        for (name, value) in [("image_size", self.image_size), ("answers", self.n_answers)] {
            if let Some(value) = value {
                write!(f, ", {name}: {value}")?;
            }
        }
        if self.with_fresh_heads {
            f.write_str(", fresh_heads: true")?;
        }
        if let Some(blocks) = &self.of_beit.mixtures {
            write!(f, ", blocks: {}..{}", blocks.start, blocks.end)?;
        }
        for (name, value) in [
            ("n_experts", self.of_beit.n_experts),
            ("vocabulary", self.of_beit.vocabulary),
        ] {
            if let Some(value) = value {
                write!(f, ", {name}: {value}")?;
            }
        }
        f.write_str(" }")
    }
}

/// A key of the family with `backbone.` and without `module.`; any other as it is.
fn canonical(key: &str) -> String {
    layouts::eve_key(without_module(key)).unwrap_or_else(|| without_module(key).to_owned())
}

/// The keys of a checkpoint by their canonical form.
fn keys(source: &Checkpoint) -> BTreeMap<String, String> {
    let keys = source.tensors().map(|(key, _)| key);
    keys.map(|key| (canonical(key), key.to_owned())).collect()
}

/// Makes the tensors of the output one by one.
struct Builder<'a> {
    start: &'a EveStart,
    source: &'a Checkpoint,
    keys: BTreeMap<String, String>,
    windows: Option<Windows>,
    fresh: Synthesis<EveSpec>,
}

impl Builder<'_> {
    /// Whether a head of the file is left out.
    fn is_left_out(&self, name: &str) -> bool {
        let is_head = HEADS.iter().any(|(head, _)| *head == name);
        is_head && self.start.task == EveTask::Retrieval && self.start.with_fresh_heads
    }

    /// The key of the file that a tensor of the model is read from.
    fn key_of(&self, name: &str) -> Option<&str> {
        let own = [name];
        let names = match HEADS.iter().find(|(head, _)| *head == name) {
            Some((_, names)) if self.start.task == EveTask::Retrieval => *names,
            _ => own.as_slice(),
        };
        let names = names.iter().rev().filter(|_| !self.is_left_out(name));
        let mut found = names.filter_map(|name| self.keys.get(*name));
        found.next().map(String::as_str)
    }

    /// The entry of a tensor, and whether the file lacks it.
    fn entry(&self, tensor: FreshTensor) -> Result<(Entry, bool)> {
        // The published program leaves the buffer of image positions out of what it loads.
        let is_rebuilt = tensor.name.ends_with("position_ids_vision");
        let key = self.key_of(&tensor.name).filter(|_| !is_rebuilt);
        let Some(key) = key else {
            let mut entry = self.fresh.entry(tensor);
            entry.why = format!("fresh: {}", entry.why);
            return Ok((entry, true));
        };
        let found = self.source.require(key)?;
        let shape = tensor.info.shape;
        if let Some(entry) = self.resized(&tensor.name, key, found)? {
            return Ok((entry, false));
        }
        if found.shape != shape {
            return Err(Error::ShapeMismatch {
                slot: self.source.path().display().to_string(),
                key: key.to_owned(),
                found: found.shape.clone(),
                expected: shape,
            });
        }
        let why = match tensor.name == key {
            true => "copied".to_owned(),
            false => format!("copied; was `{key}`"),
        };
        let entry = Entry {
            name: tensor.name,
            info: found.clone(),
            action: Action::Copy(TensorRef {
                source: 0,
                key: key.to_owned(),
            }),
            why,
        };
        Ok((entry, false))
    }

    /// The table of image positions for another image size.
    fn resized(&self, name: &str, key: &str, found: &TensorInfo) -> Result<Option<Entry>> {
        let windows = self.windows.filter(|windows| windows.from != windows.to);
        let (Some(Windows { from, to }), true) = (windows, name == POSITIONS) else {
            return Ok(None);
        };
        let &[rows, width] = found.shape.as_slice() else {
            return Ok(None);
        };
        if rows != from * from + 1 {
            return Err(ConversionFault::TableShape {
                key: key.to_owned(),
                shape: found.shape.clone(),
                window: from,
            }
            .into());
        }
        Ok(Some(Entry {
            name: name.to_owned(),
            info: TensorInfo {
                dtype: found.dtype,
                shape: vec![to * to + 1, width],
            },
            action: Action::Whole {
                members: vec![TensorRef {
                    source: 0,
                    key: key.to_owned(),
                }],
                base: None,
                grams: vec![None],
                kernel: Arc::new(AbsoluteTable {
                    from,
                    to,
                    resize: Resize::Bicubic,
                }),
            },
            why: format!("{from}x{from} positions to {to}x{to}, bicubic"),
        }))
    }
}
