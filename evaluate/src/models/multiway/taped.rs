//! Blocks on a tape: forward without a graph, backward when their turn comes.

use candle_core::{Result, Tensor, Var};

use super::block::Kept;
use super::{Block, Segment};
use crate::nn::{Attended, Gradients, Mask, Pass, Recorded, Tape};

/// Runs a block and notes it on the tape.
pub(super) fn record(
    tape: &Tape,
    block: &Block,
    x: &Tensor,
    segments: &[Segment],
    attended: Attended<'_>,
    kept: Kept,
) -> Result<Tensor> {
    if !tape.keeps_inputs_alone() {
        return record_graph(tape, block, x, segments, attended, &kept);
    }
    let recomputed = Recomputed {
        block: block.clone(),
        x: x.detach(),
        segments: segments.to_vec(),
        bias: attended.bias.map(Tensor::detach),
        mask: attended.mask.cloned(),
        kept,
    };
    let output = recomputed.forward()?;
    let mut inputs = vec![x.clone()];
    inputs.extend(attended.bias.cloned());
    tape.record(inputs, &output, Box::new(recomputed))
}

/// A block that keeps its input alone.
struct Recomputed {
    block: Block,
    x: Tensor,
    segments: Vec<Segment>,
    bias: Option<Tensor>,
    mask: Option<Mask>,
    kept: Kept,
}

impl Recomputed {
    fn attended<'a>(&'a self, bias: Option<&'a Tensor>) -> Attended<'a> {
        Attended {
            bias,
            mask: self.mask.as_ref(),
        }
    }

    fn forward(&self) -> Result<Tensor> {
        let attended = self.attended(self.bias.as_ref());
        let block = self.block.detached();
        block.compute(&self.x, &self.segments, attended, &self.kept, &Pass::new())
    }
}

impl Recorded for Recomputed {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let x = Var::from_tensor(&self.x)?;
        let bias = self.bias.as_ref().map(Var::from_tensor).transpose()?;
        let attended = self.attended(bias.as_deref());
        let (segments, kept) = (&self.segments, &self.kept);
        let y = self
            .block
            .compute(&x, segments, attended, kept, &Pass::new())?;
        let found = (y * by_output)?.sum_all()?.backward()?;
        gradients.absorb(&found)?;
        let mut by_inputs = vec![found.get(&x).cloned()];
        by_inputs.extend(bias.map(|bias| found.get(&bias).cloned()));
        Ok(by_inputs)
    }
}

/// Runs a block with a graph of its own, which is kept until its turn comes.
fn record_graph(
    tape: &Tape,
    block: &Block,
    x: &Tensor,
    segments: &[Segment],
    attended: Attended<'_>,
    kept: &Kept,
) -> Result<Tensor> {
    let own_x = Var::from_tensor(&x.detach())?;
    let own_bias = attended.bias.map(|bias| Var::from_tensor(&bias.detach()));
    let own_bias = own_bias.transpose()?;
    let own = Attended {
        bias: own_bias.as_deref(),
        mask: attended.mask,
    };
    let output = block.compute(&own_x, segments, own, kept, &Pass::new())?;
    let mut inputs = vec![x.clone()];
    inputs.extend(attended.bias.cloned());
    let graph = Graph {
        x: own_x,
        bias: own_bias,
        output: output.clone(),
    };
    tape.record(inputs, &output, Box::new(graph))
}

/// A block that keeps its graph.
struct Graph {
    x: Var,
    bias: Option<Var>,
    output: Tensor,
}

impl Recorded for Graph {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let found = (&self.output * by_output)?.sum_all()?.backward()?;
        gradients.absorb(&found)?;
        let mut by_inputs = vec![found.get(&self.x).cloned()];
        by_inputs.extend(self.bias.map(|bias| found.get(&bias).cloned()));
        Ok(by_inputs)
    }
}
