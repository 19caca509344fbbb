//! The fused operations as parts of a candle graph.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::attention::{self, Added, Asked};
use super::sequences::{Sizes, Spans};
use super::slices::{self, Then};
use crate::nn::Activation;

/// The elements of a contiguous argument.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((first, end)) => Ok(&storage.as_slice::<f32>()?[first..end]),
        None => bail!("a fused operation needs contiguous arguments"),
    }
}

/// Calls `f` with the elements of contiguous tensors on the CPU.
pub fn with_slices<const N: usize, T>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> T,
) -> Result<T> {
    let contiguous = tensors.map(Tensor::contiguous);
    let mut owned = Vec::with_capacity(N);
    for tensor in contiguous {
        owned.push(tensor?);
    }
    let guards: Vec<_> = owned.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [&[][..]; N];
    for (out, (storage, layout)) in slices.iter_mut().zip(&guards) {
        match &**storage {
            candle_core::Storage::Cpu(storage) => *out = slice(storage, layout)?,
            _ => bail!("a fused operation needs tensors in the CPU's memory"),
        }
    }
    Ok(f(slices))
}

fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// `x Wᵀ + b` over the last axis; an empty bias adds nothing.
pub struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (n, k) = w_layout.shape().dims2()?;
        let (x, w, b) = (
            slice(x, x_layout)?,
            slice(w, w_layout)?,
            slice(b, b_layout)?,
        );
        let out = slices::linear(x, w, b, k, Then::Nothing);
        Ok((CpuStorage::F32(out), with_last(x_layout.shape(), n)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let (by_x, by_w, by_b) = with_slices([x, w, g], |[x_values, w_values, g]| {
            let by_x = x
                .track_op()
                .then(|| slices::linear_input_gradient(g, w_values, k));
            let by_w = w
                .track_op()
                .then(|| slices::linear_weight_gradient(g, x_values, n, k));
            let has_bias = b.track_op() && b.elem_count() > 0;
            (by_x, by_w, has_bias.then(|| slices::sum_rows(g, n)))
        })?;
        let shaped = |values: Option<Vec<f32>>, like| values.map(|v| tensor(v, like)).transpose();
        Ok((shaped(by_x, x)?, shaped(by_w, w)?, shaped(by_b, b)?))
    }
}

/// The shape with another last axis.
pub fn with_last(shape: &Shape, n: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = n;
    }
    dims.into()
}

/// LayerNorm over the last axis.
pub struct LayerNorm {
    pub epsilon: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
        b: &CpuStorage,
        b_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w, b) = (
            slice(x, x_layout)?,
            slice(w, w_layout)?,
            slice(b, b_layout)?,
        );
        let out = slices::layer_norm(x, w, b, self.epsilon);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (by_x, by_w, by_b) = with_slices([g, x, w], |[g, x, w]| {
            slices::layer_norm_gradients(g, x, w, self.epsilon)
        })?;
        Ok((
            Some(tensor(by_x, x)?),
            Some(tensor(by_w, w)?),
            Some(tensor(by_b, b)?),
        ))
    }
}

/// The function between the two layers of a feed-forward network.
pub struct Activate(pub Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = slices::activated(slice(x, layout)?, self.0);
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let by_x = with_slices([g, x], |[g, x]| slices::activation_gradient(g, x, self.0))?;
        Ok(Some(tensor(by_x, x)?))
    }
}

/// Attention: packed `qkv: (b, n, 3 d)`, bias `(h, n, n)` or empty, mask `(b, n)`, `(b, queries, n)` or empty.
pub struct Attention {
    pub heads: usize,
    /// The number of tokens that ask, from the first on. A gradient needs all to.
    pub queries: usize,
}

impl Attention {
    fn sizes(&self, qkv: &Shape) -> Result<Sizes<'static>> {
        let (batch, tokens, packed) = qkv.dims3()?;
        Ok(Sizes {
            batch,
            queries: Spans::Even(self.queries.min(tokens)),
            keys: Spans::Even(tokens),
            heads: self.heads,
            head_width: packed / 3 / self.heads,
        })
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
        mask: &CpuStorage,
        mask_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(qkv_layout.shape())?;
        let added = Added {
            bias: slice(bias, bias_layout)?,
            mask: slice(mask, mask_layout)?,
            keep: &[],
        };
        let asked = Asked::packed(slice(qkv, qkv_layout)?, sizes);
        let out = attention::forward(asked, added, sizes);
        let (batch, tokens, packed) = qkv_layout.shape().dims3()?;
        let shape = (batch, self.queries.min(tokens), packed / 3);
        Ok((CpuStorage::F32(out), shape.into()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        bias: &Tensor,
        mask: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(qkv.shape())?;
        if self.queries < qkv.dim(1)? {
            bail!("no gradient of attention where some tokens do not ask");
        }
        let (by_qkv, by_bias) = with_slices([g, qkv, bias, mask], |[g, qkv, bias, mask]| {
            let added = Added {
                bias,
                mask,
                keep: &[],
            };
            attention::gradients(g, qkv, added, sizes)
        })?;
        let by_bias = match bias.elem_count() {
            0 => None,
            _ => Some(tensor(by_bias, bias)?),
        };
        Ok((Some(tensor(by_qkv, qkv)?), by_bias, None))
    }
}

/// Attention of `q: (b, n, d)` to keys and values side by side, `(b, m, 2 d)`; mask `(b, m)`, `(b, n, m)` or
/// empty.
pub struct CrossAttention {
    pub heads: usize,
}

impl CrossAttention {
    fn sizes(&self, q: &Shape, kv: &Shape) -> Result<Sizes<'static>> {
        let (batch, queries, width) = q.dims3()?;
        Ok(Sizes {
            batch,
            queries: Spans::Even(queries),
            keys: Spans::Even(kv.dims3()?.1),
            heads: self.heads,
            head_width: width / self.heads,
        })
    }
}

impl CustomOp3 for CrossAttention {
    fn name(&self) -> &'static str {
        "cross_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        kv: &CpuStorage,
        kv_layout: &Layout,
        mask: &CpuStorage,
        mask_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = self.sizes(q_layout.shape(), kv_layout.shape())?;
        let added = Added {
            mask: slice(mask, mask_layout)?,
            ..Added::default()
        };
        let asked = Asked::apart(slice(q, q_layout)?, slice(kv, kv_layout)?, sizes);
        let out = attention::forward(asked, added, sizes);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        kv: &Tensor,
        mask: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = self.sizes(q.shape(), kv.shape())?;
        let (by_q, by_kv) = with_slices([g, q, kv, mask], |[g, q, kv, mask]| {
            let added = Added {
                mask,
                ..Added::default()
            };
            let (mut by_q, mut by_kv) = (vec![0.0; q.len()], vec![0.0; kv.len()]);
            let by = [&mut by_q[..], &mut by_kv[..]];
            attention::gradients_apart_into(by, g, [q, kv], added, sizes);
            (by_q, by_kv)
        })?;
        Ok((Some(tensor(by_q, q)?), Some(tensor(by_kv, kv)?), None))
    }
}
