//! Reads the sizes of one EVE checkpoint off its keys and shapes.

use std::collections::{BTreeMap, BTreeSet};

use crate::layouts::dimensions::{patches_across, published_heads};
use crate::layouts::{
    Description, Dimensions, ModelRecord, PositionTable, Stack, TableForm, without_module,
};
use crate::{Checkpoint, Error, Result, TensorInfo};

use super::place::{Place, Stem, Whose};
use super::table::{BACKBONE, BLOCKS, POSITIONS, RELATIVE_TABLE};
use super::{Eve, stored_pair_len};

/// One checkpoint, its keys with `backbone.` and without `module.`.
struct Survey<'a> {
    checkpoint: &'a Checkpoint,
    shapes: BTreeMap<String, (&'a str, &'a TensorInfo)>,
    blocks: BTreeSet<usize>,
    networks: BTreeMap<usize, BTreeSet<Whose>>,
    experts: BTreeMap<usize, BTreeSet<u16>>,
    record: ModelRecord,
    tells_heads: bool,
    evidence: Vec<String>,
}

/// Describes a checkpoint, of which `example` is a key that tells the family.
pub(super) fn read(checkpoint: &Checkpoint, example: &str) -> Result<Eve> {
    let mut survey = Survey::read(checkpoint)?;
    survey
        .evidence
        .push(format!("keys of blocks such as `{example}`"));
    survey.check_routers()?;
    let name = survey.form();
    survey.say_blocks();
    let dimensions = survey.dimensions();
    survey.record.check_heads(checkpoint, &dimensions)?;
    let pair_len = survey.pair_len();
    let positions = survey.positions();
    let prefix = match without_module(example).strip_prefix(BACKBONE) {
        Some(_) => BACKBONE,
        None => "",
    };
    let routed = survey.experts.iter();
    let routed = routed.map(|(&block, experts)| (block, experts.len() as u16));
    Ok(Eve {
        routed: routed.collect(),
        description: Description {
            name,
            evidence: survey.evidence,
            dimensions,
        },
        positions,
        networks: survey.networks,
        prefix,
        pair_len,
        tells_heads: survey.tells_heads,
    })
}

impl<'a> Survey<'a> {
    fn read(checkpoint: &'a Checkpoint) -> Result<Self> {
        let mut survey = Self {
            checkpoint,
            shapes: BTreeMap::new(),
            blocks: BTreeSet::new(),
            networks: BTreeMap::new(),
            experts: BTreeMap::new(),
            record: ModelRecord::of(checkpoint)?,
            tells_heads: true,
            evidence: Vec::new(),
        };
        for (key, info) in checkpoint.tensors() {
            let name = without_module(key);
            let Some(place) = Place::of(name) else {
                continue;
            };
            let place_key = place.key();
            if let Some((first, _)) = survey.shapes.insert(place_key.clone(), (key, info)) {
                return Err(Error::BrokenLayout {
                    path: checkpoint.path().into(),
                    slot: place_key,
                    first: first.to_owned(),
                    second: key.to_owned(),
                });
            }
            let Some(block) = place.block else {
                continue;
            };
            survey.blocks.insert(block);
            match place.stem {
                Stem::Ffn(whose) | Stem::Norm(whose) => {
                    survey.networks.entry(block).or_default().insert(whose);
                }
                Stem::Routed(index) => {
                    survey.experts.entry(block).or_default().insert(index);
                }
                _ => {}
            }
        }
        Ok(survey)
    }

    fn starts(&self, start: &str) -> bool {
        let mut keys = self.shapes.range(start.to_owned()..);
        keys.next().is_some_and(|(key, _)| key.starts_with(start))
    }

    fn axis(&self, key: &str, axis: usize) -> Option<usize> {
        let (_, info) = self.shapes.get(key)?;
        info.shape.get(axis).copied()
    }

    fn outer_axis(&self, key: &str, axis: usize) -> Option<usize> {
        self.axis(&format!("{BACKBONE}{key}"), axis)
    }

