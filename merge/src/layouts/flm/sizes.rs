//! The sizes of a checkpoint, read off all of its shapes.

use std::collections::HashMap;

use crate::layouts::record::stored;
use crate::layouts::{Layout, ModelRecord, OneStream, RecordFamily, Stack, TowerSizes};
use crate::{Checkpoint, Error, Result};

use super::fresh::{FlmSizes, FlmSpec, FlmTask};
use super::place::Place;
use super::table::{Axis, HEAD, STACKS};
use super::{Flm, survey, ties};

impl Flm {
    /// The task and the sizes of the checkpoint, as a fresh model of the same names and shapes has them. A checkpoint
    /// without heads counts as a pre-training one.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] for a tensor of another size than the others say.
    pub fn spec(&self, checkpoint: &Checkpoint) -> Result<FlmSpec> {
        let lengths = lengths(checkpoint)?;
        let published = FlmSizes::BASE;
        let length =
            |axis: Axis, published: usize| lengths.get(&axis).map_or(published, |(n, _)| *n);
        let stacks = &self.dimensions().stacks;
        let tower = |stack: &Stack, width: usize, ffn_width: usize| TowerSizes {
            n_blocks: stack.n_blocks,
            width,
            n_heads: stack.n_heads.unwrap_or(1),
            ffn_width,
        };
        let width = |axis: Axis| length(axis, published.text.width);
        let ffn = |axis: Axis| length(axis, published.text.ffn_width);
        debug_assert_eq!(stacks.len(), STACKS.len());
        let (text, hidden) = (width(Axis::Text), width(Axis::Hidden(1)));
        let side = (length(Axis::ImageTokens, 2).saturating_sub(1)).isqrt();
        let patch_size = length(Axis::Patch, published.patch_size);
        let sizes = FlmSizes {
            image: tower(&stacks[0], width(Axis::Image(1)), ffn(Axis::ImageFfn)),
            text: tower(&stacks[1], text, ffn(Axis::TextFfn)),
            cross: tower(&stacks[2], hidden, ffn(Axis::HiddenFfn)),
            n_bottom: stacks[3].n_blocks,
            n_top: stacks[4].n_blocks,
            patch_size,
            image_size: side * patch_size,
            vocabulary: length(Axis::Vocabulary, published.vocabulary),
            text_positions: length(Axis::TextPositions, published.text_positions),
            n_token_types: length(Axis::TokenTypes, published.n_token_types),
            n_answers: length(Axis::Answers, published.n_answers),
            clip_text_positions: length(Axis::ClipTextPositions, published.clip_text_positions),
            clip_text_width: length(Axis::ClipText, published.clip_text_width),
        };
        let form = self.name().strip_prefix("flm/").unwrap_or_default();
        let recorded = ModelRecord::of(checkpoint)?.streams;
        Ok(FlmSpec {
            task: FlmTask::named(form).unwrap_or(FlmTask::Pretrain),
            is_three_stream: self.is_three_stream,
            shares_heads: !ties::has_own_heads(checkpoint),
            reading: recorded.or_else(|| self.reading(checkpoint)),
            sizes,
        })
    }
}

impl Flm {
    /// The way of reading of a model with one stream, by the settings of its run or by its language head.
    #[must_use]
    pub fn reading(&self, checkpoint: &Checkpoint) -> Option<OneStream> {
        if self.is_three_stream {
            return None;
        }
        let has = |start: &str| checkpoint.tensors().any(|(key, _)| key.starts_with(start));
        match survey::is_causal(checkpoint) {
            Some(true) => Some(OneStream::Causal),
            Some(false) => Some(OneStream::Bidirectional),
            None if has(HEAD) => Some(OneStream::Causal),
            None if has("mlm_score.") => Some(OneStream::Bidirectional),
            None => None,
        }
    }

    /// The settings of a run about the model, where the tensors do not contradict them.
    pub(in crate::layouts) fn settings(&self, checkpoint: &Checkpoint) -> ModelRecord {
        let found = self.dimensions().stack("cross_modal");
        let heads = stored(checkpoint, "num_heads");
        let heads = heads.filter(|_| found.is_some_and(|stack| stack.n_heads == heads));
        let of_settings = survey::is_causal(checkpoint).and(self.reading(checkpoint));
        let record = ModelRecord {
            heads,
            streams: of_settings,
            ..ModelRecord::default()
        };
        let is_known = record != ModelRecord::default();
        ModelRecord {
            family: is_known.then_some(RecordFamily::Flm),
            ..record
        }
    }
}

/// The length of every axis, with the key that says it.
fn lengths(checkpoint: &Checkpoint) -> Result<HashMap<Axis, (usize, String)>> {
    let mut lengths: HashMap<Axis, (usize, String)> = HashMap::new();
    for (key, info) in checkpoint.tensors() {
        let Some(place) = Place::of(key) else {
            continue;
        };
        let axes = place.parameter.shape;
        let misfit = |expected: Vec<usize>| Error::ShapeMismatch {
            slot: checkpoint.path().display().to_string(),
            key: key.to_owned(),
            found: info.shape.clone(),
            expected,
        };
        if axes.len() != info.shape.len() {
            return Err(misfit(vec![0; axes.len()]));
        }
        for (position, (&axis, &length)) in axes.iter().zip(&info.shape).enumerate() {
            let (axis, length, times) = match axis {
                Axis::Fixed(fixed) if fixed == length => continue,
                Axis::Fixed(fixed) => return Err(misfit(with(&info.shape, position, fixed))),
                Axis::Image(times) => (Axis::Image(1), length, times),
                Axis::Hidden(times) => (Axis::Hidden(1), length, times),
                other => (other, length, 1),
            };
            let known = lengths
                .entry(axis)
                .or_insert_with(|| (length / times, key.to_owned()));
            if known.0 * times != length {
                return Err(misfit(with(&info.shape, position, known.0 * times)));
            }
        }
    }
    Ok(lengths)
}

/// A shape with another length of one axis.
fn with(shape: &[usize], position: usize, length: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[position] = length;
    shape
}
