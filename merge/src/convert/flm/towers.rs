//! A fresh FLM around the image tower of an original CLIP and the lower layers of RoBERTa.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::rows::JoinedRows;
use super::spelled::{Spelled, clip, roberta};
use super::{copy_of, whole};
use crate::convert::positions::Resize;
use crate::convert::tables::{AbsoluteTable, Windows};
use crate::layouts::{Dimensions, FLM_POSITIONS, FlmSizes, FlmSpec, FlmTask, TowerSizes};
use crate::plan::{Action, Entry, PlanBuilder, TensorRef};
use crate::recipe::OutputDType;
use crate::synth::{Fresh, FreshTensor, Spread, Synthesis};
use crate::{Checkpoint, ConversionFault, DType, Error, MergePlan, Result};

/// Channels of a head in both towers of published size.
const HEAD_WIDTH: usize = 64;

/// The first part of FLM's keys of the image encoder.
const VIT: &str = "vit_model.";
/// The first part of FLM's keys of the text encoder.
const ROBERTA: &str = "text_transformer.";

/// An FLM whose towers are those of two other models, and whose other parts are drawn as the published program
/// draws them. The last block of the image tower is left out, as the published program leaves it out.
#[derive(Clone)]
pub struct FlmTowers {
    /// The task of the model.
    pub task: FlmTask,
    /// RoBERTa, spelled as Hugging Face spells it, with or without `roberta.`.
    pub text: Arc<Checkpoint>,
    /// Side of the image in pixels, if it is not that of the CLIP.
    pub image_size: Option<usize>,
    /// Layers of the text tower that are kept; 6 unless given.
    pub n_text_blocks: Option<usize>,
    /// Cross-modal layers; 6 unless given.
    pub n_cross_blocks: Option<usize>,
    /// Layers of the reconstructor beside those of the text; as many as those unless given.
    pub n_bottom: Option<usize>,
    /// Layers of the reconstructor beside the cross-modal ones; as many as those unless given.
    pub n_top: Option<usize>,
    /// Answers of a VQA classifier; 3,129 unless given.
    pub n_answers: Option<usize>,
    /// The seed of the draws.
    pub seed: u64,
    /// Element type of the output. Half precision is widened unless it says otherwise, as the published program
    /// widens the archives of CLIP.
    pub dtype: OutputDType,
}

/// Sizes of a tower with heads of the published width, as far as they divide it.
fn tower(n_blocks: usize, width: usize, ffn_width: usize) -> TowerSizes {
    let heads = (width / HEAD_WIDTH).max(1);
    TowerSizes {
        n_blocks,
        width,
        n_heads: if width.is_multiple_of(heads) {
            heads
        } else {
            1
        },
        ffn_width,
    }
}

impl FlmTowers {
    /// Says where every tensor of the FLM comes from. `source` is the CLIP.
    ///
    /// # Errors
    /// [`Error::MissingKey`] for files that are no such models, [`Error::UnfitSizes`],
    /// [`Error::ShapeMismatch`], and those of the position table.
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<MergePlan> {
        source.require_unique_names()?;
        self.text.require_unique_names()?;
        let towers = [clip(&source)?, roberta(&self.text)?];
        let (spec, windows) = self.spec(&towers)?;
        spec.check()?;
        let fresh = Synthesis {
            spec,
            seed: self.seed,
            spread: Spread::default(),
            is_fresh: true,
            dtype: OutputDType::Keep,
        };
        let mut plan = PlanBuilder::new(self.to_string());
        plan.side_source(Arc::clone(&source));
        plan.side_source(Arc::clone(&self.text));
        let mut used: BTreeSet<TensorRef> = BTreeSet::new();
        for tensor in spec.tensors(Spread::default()) {
            let mut entry = match self.taken(&towers, &tensor, windows)? {
                Some(entry) => entry,
                None => fresh.entry(tensor),
            };
            if entry.info.dtype.is_float() {
                entry.info.dtype = self.dtype.apply(DType::F32);
            }
            used.extend(entry.action.tensors().cloned());
            plan.add(entry)?;
        }
        for (name, of) in spec.aliases() {
            plan.alias(&name, &of)?;
        }
        for spelled in &towers {
            for (key, _) in spelled.file.tensors() {
                let tensor = TensorRef {
                    source: spelled.source,
                    key: key.to_owned(),
                };
                if !used.contains(&tensor) {
                    plan.drop_tensor(tensor, "no part of an FLM");
                }
            }
        }
        plan.model(spec.record()).finish()
    }

