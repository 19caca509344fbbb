//! Reads the sizes of one checkpoint of the multiway family off its keys and shapes.

mod positions;

use std::collections::{BTreeMap, BTreeSet};

use crate::{Checkpoint, Error, Expert, Result, TensorInfo};

use super::grammar::{self, BlockKey};
use crate::layouts::dimensions::published_heads;
use crate::layouts::record::stored;
use crate::layouts::{Dimensions, ModelRecord, Stack, without_module};

/// One checkpoint, its keys translated to vl-merging spelling.
pub(super) struct Survey<'a> {
    checkpoint: &'a Checkpoint,
    /// Shapes outside the blocks, buffers included.
    outer: BTreeMap<String, &'a TensorInfo>,
    /// Blocks that are there, with the experts that own something in them.
    experts: BTreeMap<usize, BTreeSet<Expert>>,
    /// Stems that experts own, each with one such key as the file spells it.
    specific: BTreeMap<&'static str, String>,
    width: Option<usize>,
    ffn_width: Option<usize>,
    /// Heads of one block where each block has its own bias table (BEiT).
    table_heads: Option<usize>,
    /// The file's record of its model.
    record: ModelRecord,
}

/// Sizes with the sentences that explain them.
pub(super) struct Findings {
    /// The sizes.
    pub dimensions: Dimensions,
    /// The sources of the sizes, and the disagreements with the stored configuration.
    pub evidence: Vec<String>,
}

impl<'a> Survey<'a> {
    /// Walks all keys once. `translate` turns a key (without `module.`) into vl-merging spelling.
    ///
    /// # Errors
    /// [`Error::BrokenLayout`] when two keys claim one place, or everybody and an expert do;
    /// [`Error::BadModelRecord`].
    pub(super) fn read(checkpoint: &'a Checkpoint, translate: fn(&str) -> String) -> Result<Self> {
        let mut survey = Self {
            checkpoint,
            outer: BTreeMap::new(),
            experts: BTreeMap::new(),
            specific: BTreeMap::new(),
            width: None,
            ffn_width: None,
            table_heads: None,
            record: ModelRecord::of(checkpoint)?,
        };
        let mut claims: BTreeMap<String, BTreeMap<Option<Expert>, &str>> = BTreeMap::new();
        for (key, info) in checkpoint.tensors() {
            let translated = translate(without_module(key));
            let slot = match BlockKey::parse(&translated) {
                Some(parsed) => {
                    survey.add_block_key(key, &parsed, info);
                    (parsed.slot().key, parsed.expert)
                }
                None => {
                    if translated.ends_with(".attn.relative_position_bias_table") {
                        survey.table_heads = info.shape.get(1).copied();
                    }
                    survey.outer.insert(translated.clone(), info);
                    (translated, None)
                }
            };
            let holders = claims.entry(slot.0.clone()).or_default();
            let rival = holders
                .iter()
                .find(|(expert, _)| **expert == slot.1 || expert.is_none() || slot.1.is_none());
            if let Some((_, first)) = rival {
                return Err(Error::BrokenLayout {
                    path: checkpoint.path().into(),
                    slot: slot.0,
                    first: (*first).to_owned(),
                    second: key.to_owned(),
                });
            }
            holders.insert(slot.1, key);
        }
        Ok(survey)
    }

    fn add_block_key(&mut self, key: &str, parsed: &BlockKey, info: &TensorInfo) {
        let owners = self.experts.entry(parsed.block).or_default();
        let row = parsed.parameter;
        if let Some(expert) = parsed.expert {
            owners.insert(expert);
            self.specific
                .entry(row.stem)
                .or_insert_with(|| key.to_owned());
        }
        match (row.stem, row.rest, info.shape.as_slice()) {
            ("mlp", "fc1.weight", &[ffn, width]) => {
                self.ffn_width.get_or_insert(ffn);
                self.width.get_or_insert(width);
            }
            ("attn", "qkv.weight", &[_, width]) | ("gamma_1" | "norm1", _, &[width]) => {
                self.width.get_or_insert(width);
            }
            _ => {}
        }
    }

    /// Whether experts own copies of a stem.
    pub(super) fn is_specific(&self, stem: &str) -> bool {
        self.specific.contains_key(stem)
    }

    /// One key per stem that experts own.
    pub(super) fn specific_keys(&self) -> impl Iterator<Item = &str> {
        self.specific.values().map(String::as_str)
    }

    /// The experts of each block that is there.
    pub(super) fn into_experts(self) -> BTreeMap<usize, BTreeSet<Expert>> {
        self.experts
    }

    /// Shape of a tensor outside the blocks, by its key in vl-merging spelling.
    pub(super) fn shape(&self, key: &str) -> Option<&[usize]> {
        self.outer.get(key).map(|info| info.shape.as_slice())
    }

    fn axis(&self, key: &str, axis: usize) -> Option<usize> {
        self.shape(key)?.get(axis).copied()
    }

    /// An integer of the configuration that a Lightning checkpoint carries.
    fn stored(&self, name: &str) -> Option<usize> {
        stored(self.checkpoint, name)
    }

    /// All sizes that can be known.
    ///
    /// # Errors
    /// [`Error::RecordContradicted`].
    pub(super) fn measure(&self) -> Result<Findings> {
        let mut sizes = Findings {
            dimensions: Dimensions::of_one_stack(Stack {
                name: "blocks",
                n_blocks: 0,
                width: 0,
                n_heads: None,
                ffn_width: None,
            }),
            evidence: Vec::new(),
        };
        self.measure_blocks(&mut sizes);
        self.measure_heads(&mut sizes);
        self.measure_fusion(&mut sizes);
        self.measure_positions(&mut sizes);
        let dimensions = &mut sizes.dimensions;
        dimensions.vocabulary = self
            .axis("text_embeddings.word_embeddings.weight", 0)
            .or_else(|| self.axis("mlm_score.decoder.weight", 0));
        dimensions.n_token_types = self.axis("token_type_embeddings.weight", 0);
        self.check_record(dimensions)?;
        Ok(sizes)
    }

