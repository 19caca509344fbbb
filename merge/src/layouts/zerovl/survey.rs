//! Reads the sizes of one ZeroVL checkpoint off its keys and shapes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layouts::dimensions::{counted_blocks, patches_across, published_heads};
use crate::layouts::{Description, Dimensions, ModelRecord, PositionTable, Stack};
use crate::{Checkpoint, Error, Result, TensorInfo};

use super::table::{POSITIONS, STACKS, TEMPERATURE};
use super::{NAME, Place, position_table, without_module};

/// The axes that tell a tower's width and the inner size of its FFN: a key outside the blocks, one in a
/// block, each with the axis.
struct Telling {
    width: [(&'static str, usize); 2],
    ffn: (&'static str, usize),
}

/// By stack.
const TELLING: [Telling; 2] = [
    Telling {
        width: [
            ("image_encoder.model.model.norm.weight", 0),
            ("norm1.weight", 0),
        ],
        ffn: ("mlp.fc1.weight", 0),
    },
    Telling {
        width: [
            ("text_encoder.model.model.embeddings.LayerNorm.weight", 0),
            ("output.LayerNorm.weight", 0),
        ],
        ffn: ("intermediate.dense.weight", 0),
    },
];

/// One checkpoint, its keys without `module.`.
struct Survey<'a> {
    shapes: BTreeMap<String, &'a TensorInfo>,
    /// Indices of the blocks that are there, by stack.
    blocks: [BTreeSet<usize>; 2],
    record: ModelRecord,
    evidence: Vec<String>,
}

/// Describes a checkpoint, of which `example` is a key of a tower.
pub(super) fn describe(
    checkpoint: &Checkpoint,
    example: &str,
) -> Result<(Description, Vec<PositionTable>)> {
    let mut survey = Survey::read(checkpoint)?;
    survey
        .evidence
        .push(format!("keys of two towers, such as `{example}`"));
    let stacks: Vec<Stack> = (0..STACKS.len()).map(|stack| survey.stack(stack)).collect();
    let dimensions = survey.dimensions(stacks);
    survey.record.check_heads(checkpoint, &dimensions)?;
    survey.evidence.push(survey.temperature().to_owned());
    let positions = checkpoint
        .tensors()
        .filter_map(|(key, _)| position_table(key));
    let description = Description {
        name: NAME,
        evidence: survey.evidence,
        dimensions,
    };
    Ok((description, positions.collect()))
}

impl<'a> Survey<'a> {
    fn read(checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut survey = Self {
            shapes: BTreeMap::new(),
            blocks: Default::default(),
            record: ModelRecord::of(checkpoint)?,
            evidence: Vec::new(),
        };
        let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
        for (key, info) in checkpoint.tensors() {
            let name = without_module(key);
            if let Some(first) = keys.insert(name, key) {
                return Err(Error::BrokenLayout {
                    path: checkpoint.path().into(),
                    slot: name.to_owned(),
                    first: first.to_owned(),
                    second: key.to_owned(),
                });
            }
            if let Some(block) = Place::of(name).and_then(|place| place.block) {
                survey.blocks[usize::from(block.stack)].insert(block.index);
            }
            survey.shapes.insert(name.to_owned(), info);
        }
        Ok(survey)
    }

    fn axis(&self, key: &str, axis: usize) -> Option<usize> {
        self.shapes.get(key)?.shape.get(axis).copied()
    }

    /// An axis of the first block that has the parameter.
    fn block_axis(&self, stack: usize, rest: &str, axis: usize) -> Option<usize> {
        let prefix = STACKS[stack].prefix;
        let mut blocks = self.blocks[stack].iter();
        blocks.find_map(|block| self.axis(&format!("{prefix}{block}.{rest}"), axis))
    }

    fn stack(&mut self, stack: usize) -> Stack {
        let Telling { width, ffn } = &TELLING[stack];
        let [outer, inner] = *width;
        let width =
            (self.axis(outer.0, outer.1)).or_else(|| self.block_axis(stack, inner.0, inner.1));
        let name = STACKS[stack].name;
        let (n_blocks, sentence) = counted_blocks(name, &self.blocks[stack], width);
        self.evidence.push(sentence);
        Stack {
            name,
            n_blocks,
            width: width.unwrap_or(0),
            n_heads: self.heads(stack, width),
            ffn_width: self.block_axis(stack, ffn.0, ffn.1),
        }
    }

    /// Weights do not tell the heads.
    fn heads(&mut self, stack: usize, width: Option<usize>) -> Option<usize> {
        let name = STACKS[stack].name;
        if let Some(heads) = self.record.heads_of(name) {
            (self.evidence).push(format!("{name}: {heads} heads by the file's metadata"));
            return Some(heads);
        }
        let (guess, said) = published_heads(width?)?;
        self.evidence.push(format!("{name}: {said}"));
        Some(guess)
    }

    fn dimensions(&mut self, stacks: Vec<Stack>) -> Dimensions {
        let patch_size = self.axis("image_encoder.model.model.patch_embed.proj.weight", 3);
        let tokens = self.axis(POSITIONS, 1);
        let side = patches_across(tokens, &mut self.evidence);
        Dimensions {
            stacks,
            patch_size,
            image_size: side.zip(patch_size).map(|(side, patch)| side * patch),
            text_len: self.axis(
                "text_encoder.model.model.embeddings.position_embeddings.weight",
                0,
            ),
            vocabulary: self.axis(
                "text_encoder.model.model.embeddings.word_embeddings.weight",
                0,
            ),
            n_token_types: self.axis(
                "text_encoder.model.model.embeddings.token_type_embeddings.weight",
                0,
            ),
            joint_width: self
                .axis("image_projection.linear.weight", 0)
                .or_else(|| self.axis("text_projection.linear.weight", 0)),
            ..Dimensions::default()
        }
    }

    fn temperature(&self) -> &'static str {
        match self.shapes.contains_key(TEMPERATURE) {
            true => "the temperature is learned",
            false => "the temperature is constant: no weight holds it",
        }
    }
}
