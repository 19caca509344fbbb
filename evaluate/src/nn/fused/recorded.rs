//! A block that runs on slices, on a tape.

use candle_core::{Result, Shape, Tensor};

use crate::nn::cpu::host::host_values;
use crate::nn::cpu::pool::in_pool;
use crate::nn::{Buffers, Gradients, Recorded, Tape};

/// A block whose forward and backward passes are scheduled by hand.
pub(crate) trait OnSlices: Send + Sync {
    /// The values that the backward pass needs, and those that would cost a product to compute again.
    type Inside: Send;

    /// The shape of the output for an input: the same, unless a block computes fewer tokens.
    fn shape(&self, x: &Tensor) -> Shape {
        x.shape().clone()
    }

    /// `x: (b, n, d)` to `out`, of [`OnSlices::shape`].
    ///
    /// # Errors
    /// When shapes do not fit.
    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Self::Inside>;

    /// Turns `g`, the gradient by the output, into the one by `x`, and adds those by the
    /// weights to `gradients`. Returns the gradients by the inputs beside `x`, in their order.
    ///
    /// # Errors
    /// When shapes do not fit.
    fn backward(
        &self,
        x: &Tensor,
        g: &mut Vec<f32>,
        inside: Self::Inside,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// A block that has run, and what its backward pass needs.
struct Run<B: OnSlices> {
    block: B,
    x: Tensor,
    buffers: Buffers,
    /// Computed again where it is missing.
    inside: Option<B::Inside>,
}

/// Runs a block on slices and notes it on the tape. `beside` are inputs other than `x`.
///
/// # Errors
/// When shapes do not fit.
pub(crate) fn record_on_slices<B: OnSlices + 'static>(
    tape: &Tape,
    block: B,
    x: &Tensor,
    beside: Option<&Tensor>,
) -> Result<Tensor> {
    let mut run = Run {
        block,
        x: x.detach().contiguous()?,
        buffers: tape.buffers().clone(),
        inside: None,
    };
    let shape = run.block.shape(x);
    let mut out = vec![0.0; shape.elem_count()];
    let inside = in_pool(|| run.block.forward(&run.x, &mut out, &run.buffers))?;
    run.inside = (!tape.keeps_inputs_alone()).then_some(inside);
    let inputs = std::iter::once(x).chain(beside).cloned().collect();
    tape.record_values(inputs, out, &shape, Box::new(run))
}

impl<B: OnSlices> Recorded for Run<B> {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        in_pool(|| {
            let Self {
                block,
                x,
                buffers,
                inside,
            } = *self;
            let mut g = host_values(by_output)?;
            let inside = match inside {
                Some(inside) => inside,
                None => block.forward(&x, &mut buffers.take(g.len()), &buffers)?,
            };
            let others = block.backward(&x, &mut g, inside, gradients, &buffers)?;
            let by_x = Tensor::from_vec(g, x.shape(), x.device())?;
            Ok(std::iter::once(Some(by_x)).chain(others).collect())
        })
    }
}
