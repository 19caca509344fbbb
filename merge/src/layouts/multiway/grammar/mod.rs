//! The key grammar of the multiway family. vl-merging, VLMo and BEiT spell one model in three
//! ways: every key is translated to the agnostic vl-merging spelling and looked up in the table,
//! and the catalog writes checkpoints from the same rows.

mod table;

pub(super) use table::{
    Axis, BEIT_BLOCK_TABLE, BLOCK, BlockParameter, Holder, OUTER, OuterParameter,
};

use crate::layouts::keys;
pub(super) use crate::layouts::keys::split_block;
use crate::{BlockId, Expert, ParamKind, Slot};

/// Experts in the order in which published code walks them, with their key segments.
pub(super) const EXPERTS: [(Expert, &str); 3] = [
    (Expert::Vision, "v"),
    (Expert::Language, "l"),
    (Expert::VisionLanguage, "vl"),
];

/// The first part of blocks' keys in every spelling but BEiT's own.
pub(super) const BLOCKS: &str = "transformer.blocks.";

/// Whether experts may own copies of this stem. LayerScale serves everybody in every form.
pub(super) fn is_owned(stem: &str) -> bool {
    ["attn", "mlp", "norm1", "norm2"].contains(&stem)
}

/// The key segment of an expert of this family.
pub(super) fn segment(expert: Expert) -> Option<&'static str> {
    EXPERTS
        .iter()
        .find(|(known, _)| *known == expert)
        .map(|(_, segment)| *segment)
}

/// A key inside a block, taken apart.
pub(super) struct BlockKey {
    /// Index of the block.
    pub block: usize,
    /// The expert that it is a copy of, unless all share it.
    pub expert: Option<Expert>,
    /// Its row of the table.
    pub parameter: &'static BlockParameter,
}

impl BlockKey {
    /// Parses a key in vl-merging spelling, segment by segment: `attn.v_bias` is the value bias of
    /// everybody, `attn.v.v_bias` that of the vision expert.
    pub(super) fn parse(key: &str) -> Option<Self> {
        let (block, rest) = split_block(key.strip_prefix(BLOCKS)?)?;
        let (stem, rest) = rest.split_once('.').unwrap_or((rest, ""));
        let owned = EXPERTS.iter().find_map(|(expert, segment)| {
            let rest = rest.strip_prefix(segment)?.strip_prefix('.')?;
            Some((*expert, rest))
        });
        let (expert, rest) = match owned {
            Some((expert, rest)) => (Some(expert), rest),
            None => (None, rest),
        };
        let parameter = BLOCK
            .iter()
            .find(|row| row.stem == stem && row.rest == rest)?;
        if expert.is_some() && !is_owned(stem) {
            return None;
        }
        Some(Self {
            block,
            expert,
            parameter,
        })
    }

    /// The place in the merged model.
    pub(super) fn slot(&self) -> Slot {
        let row = self.parameter;
        let module = match row.rest.rsplit_once('.') {
            Some((layer, _)) => format!("{}.{layer}", row.stem),
            None => row.stem.to_owned(),
        };
        Slot {
            key: block_key(self.block, row, None),
            block: Some(BlockId::only(self.block)),
            module,
            kind: row.kind,
        }
    }
}

/// The key of a block parameter in vl-merging spelling.
pub(super) fn block_key(block: usize, row: &BlockParameter, expert: Option<Expert>) -> String {
    let mut key = format!("{BLOCKS}{block}.{}", row.stem);
    for part in [expert.and_then(segment).unwrap_or(""), row.rest] {
        if !part.is_empty() {
            key.push('.');
            key.push_str(part);
        }
    }
    key
}

/// The row of a parameter outside the blocks, by its key in vl-merging spelling.
pub(super) fn outer_parameter(key: &str) -> Option<&'static OuterParameter> {
    OUTER.iter().find(|row| row.key == key)
}

/// The place in the merged model of a parameter outside the blocks.
pub(super) fn outer_slot(key: &str, kind: ParamKind) -> Slot {
    Slot {
        key: key.to_owned(),
        block: None,
        module: key
            .rsplit_once('.')
            .map_or(key, |(module, _)| module)
            .to_owned(),
        kind,
    }
}

/// Whether a key is a buffer that a loader rebuilds from the sizes.
pub(super) fn is_buffer(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    last.ends_with("relative_position_index")
        || key == "text_embeddings.position_ids"
        || key == "mask_for_combining_temporal"
}

/// Whether a key belongs to the frozen image tokenizer.
pub(super) fn is_image_tokenizer(key: &str) -> bool {
    key.starts_with("d_vae.")
}

/// The key of the family that is most like `key`, in vl-merging spelling.
pub(super) fn nearest(key: &str) -> Option<String> {
    let block = key.strip_prefix(BLOCKS).and_then(split_block);
    let candidates: Vec<String> = match block {
        Some((index, _)) => BLOCK
            .iter()
            .flat_map(|row| {
                let experts = if is_owned(row.stem) {
                    &EXPERTS[..]
                } else {
                    &[]
                };
                std::iter::once(None)
                    .chain(experts.iter().map(|(expert, _)| Some(*expert)))
                    .map(move |expert| block_key(index, row, expert))
            })
            .collect(),
        None => OUTER.iter().map(|row| row.key.to_owned()).collect(),
    };
    keys::nearest(candidates.into_iter(), key)
}