    fn spec(&self, [clip, text]: &[Spelled<'_>; 2]) -> Result<(FlmSpec, Windows)> {
        let published = FlmSizes::published(self.task);
        let n_image = clip.n_blocks("visual.transformer.resblocks.");
        let patch = clip.axis("visual.conv1.weight", 3)?;
        let rows = clip.axis("visual.positional_embedding", 0)?;
        let side = rows.saturating_sub(1).isqrt();
        if side == 0 || side * side + 1 != rows {
            let key = clip.key("visual.positional_embedding");
            let shape = clip.file.require(&key)?.shape.clone();
            return Err(ConversionFault::TableShape {
                key,
                shape,
                window: side,
            }
            .into());
        }
        let windows = Windows::new(
            &Dimensions {
                patch_size: Some(patch),
                image_size: Some(side * patch),
                ..Dimensions::default()
            },
            self.image_size,
        )?;
        let image = tower(
            n_image.saturating_sub(1),
            clip.axis("visual.conv1.weight", 0)?,
            clip.axis("visual.transformer.resblocks.0.mlp.c_fc.weight", 0)?,
        );
        let width = text.axis("embeddings.word_embeddings.weight", 1)?;
        let ffn_width = text.axis("encoder.layer.0.intermediate.dense.weight", 0)?;
        let n_text = self.n_text_blocks.unwrap_or(published.text.n_blocks);
        let n_cross = self.n_cross_blocks.unwrap_or(published.cross.n_blocks);
        if text.n_blocks("encoder.layer.") < n_text {
            return Err(Error::UnfitSizes {
                reason: "RoBERTa has fewer layers than the text tower is to have",
            });
        }
        let vocabulary = text.axis("embeddings.word_embeddings.weight", 0)?;
        let extra = match self.task {
            FlmTask::Caption => super::N_CAPTION_TOKENS,
            _ => 0,
        };
        let is_three_stream = self.task.is_three_stream();
        // Nothing reads the text part that an FLM keeps.
        let (clip_text_positions, clip_text_width) = match clip.has_text {
            true => (
                clip.axis("positional_embedding", 0)?,
                clip.axis("positional_embedding", 1)?,
            ),
            false => (published.clip_text_positions, published.clip_text_width),
        };
        let sizes = FlmSizes {
            image,
            text: tower(n_text, width, ffn_width),
            cross: tower(n_cross, width, ffn_width),
            n_bottom: self.n_bottom.unwrap_or(n_text),
            n_top: self.n_top.unwrap_or(n_cross),
            patch_size: patch,
            image_size: windows.to * patch,
            vocabulary: vocabulary + extra,
            text_positions: text.axis("embeddings.position_embeddings.weight", 0)?,
            n_token_types: published.n_token_types,
            n_answers: self.n_answers.unwrap_or(published.n_answers),
            clip_text_positions,
            clip_text_width,
        };
        let spec = FlmSpec {
            task: self.task,
            is_three_stream,
            shares_heads: true,
            reading: self.task.reading(),
            sizes,
        };
        Ok((spec, windows))
    }

    /// A tensor of one of the towers, if that has it.
    fn taken(
        &self,
        [clip, text]: &[Spelled<'_>; 2],
        tensor: &FreshTensor,
        windows: Windows,
    ) -> Result<Option<Entry>> {
        let name = tensor.name.as_str();
        let (spelled, rest) = match (name.strip_prefix(VIT), name.strip_prefix(ROBERTA)) {
            (Some(rest), _) => (clip, rest),
            (_, Some(rest)) => (text, rest),
            _ => return Ok(None),
        };
        if let Some(keys) = spelled.parts(rest) {
            return Self::joined(spelled, tensor, keys).map(Some);
        }
        // RoBERTa's pooler and its buffer are in some files only, as is the text part of a CLIP; nothing reads them.
        let is_optional = name.contains(".pooler.")
            || tensor.buffer.is_some()
            || !(spelled.has_text || rest.starts_with("visual."));
        let key = spelled.key(rest);
        let found = match spelled.file.get(&key) {
            Some(found) => found,
            None if is_optional => return Ok(None),
            None => spelled.file.require(&key)?,
        };
        let why = format!("`{key}` of {}", spelled.file.path().display());
        let is_resized = name == FLM_POSITIONS && windows.from != windows.to;
        let is_grown = name.ends_with("word_embeddings.weight") && self.task == FlmTask::Caption;
        if is_resized {
            let Windows { from, to } = windows;
            let kernel = Arc::new(AbsoluteTable {
                from,
                to,
                resize: Resize::Bicubic,
            });
            let why = format!("{why}, {from}x{from} positions to {to}x{to}, bicubic");
            let shape = tensor.info.shape.clone();
            return Ok(Some(whole(name, &key, (shape, found), kernel, why)));
        }
        if is_grown {
            let kernel = super::AddedRows::new(super::N_CAPTION_TOKENS, self.seed, name);
            let shape = tensor.info.shape.clone();
            let mut entry = whole(name, &key, (shape, found), Arc::new(kernel), why);
            if let Action::Whole { members, .. } = &mut entry.action {
                members
                    .iter_mut()
                    .for_each(|member| member.source = spelled.source);
            }
            return Ok(Some(entry));
        }
        if found.shape != tensor.info.shape {
            return Err(Error::ShapeMismatch {
                slot: name.to_owned(),
                key,
                found: found.shape.clone(),
                expected: tensor.info.shape.clone(),
            });
        }
        Ok(Some(Entry {
            why,
            ..copy_of(spelled.source, name, &key, found)
        }))
    }

    /// The projections to queries, keys and values, where a file has a tensor for each.
    fn joined(spelled: &Spelled<'_>, tensor: &FreshTensor, keys: [String; 3]) -> Result<Entry> {
        let mut shape = tensor.info.shape.clone();
        if let Some(rows) = shape.first_mut() {
            *rows /= keys.len();
        }
        for key in &keys {
            let found = spelled.file.require(key)?;
            if found.shape != shape {
                return Err(Error::ShapeMismatch {
                    slot: tensor.name.clone(),
                    key: key.clone(),
                    found: found.shape.clone(),
                    expected: shape,
                });
            }
        }
        let why = format!(
            "`{}` of {}",
            keys.join("`, `"),
            spelled.file.path().display()
        );
        let found = spelled.file.require(&keys[0])?;
        let wanted = tensor.info.shape.clone();
        let kernel = Arc::new(JoinedRows(keys.len()));
        let mut entry = whole(&tensor.name, &keys[0], (wanted, found), kernel, why);
        if let Action::Whole { members, grams, .. } = &mut entry.action {
            let tensors = keys.map(|key| TensorRef {
                source: spelled.source,
                key,
            });
            (*members, *grams) = (tensors.to_vec(), vec![None; 3]);
        }
        Ok(entry)
    }
}

impl fmt::Display for FlmTowers {
    /// The command, for provenance.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.text.path().file_name().unwrap_or_default();
        write!(
            f,
            "expand: {{ to: flm-{}, text: {}, seed: {}",
            self.task.name(),
            text.display(),
            self.seed
        )?;
        for (name, value) in [
            ("image_size", self.image_size),
            ("text_blocks", self.n_text_blocks),
            ("cross_blocks", self.n_cross_blocks),
            ("reconstructor_bottom", self.n_bottom),
            ("reconstructor_top", self.n_top),
            ("answers", self.n_answers),
        ] {
            if let Some(value) = value {
                write!(f, ", {name}: {value}")?;
            }
        }
        f.write_str(" }")
    }
}