    /// An axis of the first block that has one of the parameters.
    fn block_axis(&self, rests: &[&str], axis: usize) -> Option<usize> {
        self.blocks.iter().find_map(|block| {
            let mut keys = rests.iter();
            keys.find_map(|rest| self.axis(&format!("{BACKBONE}{BLOCKS}{block}.{rest}"), axis))
        })
    }

    /// Whether each router has a row for each expert of its block, and each block of experts a router.
    fn check_routers(&self) -> Result<()> {
        let router = |block: usize| format!("{BACKBONE}{BLOCKS}{block}.mlp_moe.moe.gate.wg.weight");
        for &block in &self.blocks {
            let key = router(block);
            let rows = self.axis(&key, 0);
            let experts = self.experts.get(&block);
            let found = experts.map_or(0, BTreeSet::len);
            let are_counted = experts.is_none_or(|experts| {
                let last = experts.last().copied().map_or(0, usize::from);
                last + 1 == experts.len()
            });
            match rows {
                None if found == 0 => {}
                Some(rows) if rows == found && are_counted => {}
                _ => {
                    return Err(Error::RouterMisfit {
                        path: self.checkpoint.path().into(),
                        router: key,
                        rows,
                        found,
                    });
                }
            }
        }
        Ok(())
    }

    /// The form's name, and a sentence that says why.
    fn form(&mut self) -> &'static str {
        let width = self.block_axis(&["gamma_1", "norm1.weight"], 0);
        let read = self.axis("output.0.weight", 1);
        let (name, why) = if self.starts("attn1.") || self.starts("nlvr2_output.") {
            ("eve/nlvr2_biattn", "attention between two images")
        } else if self.starts("output.") {
            match read.zip(width) {
                Some((read, width)) if read == 2 * width => (
                    "eve/nlvr2",
                    "a classifier that reads the states of two images",
                ),
                _ => ("eve/vqa", "a classifier that reads one state"),
            }
        } else if ["itc_temp", "itc_vision_proj_head.weight", "itm_head.weight"]
            .iter()
            .any(|key| self.shapes.contains_key(*key))
        {
            ("eve/retrieval", "heads of retrieval")
        } else if ["backbone.mask_embed_vision", "mitc_", "mitm_", "itc_vl_"]
            .iter()
            .any(|start| self.starts(start))
        {
            (
                "eve/pretrain",
                "a masked patch, or heads of masked pre-training",
            )
        } else {
            ("eve/backbone", "no heads")
        };
        self.evidence.push(why.to_owned());
        name
    }

    /// Sentences about what blocks hold in place of a feed-forward network.
    fn say_blocks(&mut self) {
        let what = |block: usize| -> String {
            let networks = self.networks.get(&block).map_or(0, BTreeSet::len);
            match (self.experts.get(&block), networks) {
                (Some(experts), _) => format!("a router to {} experts", experts.len()),
                (None, 0) => "no feed-forward network".to_owned(),
                (None, 1) => "one network for all tokens".to_owned(),
                (None, 2) => "a network for images and one for texts".to_owned(),
                (None, _) => "networks for images, for texts and for both together".to_owned(),
            }
        };
        let mut runs: Vec<(usize, usize, String)> = Vec::new();
        for &block in &self.blocks {
            let what = what(block);
            match runs.last_mut() {
                Some((_, last, said)) if *said == what && *last + 1 == block => *last = block,
                _ => runs.push((block, block, what)),
            }
        }
        for (first, last, what) in runs {
            let blocks = match first == last {
                true => format!("block {first}"),
                false => format!("blocks {first} to {last}"),
            };
            self.evidence.push(format!("{blocks}: {what}"));
        }
    }

    fn dimensions(&mut self) -> Dimensions {
        let width = (self.outer_axis("norm.weight", 0))
            .or_else(|| self.block_axis(&["gamma_1", "norm1.weight"], 0));
        let ffn_width = self.block_axis(
            &[
                "mlp_imag.fc1.weight",
                "mlp_text.fc1.weight",
                "mlp_vl.fc1.weight",
                "mlp_moe.moe.experts.experts.0.fc1.weight",
            ],
            0,
        );
        let n_blocks = self.blocks.last().map_or(0, |last| last + 1);
        let n_missing = n_blocks - self.blocks.len();
        if n_missing > 0 {
            self.evidence
                .push(format!("{n_missing} of {n_blocks} blocks are missing"));
        }
        let n_heads = self.heads(width, n_blocks);
        let patch_size = self.outer_axis("patch_embed.weight", 3);
        let positions = self.outer_axis(POSITIONS, 0);
        let side = match positions {
            Some(_) => patches_across(positions, &mut self.evidence),
            None => self.relative_side(),
        };
        Dimensions {
            patch_size,
            image_size: side.zip(patch_size).map(|(side, patch)| side * patch),
            text_len: self.outer_axis("pos_embed_text", 0),
            vocabulary: self.outer_axis("word_embedding.weight", 0),
            joint_width: self.axis("itc_text_proj_head.weight", 0),
            ..Dimensions::of_one_stack(Stack {
                name: "blocks",
                n_blocks,
                width: width.unwrap_or(0),
                n_heads,
                ffn_width,
            })
        }
    }

    /// Weights do not tell the heads, except for the columns of a table of relative positions.
    fn heads(&mut self, width: Option<usize>, n_blocks: usize) -> Option<usize> {
        let width = width?;
        if let Some(heads) = self.record.heads {
            self.evidence
                .push(format!("{heads} heads by the file's metadata"));
            return Some(heads);
        }
        let columns = self.outer_axis(RELATIVE_TABLE, 1);
        if let Some(columns) = columns
            && n_blocks > 0
            && columns.is_multiple_of(n_blocks)
        {
            let heads = columns / n_blocks;
            self.evidence
                .push(format!("{heads} heads by the table of relative positions"));
            return Some(heads);
        }
        self.tells_heads = false;
        let (guess, said) = published_heads(width)?;
        self.evidence.push(said);
        Some(guess)
    }

    fn pair_len(&mut self) -> Option<usize> {
        let (len, source) = match self.record.pair_len {
            Some(len) => (len, "metadata"),
            None => (stored_pair_len(self.checkpoint)?, "settings"),
        };
        self.evidence.push(format!(
            "texts that are read with an image have {len} tokens by the file's {source}"
        ));
        Some(len)
    }

    /// Patches a side by the table of relative positions, whose text has as many rows as the published program gives
    /// it: the rows alone do not tell the size of the picture, so this takes 196 text positions.
    fn relative_side(&mut self) -> Option<usize> {
        let rows = self.outer_axis(RELATIVE_TABLE, 0)?;
        let text = self.record.text_table_len.unwrap_or(TEXT_POSITIONS);
        let side = relative_side(rows, text);
        if side.is_none() {
            self.evidence.push(format!(
                "image size unknown: {rows} rows of relative positions are no square and {text} text positions"
            ));
        }
        side
    }

    fn positions(&self) -> Vec<PositionTable> {
        let tables = [
            (POSITIONS, TableForm::AbsoluteRows),
            (RELATIVE_TABLE, TableForm::Relative),
        ];
        let found = tables.iter().filter_map(|&(key, form)| {
            let (key, _) = self.shapes.get(&format!("{BACKBONE}{key}"))?;
            Some(PositionTable {
                key: (*key).to_owned(),
                form,
            })
        });
        found.collect()
    }
}

/// Patches a side by the rows of a table of relative positions.
pub(in crate::layouts) fn relative_side(rows: usize, text_positions: usize) -> Option<usize> {
    let of_image = rows.checked_sub(text_positions.checked_mul(2)?.checked_add(5)?)?;
    let side = of_image.isqrt().div_ceil(2);
    (side > 0 && (2 * side - 1).pow(2) == of_image).then_some(side)
}

/// Text positions of every published model.
const TEXT_POSITIONS: usize = 196;
