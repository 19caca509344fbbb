//! BEiT as the start of an EVE: what its tensors are called there, and the sizes that it leaves open.
//!
//! How the published models began is not known for sure: EVE's program speaks of BEiT v2, and its blocks are BEiT's. So each network of
//! a block, experts included, begins as BEiT's one.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::fewer_experts::Made;
use crate::layouts::vl_merging::usual_fusion_start;
use crate::layouts::{EveSizes, EveTask, Layout, TowerSizes, beit, without_module};
use crate::mixtures::Piece;
use crate::{Checkpoint, ConversionFault, Result, TensorInfo};

/// The settings of an EVE that a BEiT leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeitStart {
    /// Blocks with a mixture of experts, the last ones; the published ones of this depth unless given.
    pub mixtures: Option<Range<usize>>,
    /// Experts of each mixture; 32 unless given.
    pub n_experts: Option<usize>,
    /// Tokens of the vocabulary; 64,000 unless given.
    pub vocabulary: Option<usize>,
}

/// Tensors outside the blocks, in BEiT and in EVE.
const OUTER: [(&str, &str); 5] = [
    ("cls_token", "class_embedding_vision"),
    ("mask_token", "mask_embed_vision"),
    ("pos_embed", "pos_embed_vision"),
    ("patch_embed.proj.weight", "patch_embed.weight"),
    ("patch_embed.proj.bias", "patch_embed.bias"),
];

/// Whether a checkpoint is a BEiT.
pub(super) fn is_beit(layout: &dyn Layout) -> bool {
    layout.name().starts_with("beit/")
}

/// The checkpoint with the vectors of tokens as EVE has them: without axes of length 1.
pub(super) fn reshaped(source: &Arc<Checkpoint>) -> Arc<Checkpoint> {
    let mut made = Made::default();
    for (key, info) in source.tensors() {
        let name = beit::prefixed(without_module(key));
        let shape: &[usize] = match (name.as_str(), info.shape.as_slice()) {
            ("transformer.cls_token" | "transformer.mask_token", [1, 1, width]) => &[*width],
            ("transformer.pos_embed", [1, rows, width]) => &[*rows, *width],
            _ => continue,
        };
        let n_rows = info.shape.iter().rev().skip(1).product();
        let info = TensorInfo {
            dtype: info.dtype,
            shape: shape.to_vec(),
        };
        made.leave_out(key.to_owned());
        made.add(
            key.to_owned(),
            info,
            vec![Piece::of(key.to_owned(), 0, n_rows)],
        );
    }
    made.view(Arc::clone(source))
}

/// The sizes of the EVE that begins as a BEiT.
///
/// # Errors
/// [`ConversionFault::UnknownSize`] for a depth that says nothing of the mixtures, or heads that weights do not tell;
/// [`ConversionFault::LastBlocks`] for mixtures in other blocks than the last ones.
pub(super) fn sizes(
    source: &Checkpoint,
    layout: &dyn Layout,
    start: &BeitStart,
    task: EveTask,
) -> Result<EveSizes> {
    let dimensions = layout.dimensions();
    let unknown = |what| ConversionFault::UnknownSize { what };
    let stack = dimensions.only_stack().ok_or(unknown("number of blocks"))?;
    let n_blocks = stack.n_blocks;
    let first = match &start.mixtures {
        Some(blocks) if blocks.end == n_blocks && blocks.start < n_blocks => blocks.start,
        Some(blocks) => {
            return Err(ConversionFault::LastBlocks {
                path: source.path().into(),
                start: blocks.start,
                end: blocks.end,
                n_blocks,
            }
            .into());
        }
        None => usual_fusion_start(n_blocks).ok_or(unknown("blocks with experts"))?,
    };
    let published = EveSizes::BASE;
    let side = dimensions.image_size;
    Ok(EveSizes {
        blocks: TowerSizes {
            n_blocks,
            width: stack.width,
            n_heads: stack.n_heads.ok_or(unknown("number of heads"))?,
            ffn_width: stack.ffn_width.unwrap_or(4 * stack.width),
        },
        n_mixtures: n_blocks - first,
        n_experts: start.n_experts.unwrap_or(published.n_experts),
        patch_size: dimensions.patch_size.unwrap_or(published.patch_size),
        image_size: side.unwrap_or(EveSizes::published_side(task)),
        vocabulary: start.vocabulary.unwrap_or(published.vocabulary),
        ..published
    })
}

