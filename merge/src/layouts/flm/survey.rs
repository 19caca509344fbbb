//! Reads the task and the sizes of one FLM checkpoint off its keys and shapes.

use std::collections::{BTreeMap, BTreeSet};

use crate::io::PlainValue;
use crate::layouts::dimensions::{counted_blocks, patches_across, published_heads};
use crate::layouts::{Description, Dimensions, ModelRecord, OneStream, Stack};
use crate::{Checkpoint, Result, TensorInfo};

use super::place::Place;
use super::table::{BOTTOM, CROSS, HEAD, IMAGE, POSITIONS, Presence, STACKS, TEXT, TOP};
use super::ties::{has_own_heads, setting};

/// Tokens of RoBERTa with `<bos>` and `<eos>` of captions, which only captioning models have.
const CAPTION_VOCABULARY: usize = 50267;

/// Rows of the text position table before the first position.
const POSITIONS_BEFORE: usize = 2;

/// The keys that tell what a file was trained for, the most telling first, with the form's name.
const TASKS: [(&str, &str, &str); 5] = [
    ("vqa_classifier.", "flm/vqa", "a classifier of answers"),
    (
        "nlvr2_classifier.",
        "flm/nlvr2",
        "a classifier of pairs of images",
    ),
    ("rank_output.", "flm/retrieval", "a head that ranks pairs"),
    (
        "mlm_score.",
        "flm/mlm",
        "a head of masked language modeling",
    ),
    (
        "lm_score.",
        "flm/pretrain",
        "a head that gives each token a score",
    ),
];

/// One checkpoint.
struct Survey<'a> {
    checkpoint: &'a Checkpoint,
    shapes: BTreeMap<&'a str, &'a TensorInfo>,
    /// Indices of the blocks that are there, by stack.
    blocks: [BTreeSet<usize>; STACKS.len()],
    record: ModelRecord,
    evidence: Vec<String>,
}

/// Describes a checkpoint, of which `example` is a key that only this family has.
pub(super) fn describe(checkpoint: &Checkpoint, example: &str) -> Result<Description> {
    let mut survey = Survey::read(checkpoint)?;
    (survey.evidence).push(format!("keys of FLM, such as `{example}`"));
    let name = survey.form();
    let stacks = (0..STACKS.len()).map(|stack| survey.stack(stack)).collect();
    let dimensions = survey.dimensions(stacks);
    survey.record.check_heads(checkpoint, &dimensions)?;
    Ok(Description {
        name,
        evidence: survey.evidence,
        dimensions,
    })
}

/// The groups that a checkpoint should have under names that it may lack.
pub(super) fn presence(checkpoint: &Checkpoint) -> impl Fn(Presence) -> bool {
    let starts = |start: &str| checkpoint.tensors().any(|(key, _)| key.starts_with(start));
    let is_three_stream = is_three_stream(checkpoint);
    let is_free = is_three_stream && starts(HEAD) && !is_captioning(checkpoint);
    move |presence| match presence {
        Presence::Always => true,
        Presence::ThreeStream => is_three_stream,
        Presence::Free => is_free,
        _ => false,
    }
}

/// Whether the model reads texts in two directions and has a reconstructor.
pub(super) fn is_three_stream(checkpoint: &Checkpoint) -> bool {
    let start = [
        "fusion_layers_top.",
        "fusion_layers_bottom.",
        "lm_type_embeddings.",
    ];
    let mut keys = checkpoint.tensors().map(|(key, _)| key);
    keys.any(|key| start.iter().any(|start| key.starts_with(start)))
}

/// Whether the model was made to write captions: by its settings, by its vocabulary, or because the file ties names but
/// not those of the other language heads.
fn is_captioning(checkpoint: &Checkpoint) -> bool {
    let words = checkpoint.get("text_transformer.embeddings.word_embeddings.weight");
    let rows = words.and_then(|info| info.shape.first().copied());
    let of_ar = weight_of_loss(checkpoint, "ar").is_some_and(|weight| weight > 0.0);
    let of_flm = weight_of_loss(checkpoint, "flm").is_some_and(|weight| weight > 0.0);
    let lacks_others = !checkpoint.aliases().is_empty()
        && !checkpoint.aliases().values().any(|of| of.starts_with(HEAD))
        && !has_own_heads(checkpoint);
    (of_ar && !of_flm) || rows == Some(CAPTION_VOCABULARY) || lacks_others
}

/// Whether texts are read from left to right, by the run's settings.
pub(super) fn is_causal(checkpoint: &Checkpoint) -> Option<bool> {
    setting(checkpoint, "is_causal_mask")
}

/// The weight of a loss in the run's settings.
fn weight_of_loss(checkpoint: &Checkpoint, loss: &str) -> Option<f64> {
    let wanted = format!("hyper_parameters.loss_names.{loss}");
    let values = &checkpoint.info().values;
    let (_, value) = values.iter().find(|(path, _)| path.to_string() == wanted)?;
    match value {
        PlainValue::Integer(value) => Some(*value as f64),
        PlainValue::Float(value) => Some(*value),
        _ => None,
    }
}

impl<'a> Survey<'a> {
    fn read(checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut survey = Self {
            checkpoint,
            shapes: checkpoint.tensors().collect(),
            blocks: Default::default(),
            record: ModelRecord::of(checkpoint)?,
            evidence: Vec::new(),
        };
        for (key, _) in checkpoint.tensors() {
            if let Some(place) = Place::of(key)
                && let Some((stack, index)) = place.group.stack.zip(place.block)
            {
                survey.blocks[usize::from(stack)].insert(index);
            }
        }
        Ok(survey)
    }

