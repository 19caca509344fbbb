//! Blocks on a tape as graphs of candle's operations: the reference, and the form for other devices
//! and dtypes.

use candle_core::{Result, Tensor};

use super::block::Kept;
use super::{Block, Segment};
use crate::nn::{Bias, Pass, Tape};

/// Runs a block and notes it on the tape.
pub(super) fn record(
    tape: &Tape,
    block: &Block,
    x: &Tensor,
    segments: &[Segment],
    attended: Bias<'_>,
    kept: Kept,
) -> Result<Tensor> {
    let mut inputs = vec![x.clone()];
    inputs.extend(attended.pairs.cloned());
    let (block, segments, mask) = (block.clone(), segments.to_vec(), attended.mask.cloned());
    tape.segment(inputs, move |inputs| {
        let attended = Bias {
            pairs: inputs.get(1),
            mask: mask.as_ref(),
        };
        block.compute(&inputs[0], &segments, attended, &kept, &Pass::new())
    })
}