/// For the names of an EVE the keys of a BEiT that they begin as; names that it has nothing for are left out.
pub(super) fn keys<'n>(
    source: &Checkpoint,
    names: impl Iterator<Item = &'n str>,
) -> BTreeMap<String, String> {
    let own: BTreeMap<String, &str> = (source.tensors())
        .map(|(key, _)| (beit::prefixed(without_module(key)), key))
        .collect();
    let found = names.filter_map(|name| {
        let candidates = beit_names(name)?;
        let mut found = candidates.iter().filter_map(|key| own.get(key));
        Some((name.to_owned(), (*found.next()?).to_owned()))
    });
    found.collect()
}

/// The sources of a tensor of EVE; the first that is there counts.
fn beit_names(name: &str) -> Option<Vec<String>> {
    let key = name.strip_prefix("backbone.")?;
    let Some(in_block) = key.strip_prefix("encoder.layers.") else {
        if let Some(part) = key.strip_prefix("norm.") {
            // The norm after pooling is the one that was trained last.
            return Some(
                ["fc_norm", "norm"]
                    .map(|norm| format!("transformer.{norm}.{part}"))
                    .into(),
            );
        }
        let (own, _) = OUTER.iter().find(|(_, of_eve)| *of_eve == key)?;
        return Some(vec![format!("transformer.{own}")]);
    };
    let (block, rest) = in_block.split_once('.')?;
    let (module, part) = rest.split_once('.').unwrap_or((rest, ""));
    let part = match module {
        "gamma_1" | "gamma_2" | "attn" | "norm1" => rest.to_owned(),
        "norm2_imag" | "norm2_text" | "norm2_vl" => format!("norm2.{part}"),
        "mlp_imag" | "mlp_text" => format!("mlp.{part}"),
        "mlp_moe" => {
            let expert = part.strip_prefix("moe.experts.experts.")?;
            format!("mlp.{}", expert.split_once('.')?.1)
        }
        _ => return None,
    };
    Some(vec![format!("transformer.blocks.{block}.{part}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_network_of_a_block_begins_as_the_one_that_it_has() {
        for (name, expected) in [
            (
                "encoder.layers.11.mlp_moe.moe.experts.experts.31.fc1.bias",
                "blocks.11.mlp.fc1.bias",
            ),
            (
                "encoder.layers.0.mlp_text.fc2.weight",
                "blocks.0.mlp.fc2.weight",
            ),
            (
                "encoder.layers.10.norm2_vl.weight",
                "blocks.10.norm2.weight",
            ),
            ("encoder.layers.3.attn.q_bias", "blocks.3.attn.q_bias"),
            ("encoder.layers.3.gamma_2", "blocks.3.gamma_2"),
            ("class_embedding_vision", "cls_token"),
            ("patch_embed.weight", "patch_embed.proj.weight"),
            ("norm.bias", "fc_norm.bias"),
        ] {
            let found = beit_names(&format!("backbone.{name}")).expect("there");
            assert_eq!(found[0], format!("transformer.{expected}"), "{name}");
        }
        for name in [
            "backbone.encoder.layers.10.mlp_moe.moe.gate.wg.weight",
            "backbone.encoder.layers.10.mlp_moe.moe.vision_embed",
            "backbone.word_embedding.weight",
            "backbone.pre_layrnorm.weight",
            "itm_head.weight",
        ] {
            assert_eq!(beit_names(name), None, "{name}");
        }
    }
}
