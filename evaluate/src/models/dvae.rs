//! The encoder of a discrete variational autoencoder: an image to tokens, one for every few pixels.
//!
//! Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", <https://arxiv.org/abs/2102.12092>,
//! section 2.1 and appendix A. Reference, whose names these are:
//! <https://github.com/openai/DALL-E>.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use merge::Checkpoint;
use merge::layouts::Generic;

use super::towers::sizes;
use crate::crossing;
use crate::nn::{Convolution, relu};
use crate::weights::Init;
use crate::{Error, Result, Weights};

/// The first parts of the encoder's keys in models that carry one, longest first; alone it has none.
const PREFIXES: [&str; 2] = ["d_vae.encoder.", "encoder."];

/// Four convolutions, each after a ReLU, beside a residual branch.
#[derive(Clone, Debug)]
struct Block {
    /// The convolution of the shortcut, if the number of channels changes.
    id_path: Option<Convolution>,
    res_path: Vec<Convolution>,
}

/// The encoder. Sizes are those of the checkpoint.
#[derive(Clone, Debug)]
pub struct Dvae {
    input: Convolution,
    /// The image is halved between groups.
    groups: Vec<Vec<Block>>,
    output: Convolution,
    vocabulary: usize,
    /// One by the square of the number of blocks.
    res_gain: f64,
}

fn convolution(weights: &Weights, name: &str) -> Result<Convolution> {
    let (w, b) = (format!("{name}.w"), format!("{name}.b"));
    let shape = weights.shape(&w);
    let &[outputs, inputs, height, width] =
        sizes::known(weights, "the size of a convolution", shape)?
    else {
        return Err(sizes::bad(weights, &format!("`{w}` is no convolution")));
    };
    if height != width || height.is_multiple_of(2) {
        let fault = format!("`{w}` has a kernel of {height} x {width}, which has no center");
        return Err(sizes::bad(weights, &fault));
    }
    let weight = weights.get(&w, &[outputs, inputs, height, width], Init::Zeros)?;
    let bias = weights.get(&b, &[outputs], Init::Zeros)?;
    Ok(Convolution::new(weight, bias)?)
}

impl Block {
    fn load(weights: &Weights, name: &str) -> Result<Self> {
        let id_path = format!("{name}.id_path");
        let conv = |index: usize| format!("{name}.res_path.conv_{}", index + 1);
        let n = sizes::count(weights, |index| format!("{}.w", conv(index)));
        Ok(Self {
            id_path: match weights.has(&format!("{id_path}.")) {
                true => Some(convolution(weights, &id_path)?),
                false => None,
            },
            res_path: (0..n)
                .map(|index| convolution(weights, &conv(index)))
                .collect::<Result<_>>()?,
        })
    }

    /// `id(x) + gain · res(x)`: `(b, inputs, h, w) -> (b, outputs, h, w)`.
    fn forward(&self, x: &Tensor, gain: f64) -> candle_core::Result<Tensor> {
        let mut branch = x.clone();
        for convolution in &self.res_path {
            branch = convolution.forward(&relu(&branch)?)?;
        }
        let branch = (branch * gain)?;
        match &self.id_path {
            Some(id_path) => id_path.forward(x)? + branch,
            None => x + branch,
        }
    }
}

