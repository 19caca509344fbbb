//! A multiway block whose two branches are scheduled by hand.

use candle_core::Result;

use super::block::Kept;
use super::{Block, Segment};
use crate::nn::{Bias, Network, PreNormBlock};

/// A block on slices; `None` without a segment.
pub(super) fn on_slices(
    block: &Block,
    segments: &[Segment],
    attended: Bias<'_>,
    kept: &Kept,
) -> Result<Option<PreNormBlock>> {
    let Some(first) = segments.first() else {
        return Ok(None);
    };
    let norms = segments
        .iter()
        .map(|segment| Ok((block.norm1(segment.expert)?.clone(), segment.len)));
    let networks = segments.iter().enumerate().map(|(index, segment)| {
        Ok(Network {
            norm: block.norm2(segment.expert)?.clone(),
            mlp: block.mlp(segment.expert)?.clone(),
            len: segment.len,
            keep: kept.mlp(index).cloned(),
        })
    });
    Ok(Some(PreNormBlock {
        norms: norms.collect::<Result<_>>()?,
        attention: block.attention(first.expert)?.packed(),
        scale: block.gamma_1().cloned(),
        keep: kept.attn().cloned(),
        networks: networks.collect::<Result<_>>()?,
        network_scale: block.gamma_2().cloned(),
        pairs: attended.pairs.cloned(),
        mask: attended.mask.cloned(),
        picked: None,
    }))
}
