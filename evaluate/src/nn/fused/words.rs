//! A head of words on a tape: the gradient of its largest weight goes to the sum at once.

use candle_core::{Result, Tensor};

use super::{fits_slices, input_gradient, norm_backward, norm_into, output, weight_gradient};
use crate::nn::cpu::host::{Host, host_values};
use crate::nn::cpu::pool::in_pool;
use crate::nn::cpu::slices;
use crate::nn::{Activation, Buffer, Buffers, Gradients, LayerNorm, Linear, Recorded, Tape};

/// `decoder(norm(gelu(dense(x))))`, one of many classes for each row.
#[derive(Clone, Debug)]
pub(crate) struct WordHead {
    pub dense: Linear,
    pub norm: LayerNorm,
    pub decoder: Linear,
}

impl WordHead {
    /// Whether the head can run on slices.
    pub fn fits(&self, tape: &Tape, x: &Tensor) -> bool {
        let linear = [&self.dense, &self.decoder].into_iter();
        let weights = linear.flat_map(Linear::weights).chain(self.norm.weights());
        fits_slices(tape, x, weights)
    }

    /// `x: (.., d) -> (.., classes)` as a segment of a tape.
    ///
    /// # Errors
    /// When shapes do not fit.
    pub fn record(&self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        let own = x.detach().contiguous()?;
        let (classes, width) = self.decoder.weight().dims2()?;
        let mut shape = x.dims().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = classes;
        }
        let buffers = tape.buffers().clone();
        let n_rows = own.elem_count() / width;
        let mut logits = vec![0.0; n_rows * classes];
        let before = in_pool(|| self.forward(&own, &mut logits, &buffers))?;
        let run = Run {
            head: self.clone(),
            x: own,
            before,
            buffers,
        };
        tape.record_values(vec![x.clone()], logits, &shape.into(), Box::new(run))
    }

    /// Gives what stands before GELU.
    fn forward(&self, x: &Tensor, logits: &mut [f32], buffers: &Buffers) -> Result<Buffer> {
        let before = output(&self.dense, Host::of(x)?.values(), buffers)?;
        let normed = self.normed(&self.active(&before, buffers), buffers)?;
        let decoder = &self.decoder;
        let (weight, bias) = (Host::of(decoder.weight())?, Host::of(decoder.bias())?);
        let (width, then) = (decoder.weight().dim(1)?, slices::Then::Nothing);
        slices::linear_into(logits, &normed, weight.values(), bias.values(), width, then);
        Ok(before)
    }

    fn active(&self, before: &[f32], buffers: &Buffers) -> Buffer {
        let mut active = buffers.take(before.len());
        slices::activate_into(&mut active, before, Activation::Gelu);
        active
    }

    fn normed(&self, active: &[f32], buffers: &Buffers) -> Result<Buffer> {
        let mut normed = buffers.take(active.len());
        norm_into(&mut normed, active, &self.norm)?;
        Ok(normed)
    }
}

/// A head that has run.
struct Run {
    head: WordHead,
    x: Tensor,
    /// Before GELU.
    before: Buffer,
    buffers: Buffers,
}

impl Recorded for Run {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        in_pool(|| {
            let Self {
                head,
                x,
                mut before,
                buffers,
            } = *self;
            let active = head.active(&before, &buffers);
            let by_normed = {
                let g = host_values(by_output)?;
                let normed = head.normed(&active, &buffers)?;
                let weight = head.decoder.weight();
                let by_bias = weight_gradient(weight, &g, &normed, gradients, &buffers)?;
                gradients.add_values(head.decoder.bias(), &by_bias);
                input_gradient(&head.decoder, &g, &buffers)?
            };
            let mut by_active = buffers.take(active.len());
            by_active.fill(0.0);
            norm_backward(&mut by_active, &by_normed, &active, &head.norm, gradients)?;
            slices::activate_backward_in_place(&mut by_active, &mut before, Activation::Gelu);
            let (weight, input) = (head.dense.weight(), Host::of(&x)?);
            let by_bias = weight_gradient(weight, &by_active, input.values(), gradients, &buffers)?;
            gradients.add_values(head.dense.bias(), &by_bias);
            let by_x = input_gradient(&head.dense, &by_active, &buffers)?.to_vec();
            Ok(vec![Some(Tensor::from_vec(by_x, x.shape(), x.device())?)])
        })
    }
}