impl Dvae {
    /// The tensors of a checkpoint under the names of this model: of an encoder alone, of an
    /// autoencoder, or of a model that carries one as `d_vae`.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn weights(checkpoint: Arc<Checkpoint>, device: &Device, dtype: DType) -> Result<Weights> {
        let has = |prefix: &str| checkpoint.get(&format!("{prefix}blocks.input.w")).is_some();
        let prefix = PREFIXES
            .into_iter()
            .find(|prefix| has(prefix))
            .unwrap_or("");
        let rename = |key: &str| match key.strip_prefix(prefix) {
            Some(rest) => rest.to_owned(),
            // Not to be taken for a part of the encoder.
            None => format!("other {key}"),
        };
        let layout = Generic::read(&checkpoint);
        Weights::new(Arc::clone(&checkpoint), &layout, rename, device, dtype)
    }

    /// Loads every part.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`](crate::ModelFault::UnknownSize) when it is no such encoder,
    /// [`ModelFault::BadSize`](crate::ModelFault::BadSize), and as [`Weights::get`].
    pub fn load(weights: &Weights) -> Result<Self> {
        let block =
            |group: usize, block: usize| format!("blocks.group_{}.block_{}", group + 1, block + 1);
        let input = convolution(weights, "blocks.input")?;
        let n_groups = sizes::count(weights, |group| {
            format!("{}.res_path.conv_1.w", block(group, 0))
        });
        let mut groups = Vec::with_capacity(n_groups);
        for group in 0..n_groups {
            let n_blocks = sizes::count(weights, |index| {
                format!("{}.res_path.conv_1.w", block(group, index))
            });
            let blocks = (0..n_blocks).map(|index| Block::load(weights, &block(group, index)));
            groups.push(blocks.collect::<Result<Vec<_>>>()?);
        }
        let output = convolution(weights, "blocks.output.conv")?;
        let n_blocks: usize = groups.iter().map(Vec::len).sum();
        let model = Self {
            vocabulary: output.channels()?.0,
            res_gain: 1.0 / (n_blocks.max(1) as f64).powi(2),
            input,
            groups,
            output,
        };
        model.check(weights)?;
        Ok(model)
    }

    /// Every convolution takes as many channels as the one before it gives.
    fn check(&self, weights: &Weights) -> Result<()> {
        let step = |at: &str, convolution: &Convolution, channels: usize| {
            let (outputs, inputs) = convolution.channels()?;
            match inputs == channels {
                true => Ok(outputs),
                false => {
                    let fault = format!("{at} takes {inputs} channels, but gets {channels}");
                    Err(sizes::bad(weights, &fault))
                }
            }
        };
        let mut channels = step("the input", &self.input, 3)?;
        for (group, blocks) in self.groups.iter().enumerate() {
            for (index, block) in blocks.iter().enumerate() {
                let name = format!("group {} block {}", group + 1, index + 1);
                let mut inside = channels;
                for convolution in &block.res_path {
                    inside = step(&name, convolution, inside)?;
                }
                if let Some(id_path) = &block.id_path {
                    channels = step(&name, id_path, channels)?;
                }
                if channels != inside {
                    let fault = format!("{name} adds {inside} channels to {channels}");
                    return Err(sizes::bad(weights, &fault));
                }
            }
        }
        step("the output", &self.output, channels).map(|_| ())
    }

    /// The number of tokens.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Side of the square of pixels that a token stands for.
    #[must_use]
    pub fn stride(&self) -> usize {
        1 << self.groups.len().saturating_sub(1)
    }

    /// Scores of all tokens: `(b, 3, s, s) -> (b, vocabulary, s / stride, s / stride)`, of pixels as
    /// `0.8 v / 255 + 0.1`.
    ///
    /// # Errors
    /// [`Error::ImageStride`] for a side that is no multiple of the [stride](Self::stride), and
    /// when the device fails.
    pub fn logits(&self, image: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = image.dims4()?;
        let stride = self.stride();
        if !height.is_multiple_of(stride) || !width.is_multiple_of(stride) {
            return Err(Error::ImageStride {
                found: image.dims().to_vec(),
                stride,
            });
        }
        let mut x = self.input.forward(image)?; // (b, c, s, s)
        for (index, blocks) in self.groups.iter().enumerate() {
            if index > 0 {
                x = x.max_pool2d(2)?;
            }
            for block in blocks {
                x = block.forward(&x, self.res_gain)?;
            }
        }
        Ok(self.output.forward(&relu(&x)?)?)
    }

    /// The most likely token of each place: `(b, 3, s, s) -> (b, s / stride, s / stride)`, `u32`.
    ///
    /// # Errors
    /// As [`logits`](Self::logits)', and [`Error::LogitNotANumber`]: a place with such a logit has no token.
    pub fn encode(&self, image: &Tensor) -> Result<Tensor> {
        let logits = self.logits(image)?.permute((0, 2, 3, 1))?.contiguous()?;
        let sums = logits.flatten_from(1)?.to_dtype(DType::F32)?.sum(1)?;
        let is_broken = |sum: &f32| sum.is_nan();
        if let Some(example) = crossing::to_memory::<f32>(&sums)?
            .iter()
            .position(is_broken)
        {
            return Err(Error::LogitNotANumber { example });
        }
        Ok(logits.argmax(D::Minus1)?)
    }
}
