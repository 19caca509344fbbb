//! Fused operations on the CPU in f32, with their gradients.
//!
//! Computations that candle composes from many tensors are one pass over memory here: a linear layer with bias
//! and the function after it, LayerNorm, exact GELU, attention from packed queries, keys and values.
//! [`slices`] holds the arithmetic on plain slices, [`ops`] what makes it part of a graph. Sums
//! are split by the shape alone, never by the number of threads, so results do not depend on it.

pub(super) mod attention;
pub(super) mod buffers;
pub(super) mod cross_entropy;
pub(super) mod gemm;
pub(super) mod host;
pub(super) mod math;
pub(super) mod ops;
mod pages;
pub(super) mod pool;
pub(super) mod sequences;
pub(super) mod slices;
pub(super) mod weight_gradient;

use candle_core::{DType, Tensor};

/// Whether a tensor is one that these operations take.
pub(crate) fn takes(tensor: &Tensor) -> bool {
    tensor.device().is_cpu() && tensor.dtype() == DType::F32
}