    fn starts(&self, start: &str) -> bool {
        self.shapes.keys().any(|key| key.starts_with(start))
    }

    /// The form's name, and sentences that say why.
    fn form(&mut self) -> &'static str {
        let is_three_stream = is_three_stream(self.checkpoint);
        self.evidence.push(match is_three_stream {
            true => "three streams: a reconstructor beside the two directions".to_owned(),
            false => "one stream: no reconstructor".to_owned(),
        });
        let found = TASKS.iter().find(|(start, ..)| self.starts(start));
        let Some(&(_, name, what)) = found else {
            self.evidence.push("no head of a known task".to_owned());
            return match self.starts("itm_score.") {
                true => "flm/itm",
                false => "flm/backbone",
            };
        };
        self.evidence.push(what.to_owned());
        let (is_causal, source) = match (self.record.streams, is_causal(self.checkpoint)) {
            (Some(how), _) => (how == OneStream::Causal, "by the file's metadata"),
            (None, Some(is_causal)) => (is_causal, "by the file's settings"),
            (None, None) => (
                is_three_stream || self.starts(HEAD),
                "as such models are; no weight holds it",
            ),
        };
        let mask = match is_causal {
            true => "texts are read from left to right",
            false => "every token sees the whole text",
        };
        self.evidence.push(format!("{mask}, {source}"));
        if has_own_heads(self.checkpoint) {
            self.evidence
                .push("each stream has a language head of its own".to_owned());
        }
        match name {
            "flm/pretrain" if !is_three_stream => "flm/ar",
            "flm/pretrain" if is_captioning(self.checkpoint) => "flm/caption",
            "flm/pretrain" if self.starts("itm_score.") => "flm/itm",
            name => name,
        }
    }

    fn axis(&self, key: &str, axis: usize) -> Option<usize> {
        self.shapes.get(key)?.shape.get(axis).copied()
    }

    /// An axis of the first block that has the parameter.
    fn block_axis(&self, stack: usize, rest: &str, axis: usize) -> Option<usize> {
        let prefix = match stack as u8 {
            IMAGE => "vit_model.visual.transformer.resblocks.",
            TEXT => "text_transformer.encoder.layer.",
            CROSS => "cross_modal_text_layers.",
            BOTTOM => "fusion_layers_bottom.",
            _ => "fusion_layers_top.",
        };
        let mut blocks = self.blocks[stack].iter();
        blocks.find_map(|block| self.axis(&format!("{prefix}{block}.{rest}"), axis))
    }

    fn stack(&mut self, stack: usize) -> Stack {
        let (width, ffn) = match stack as u8 {
            IMAGE => (
                (self.axis("vit_model.visual.conv1.weight", 0))
                    .or_else(|| self.block_axis(stack, "ln_1.weight", 0)),
                self.block_axis(stack, "mlp.c_fc.weight", 0),
            ),
            _ => (
                self.block_axis(stack, "output.LayerNorm.weight", 0),
                self.block_axis(stack, "intermediate.dense.weight", 0),
            ),
        };
        let name = STACKS[stack];
        let (n_blocks, sentence) = counted_blocks(name, &self.blocks[stack], width);
        if n_blocks > 0 || !matches!(stack as u8, BOTTOM | TOP) {
            self.evidence.push(sentence);
        }
        Stack {
            name,
            n_blocks,
            width: width.unwrap_or(0),
            n_heads: self.heads(stack, width),
            ffn_width: ffn,
        }
    }

    /// Weights do not tell the heads.
    fn heads(&mut self, stack: usize, width: Option<usize>) -> Option<usize> {
        let name = STACKS[stack];
        let width = width?;
        if let Some(heads) = self.record.heads_of(name) {
            (self.evidence).push(format!("{name}: {heads} heads by the file's metadata"));
            return Some(heads);
        }
        let stored = match stack as u8 {
            CROSS => crate::layouts::record::stored(self.checkpoint, "num_heads"),
            BOTTOM | TOP => crate::layouts::record::stored(self.checkpoint, "num_heads_fusion"),
            _ => None,
        };
        if let Some(heads) = stored.filter(|&heads| heads > 0 && width.is_multiple_of(heads)) {
            (self.evidence).push(format!("{name}: {heads} heads by the file's settings"));
            return Some(heads);
        }
        let (guess, said) = published_heads(width)?;
        self.evidence.push(format!("{name}: {said}"));
        Some(guess)
    }

    fn dimensions(&mut self, stacks: Vec<Stack>) -> Dimensions {
        let patch_size = self.axis("vit_model.visual.conv1.weight", 3);
        let tokens = self.axis(POSITIONS, 0);
        let side = patches_across(tokens, &mut self.evidence);
        let rows = self.axis("text_transformer.embeddings.position_embeddings.weight", 0);
        Dimensions {
            stacks,
            patch_size,
            image_size: side.zip(patch_size).map(|(side, patch)| side * patch),
            text_len: rows.and_then(|rows| rows.checked_sub(POSITIONS_BEFORE)),
            vocabulary: self.axis("text_transformer.embeddings.word_embeddings.weight", 0),
            n_token_types: self.axis("token_type_embeddings.weight", 0),
            ..Dimensions::default()
        }
    }
}
