//! Gradients segment by segment, instead of one graph of everything.
//!
//! A pass that is [recorded](super::Pass::recorded) runs each block without a graph and notes what
//! its backward pass needs. [`Tape::backward`] then goes through the blocks from the last to the
//! first, and what a block has kept is freed as soon as its gradients are known. A block may keep
//! just its input and compute the rest again (Chen et al. 2016, "Training Deep Nets with Sublinear
//! Memory Cost", <https://arxiv.org/abs/1604.06174>), or what its fused backward kernel wants.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Shape, Tensor, TensorId, Var};

use super::{Buffers, Gradients};

/// A segment of a pass, ready to go backward once.
pub trait Recorded {
    /// Gradients by the inputs (in their order; `None` where there is none), from the gradient by
    /// the output; those by parameters are added to `gradients`.
    ///
    /// # Errors
    /// When the device fails.
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// The records of segments, in the order in which they ran.
#[derive(Default)]
pub struct Tape {
    records: RefCell<Vec<Record>>,
    keeps_inputs_alone: bool,
    keeps_graphs: bool,
    buffers: Buffers,
}

struct Record {
    /// As the segment was given them, with the graphs behind them.
    inputs: Vec<Tensor>,
    output: Var,
    segment: Box<dyn Recorded>,
}

/// Gradients by outputs of segments, until the segment's turn comes.
#[derive(Default)]
struct Pending(HashMap<TensorId, Option<Tensor>>);

impl Pending {
    fn add(&mut self, id: TensorId, gradient: &Tensor) -> Result<()> {
        if let Some(sum) = self.0.get_mut(&id) {
            *sum = Some(match sum.take() {
                Some(sum) => (sum + gradient)?,
                None => gradient.clone(),
            });
        }
        Ok(())
    }

    fn absorb(&mut self, found: &GradStore) -> Result<()> {
        let ids: Vec<TensorId> = self.0.keys().copied().collect();
        for id in ids {
            if let Some(gradient) = found.get_id(id) {
                self.add(id, gradient)?;
            }
        }
        Ok(())
    }
}

impl Tape {
    /// A tape whose segments keep what their backward pass wants.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A tape whose segments keep their inputs alone and compute the rest again: a third more
    /// work, a fraction of the memory.
    #[must_use]
    pub fn checkpointing() -> Self {
        Self {
            keeps_inputs_alone: true,
            ..Self::default()
        }
    }

    /// The tape with segments as graphs of candle's operations, even where they could run on
    /// slices: the reference.
    #[must_use]
    pub fn of_graphs(self) -> Self {
        Self {
            keeps_graphs: true,
            ..self
        }
    }

    /// Whether segments may run on slices.
    #[must_use]
    pub fn fuses(&self) -> bool {
        !self.keeps_graphs
    }

    /// The tape with memory that is used again, from step to step if it is that of the tape before.
    #[must_use]
    pub fn reusing(self, buffers: &Buffers) -> Self {
        Self {
            buffers: buffers.clone(),
            ..self
        }
    }

    /// The memory that is used again.
    pub(crate) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Whether segments keep their inputs alone.
    #[must_use]
    pub fn keeps_inputs_alone(&self) -> bool {
        self.keeps_inputs_alone
    }

    /// Notes a segment that has run: `output` is cut from whatever made it, and stands for it in
    /// everything that follows.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record(
        &self,
        inputs: Vec<Tensor>,
        output: &Tensor,
        segment: Box<dyn Recorded>,
    ) -> Result<Tensor> {
        let output = Var::from_tensor(&output.detach())?;
        Ok(self.note(inputs, output, segment))
    }

    /// Runs any part of a pass as a segment: `f` computes the output from its inputs, of candle's
    /// operations, and gives the same whenever it is called with the same inputs, so whatever it
    /// draws must not change. A tape that keeps inputs alone calls it again in the backward pass;
    /// another one keeps the graph that `f` made.
    ///
    /// # Errors
    /// As `f`, or when the device fails.
    pub fn segment(
        &self,
        inputs: Vec<Tensor>,
        f: impl Fn(&[Tensor]) -> Result<Tensor> + 'static,
    ) -> Result<Tensor> {
        let own: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
        if self.keeps_inputs_alone {
            // The graph behind the output, of the weights, ends here.
            let output = f(&own)?.detach();
            return self.record(inputs, &output, Box::new(Recomputed { inputs: own, f }));
        }
        let own = variables(&own)?;
        let output = f(&own)?;
        let graph = Graph {
            inputs: own,
            output: output.clone(),
        };
        self.record(inputs, &output, Box::new(graph))
    }

    /// [`Tape::record`] of a segment that has put out values on the CPU, without a copy of them.
    pub(crate) fn record_values(
        &self,
        inputs: Vec<Tensor>,
        values: Vec<f32>,
        shape: &Shape,
        segment: Box<dyn Recorded>,
    ) -> Result<Tensor> {
        let output = Var::from_vec(values, shape, &Device::Cpu)?;
        Ok(self.note(inputs, output, segment))
    }

    fn note(&self, inputs: Vec<Tensor>, output: Var, segment: Box<dyn Recorded>) -> Tensor {
        let tensor = output.as_tensor().clone();
        self.records.borrow_mut().push(Record {
            inputs,
            output,
            segment,
        });
        tensor
    }

    /// Adds the gradients of `loss`, a scalar made of recorded passes, to `gradients`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn backward(self, loss: &Tensor, gradients: &mut Gradients) -> Result<()> {
        let mut records = self.records.into_inner();
        let mut pending = Pending::default();
        for record in &records {
            pending.0.insert(record.output.id(), None);
        }
        let found = loss.backward()?;
        gradients.absorb(&found)?;
        pending.absorb(&found)?;
        drop(found);
        while let Some(record) = records.pop() {
            let Some(Some(by_output)) = pending.0.remove(&record.output.id()) else {
                continue;
            };
            let by_inputs = record.segment.backward(&by_output, gradients)?;
            for (input, by_input) in record.inputs.iter().zip(by_inputs) {
                let Some(by_input) = by_input else { continue };
                if input.is_variable() {
                    gradients.add(input, &by_input)?;
                    pending.add(input.id(), &by_input)?;
                } else if input.track_op() {
                    // On through the graph that made the input, as far as the segment before.
                    let found = (input * by_input.detach())?.sum_all()?.backward()?;
                    gradients.absorb(&found)?;
                    pending.absorb(&found)?;
                }
            }
        }
        Ok(())
    }
}

fn variables(tensors: &[Tensor]) -> Result<Vec<Tensor>> {
    let variable = |tensor| Ok(Var::from_tensor(tensor)?.as_tensor().clone());
    tensors.iter().map(variable).collect()
}

/// A segment that keeps its inputs alone.
struct Recomputed<F> {
    inputs: Vec<Tensor>,
    f: F,
}

impl<F: Fn(&[Tensor]) -> Result<Tensor>> Recorded for Recomputed<F> {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs = variables(&self.inputs)?;
        let output = (self.f)(&inputs)?;
        Box::new(Graph { inputs, output }).backward(by_output, gradients)
    }
}

/// A segment that keeps its graph.
struct Graph {
    inputs: Vec<Tensor>,
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
        let by_inputs = self.inputs.iter().map(|input| found.get(input).cloned());
        Ok(by_inputs.collect())
    }
}
