//! The second half of a block, for the tokens of one expert.

use candle_core::{Result, Tensor};

use super::outlet::Outlet;
use super::{input_gradient, norm_backward, norm_into, output, weight_gradient};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::slices::{self, Keep, Then};
use crate::nn::{Buffer, Buffers, Gradients, LayerNorm, Mlp};

/// `x + keep scale ∘ fc2(gelu(fc1(norm(x))))`.
#[derive(Clone, Copy)]
pub(crate) struct FfnBranch<'a> {
    pub norm: &'a LayerNorm,
    pub mlp: &'a Mlp,
    /// LayerScale's factors per channel.
    pub scale: Option<&'a Tensor>,
    /// Drop path's factors per sequence.
    pub keep: Option<Keep<'a>>,
}

impl<'a> FfnBranch<'a> {
    fn outlet(&self) -> Outlet<'a> {
        Outlet {
            linear: self.mlp.fc2(),
            scale: self.scale,
            keep: self.keep,
        }
    }

    /// `x: (m, d)` to `out: (m, d)`. Gives what the backward pass wants: the FFN before GELU.
    pub fn forward(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<Buffer> {
        let before = {
            let mut normed = buffers.take(x.len());
            norm_into(&mut normed, x, self.norm)?;
            output(self.mlp.fc1(), &normed, buffers)? // (m, f)
        };
        let mut after = buffers.take(before.len());
        slices::activate_into(&mut after, &before, self.mlp.activation());
        self.outlet().forward(out, &after, x)?;
        Ok(before)
    }

    /// [`FfnBranch::forward`] where nobody goes back.
    pub fn forward_alone(&self, out: &mut [f32], x: &[f32], buffers: &Buffers) -> Result<()> {
        let fc1 = self.mlp.fc1();
        let (inner, width) = fc1.weight().dims2()?;
        let mut after = buffers.take(x.len() / width * inner); // (m, f)
        {
            let mut normed = buffers.take(x.len());
            norm_into(&mut normed, x, self.norm)?;
            let (weight, bias) = (Host::of(fc1.weight())?, Host::of(fc1.bias())?);
            let then = Then::Activate(self.mlp.activation());
            slices::linear_into(
                &mut after,
                &normed,
                weight.values(),
                bias.values(),
                width,
                then,
            );
        }
        self.outlet().forward(out, &after, x)
    }

    /// Turns `g: (m, d)`, the gradient by the output, into the one by `x`.
    pub fn backward(
        &self,
        g: &mut [f32],
        x: &[f32],
        before: Buffer,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<()> {
        let outlet = self.outlet();
        let mut by_inner = outlet.input_gradient(g, buffers)?; // (m, f)
        let mut after = before;
        slices::activate_backward_in_place(&mut by_inner, &mut after, self.mlp.activation());
        outlet.parameter_gradients(g, &after, gradients, buffers)?;
        drop(after);
        let fc1 = self.mlp.fc1();
        {
            let mut normed = buffers.take(x.len());
            norm_into(&mut normed, x, self.norm)?;
            let by_bias = weight_gradient(fc1.weight(), &by_inner, &normed, gradients, buffers)?;
            gradients.add_values(fc1.bias(), &by_bias);
        }
        let by_normed = input_gradient(fc1, &by_inner, buffers)?;
        norm_backward(g, &by_normed, x, self.norm, gradients)
    }
}