    /// The record only fills gaps, so a disagreement means that the tensors contradict it.
    fn check_record(&self, found: &Dimensions) -> Result<()> {
        let has_table = self.shape("relative_position_bias_table").is_some();
        let pairs = [
            ("heads", self.record.heads, found.n_heads(), true),
            (
                "fusion_start",
                self.record.fusion_start,
                found.fusion_start,
                true,
            ),
            (
                "text_table_len",
                self.record.text_table_len,
                found.text_table_len,
                has_table,
            ),
        ];
        for (what, recorded, found, is_told) in pairs {
            match recorded {
                Some(recorded) if is_told && found != Some(recorded) => {
                    return Err(Error::RecordContradicted {
                        path: self.checkpoint.path().into(),
                        what,
                        recorded,
                        found: found.map_or_else(|| "otherwise".into(), |n| n.to_string()),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn measure_blocks(&self, sizes: &mut Findings) {
        let n_blocks = self.experts.keys().next_back().map_or(0, |last| last + 1);
        let width = self
            .width
            .or_else(|| self.axis("transformer.norm.weight", 0))
            .or_else(|| self.axis("transformer.cls_token", 2));
        let stack = sizes.stack();
        stack.n_blocks = n_blocks;
        stack.width = width.unwrap_or(0);
        stack.ffn_width = self.ffn_width;
        let mut sentence = format!("{n_blocks} blocks");
        if let Some(width) = width {
            sentence += &format!(" of width {width}");
        }
        let missing: Vec<String> = (0..n_blocks)
            .filter(|block| !self.experts.contains_key(block))
            .map(|block| block.to_string())
            .collect();
        if !missing.is_empty() {
            sentence += &format!(
                ", of which {} are missing ({})",
                missing.len(),
                first_few(&missing)
            );
        }
        sizes.evidence.push(sentence);
        sizes.compare("num_layers", self.stored("num_layers"), Some(n_blocks));
        sizes.compare("hidden_size", self.stored("hidden_size"), width);
    }

    fn measure_heads(&self, sizes: &mut Findings) {
        let (n_blocks, width) = (sizes.dimensions.n_blocks(), sizes.dimensions.width());
        let stored = self.stored("num_heads");
        // Columns of all blocks side by side; with blocks missing, their number is uncertain.
        let from_table = self
            .axis("relative_position_bias_table", 1)
            .filter(|_| n_blocks > 0 && self.experts.len() == n_blocks)
            .filter(|columns| columns % n_blocks == 0)
            .map(|columns| columns / n_blocks)
            .or(self.table_heads)
            .or_else(|| self.axis("transformer.rel_pos_bias.relative_position_bias_table", 1))
            .filter(|heads| *heads > 0 && width % heads == 0);
        sizes.compare("num_heads", stored, from_table);
        let heads = from_table.or(self.record.heads).or(stored);
        let heads = heads.or_else(|| {
            let (guess, said) = published_heads(width)?;
            sizes.evidence.push(said);
            Some(guess)
        });
        sizes.stack().n_heads = heads;
        if let Some(heads) = from_table {
            sizes
                .evidence
                .push(format!("{heads} heads from the columns of the bias table"));
        }
    }

    fn measure_fusion(&self, sizes: &mut Findings) {
        let stored = self.stored("vlffn_start_layer_index");
        let found = self
            .experts
            .iter()
            .find(|(_, owners)| owners.contains(&Expert::VisionLanguage))
            .map(|(block, _)| *block);
        sizes.compare("vlffn_start_layer_index", stored, found);
        let recorded = self.record.fusion_start;
        sizes.dimensions.fusion_start = found.or(recorded).or(stored);
        let sentence = match (found, recorded.or(stored), self.specific.is_empty()) {
            (Some(block), _, _) => format!("vision_language experts from block {block}"),
            (None, Some(block), _) if recorded.is_some() => {
                format!("fusion from block {block} by the file's metadata")
            }
            (None, Some(block), _) => {
                format!("fusion from block {block} by the stored configuration")
            }
            (None, None, false) => "no vision_language experts".to_owned(),
            (None, None, true) => return,
        };
        sizes.evidence.push(sentence);
    }
}

impl Findings {
    /// The only stack.
    fn stack(&mut self) -> &mut Stack {
        &mut self.dimensions.stacks[0]
    }

    /// Notes where the stored configuration and the weights disagree; the weights win.
    fn compare(&mut self, name: &str, stored: Option<usize>, found: Option<usize>) {
        if let (Some(stored), Some(found)) = (stored, found)
            && stored != found
        {
            self.evidence.push(format!(
                "the stored configuration says {name} = {stored}, the weights say {found}: the weights win"
            ));
        }
    }
}

/// At most the first eight names, so that a sparse checkpoint does not flood the screen.
fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text += ", ...";
    }
    text
}

/// Keys between backquotes, for sentences.
pub(super) fn quoted<'k>(keys: impl Iterator<Item = &'k str>) -> String {
    keys.map(|key| format!("`{key}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// The experts of one block in the order of the table.
pub(super) fn in_order(owners: Option<&BTreeSet<Expert>>) -> Vec<Expert> {
    let owned = |expert: &Expert| owners.is_some_and(|owners| owners.contains(expert));
    grammar::EXPERTS
        .iter()
        .map(|(expert, _)| *expert)
        .filter(owned)
        .collect()
}
