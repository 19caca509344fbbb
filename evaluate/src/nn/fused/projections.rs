//! Linear layers of one input, their outputs side by side: queries, keys and values.

use candle_core::{Result, Tensor};
use faer::Accum;

use crate::nn::cpu::gemm::{Matrix, product};
use crate::nn::cpu::host::{Host, host_values};
use crate::nn::cpu::pool::in_pool;
use crate::nn::cpu::{slices, weight_gradient as by_weight};
use crate::nn::{Buffer, Buffers, Gradients, Linear, Recorded, Tape};

/// `x: (m, d)` through `N` layers into `out: (m, N n)`.
pub(super) fn project<const N: usize>(
    out: &mut [f32],
    x: &[f32],
    linear: [&Linear; N],
    width: usize,
) -> Result<()> {
    let mut hosts = Vec::with_capacity(N);
    for linear in linear {
        hosts.push((Host::of(linear.weight())?, Host::of(linear.bias())?));
    }
    let (mut weights, mut biases) = ([&[][..]; N], [&[][..]; N]);
    for (at, (weight, bias)) in hosts.iter().enumerate() {
        (weights[at], biases[at]) = (weight.values(), bias.values());
    }
    slices::linear_side_by_side_into(out, x, weights, biases, width);
    Ok(())
}

/// Adds the gradients of the layers from `by_out: (m, N n)`, and adds the one by `x` to `by_x`.
pub(super) fn projections_backward<const N: usize>(
    mut by_x: Option<&mut [f32]>,
    by_out: &[f32],
    x: &[f32],
    linear: [&Linear; N],
    gradients: &mut Gradients,
    buffers: &Buffers,
) -> Result<()> {
    let (n, k) = linear[0].weight().dims2()?;
    let rows = x.len() / k;
    let mut g_t = buffers.take(by_out.len()); // (N n, m)
    by_weight::transpose(&mut g_t, by_out, N * n, 0..N * n, None);
    for (which, linear) in linear.into_iter().enumerate() {
        let g_t = &g_t[which * rows * n..][..rows * n];
        if let Some((sum, accum)) = gradients.sum(linear.weight()) {
            by_weight::weight(sum, g_t, x, n, accum);
        }
        gradients.add_values(linear.bias(), &by_weight::bias(g_t, n));
        let Some(by_x) = by_x.as_deref_mut() else {
            continue;
        };
        let weight = Host::of(linear.weight())?;
        let weight = Matrix::packed(weight.values(), n, k).view();
        let by_projection = Matrix {
            data: &by_out[which * n..],
            rows,
            columns: n,
            stride: N * n,
        };
        product(by_x, by_projection.view(), weight, Accum::Add);
    }
    Ok(())
}

/// `x: (m, d)` through layers side by side, `(m, N o)`.
///
/// # Errors
/// When a tensor is not in the CPU's memory.
pub(crate) fn project_rows<const N: usize>(
    x: &[f32],
    linear: [&Linear; N],
    buffers: &Buffers,
) -> Result<Buffer> {
    let (outputs, width) = linear[0].weight().dims2()?;
    let mut out = buffers.take(x.len() / width * N * outputs);
    project(&mut out, x, linear, width)?;
    Ok(out)
}

/// Projections of `x: (b, n, d)` side by side, `(b, n, N o)`, without a graph.
///
/// # Errors
/// When shapes do not fit, or a tensor is not in the CPU's memory.
pub(crate) fn side_by_side<const N: usize>(x: &Tensor, linear: [&Linear; N]) -> Result<Tensor> {
    let (b, n, width) = x.dims3()?;
    let x = x.contiguous()?;
    let outputs = N * linear[0].weight().dim(0)?;
    let mut out = vec![0.0; b * n * outputs];
    project(&mut out, Host::of(&x)?.values(), linear, width)?;
    Tensor::from_vec(out, (b, n, outputs), x.device())
}

/// [`side_by_side`] as a segment of a tape.
///
/// # Errors
/// As [`side_by_side`].
pub(crate) fn record_projections<const N: usize>(
    tape: &Tape,
    x: &Tensor,
    linear: [&Linear; N],
) -> Result<Tensor> {
    let own = x.detach().contiguous()?;
    let out = in_pool(|| side_by_side(&own, linear))?;
    let segment = Projections {
        linear: linear.map(Linear::clone),
        x: own,
        wants_input: x.track_op(),
        buffers: tape.buffers().clone(),
    };
    tape.record(vec![x.clone()], &out, Box::new(segment))
}

/// Layers that have run.
struct Projections<const N: usize> {
    linear: [Linear; N],
    x: Tensor,
    /// Whether anybody asks for the gradient by `x`.
    wants_input: bool,
    buffers: Buffers,
}

impl<const N: usize> Recorded for Projections<N> {
    fn backward(
        self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        in_pool(|| {
            let by_out = host_values(by_output)?;
            let mut by_x = vec![
                0.0;
                if self.wants_input {
                    self.x.elem_count()
                } else {
                    0
                }
            ];
            let x = Host::of(&self.x)?;
            projections_backward(
                self.wants_input.then_some(&mut by_x[..]),
                &by_out,
                x.values(),
                self.linear.each_ref(),
                gradients,
                &self.buffers,
            )?;
            Ok(vec![match self.wants_input {
                true => Some(Tensor::from_vec(by_x, self.x.shape(), self.x.device())?),
                false => None,
            }])
        })
    }
}
