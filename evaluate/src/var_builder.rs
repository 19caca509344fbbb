//! Weights for models of candle-nn and candle-transformers.
//!
//! [`Weights::var_builder`] stands where such a model expects a `VarBuilder` of a safetensors file: the
//! tensors then come from any checkpoint that [`merge::io`] opens (`.safetensors`, shards, `.pth`, a hub
//! address) or from a merge in memory. `examples/candle_clip.rs` loads a CLIP so.

use std::sync::Arc;

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use candle_nn::var_builder::SimpleBackend;

use crate::Weights;
use crate::weights::Init;

/// Serves tensors by name, and notes in the weights which were asked for.
struct Backend(Arc<Weights>);

impl Weights {
    /// A builder for models of candle-nn. Tensors keep the names that these weights have; prefixes and
    /// casts are the builder's. [`Weights::report`] tells afterwards what the model did not ask for.
    ///
    /// Weights that are [`trainable`](Weights::trainable) stay variables, so candle's models can be
    /// trained as ours are.
    #[must_use]
    pub fn var_builder(self: &Arc<Self>) -> VarBuilder<'static> {
        let (dtype, device) = (self.dtype(), self.device().clone());
        VarBuilder::from_backend(Box::new(Backend(Arc::clone(self))), dtype, device)
    }
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let init = match init {
            candle_nn::Init::Const(0.0) => Init::Zeros,
            candle_nn::Init::Const(1.0) => Init::Ones,
            candle_nn::Init::Const(value) => Init::Constant(value as f32),
            candle_nn::Init::Randn { mean: 0.0, stdev } => Init::Normal(stdev as f32),
            // Tensors that are there need none; ours draw no others.
            _ if self.0.shape(name).is_some() => Init::Zeros,
            other => {
                let what =
                    format!("`{name}` would start fresh from {other:?}, which is not supported");
                return Err(Error::Msg(what));
            }
        };
        let tensor = self.0.get(name, shape.dims(), init).map_err(Error::wrap)?;
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.0.shape(name).map(<[usize]>::to_vec);
        // Without a shape, the error of `get` names the nearest name.
        let shape = shape.unwrap_or_default();
        self.get(
            shape.into(),
            name,
            candle_nn::Init::Const(0.0),
            dtype,
            device,
        )
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.shape(name).is_some()
    }
}
