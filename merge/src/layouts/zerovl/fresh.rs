//! The tensors of a ZeroVL checkpoint, from its sizes alone.

use crate::layouts::{ModelRecord, RecordFamily, TowerSizes};
use crate::synth::{Distribution, Fresh, FreshTensor, Spread};
use crate::{DType, ParamKind, Result, TensorInfo};

use super::table::{Axis, OUTER, POSITION_IDS, Parameter, Presence, STACKS};

/// Temperature of a fresh model that learns it, as in CLIP.
const FRESH_TEMPERATURE: f32 = 0.07;

/// Sizes of a ZeroVL to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZerovlSizes {
    /// The image tower.
    pub image: TowerSizes,
    /// The text tower.
    pub text: TowerSizes,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Size of the word-piece vocabulary.
    pub vocabulary: usize,
    /// Text positions.
    pub text_len: usize,
    /// Rows of the token type table.
    pub n_token_types: usize,
    /// Width of the joint space.
    pub joint_width: usize,
}

impl ZerovlSizes {
    /// The published size: ViT-B/16 at 224 px and BERT-base, joined in 512 dimensions.
    pub const BASE: Self = Self {
        image: TowerSizes::BASE,
        text: TowerSizes::BASE,
        patch_size: 16,
        image_size: 224,
        vocabulary: 30522,
        text_len: 512,
        n_token_types: 2,
        joint_width: 512,
    };

    /// Checks what a user may have typed.
    ///
    /// # Errors
    /// [`crate::Error::UnfitSizes`] for a size of zero, for one beyond any model (so that no number of elements
    /// overflows), and for sizes that contradict each other.
    pub fn check(&self) -> Result<()> {
        let others = [
            (self.vocabulary, 1 << 24),
            (self.text_len, 1 << 20),
            (self.n_token_types, 1 << 10),
            (self.joint_width, 1 << 18),
        ];
        TowerSizes::check(
            &[self.image, self.text],
            self.image_size,
            self.patch_size,
            &others,
        )
    }

    fn length(&self, axis: Axis) -> usize {
        match axis {
            Axis::Fixed(length) => length,
            Axis::Image(times) => times * self.image.width,
            Axis::ImageFfn => self.image.ffn_width,
            Axis::Patch => self.patch_size,
            Axis::ImageTokens => (self.image_size / self.patch_size).pow(2) + 1,
            Axis::Text => self.text.width,
            Axis::TextFfn => self.text.ffn_width,
            Axis::Vocabulary => self.vocabulary,
            Axis::TextPositions => self.text_len,
            Axis::TokenTypes => self.n_token_types,
            Axis::Joint => self.joint_width,
            // No fresh model has a probe.
            Axis::Classes => 0,
        }
    }
}

/// A ZeroVL to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZerovlSpec {
    /// Its sizes.
    pub sizes: ZerovlSizes,
    /// Whether it learns its temperature; a constant one is no part of a checkpoint.
    pub has_temperature: bool,
    /// Whether to write the buffer of text positions, which transformers up to 4.30 keeps.
    pub with_buffers: bool,
}

impl ZerovlSpec {
    fn holds(&self, parameter: &Parameter) -> bool {
        match parameter.presence {
            Presence::Always => true,
            Presence::LearnedTemperature => self.has_temperature,
            Presence::Foreign | Presence::Probed => false,
        }
    }

    fn tensor(&self, key: String, parameter: &Parameter, spread: Spread) -> FreshTensor {
        let deviation = spread.deviation;
        let (mean, deviation) = match parameter.kind {
            ParamKind::Scale => (FRESH_TEMPERATURE, 0.0),
            ParamKind::Norm if key.ends_with("weight") => (1.0, deviation),
            _ => (0.0, deviation),
        };
        FreshTensor {
            info: TensorInfo {
                dtype: DType::F32,
                shape: (parameter.shape.iter())
                    .map(|axis| self.sizes.length(*axis))
                    .collect(),
            },
            kind: parameter.kind,
            mean,
            deviation,
            distribution: Distribution::Normal,
            draw: key.clone(),
            seed: None,
            buffer: None,
            name: key,
        }
    }
}

impl Fresh for ZerovlSpec {
    fn check(&self) -> Result<()> {
        self.sizes.check()
    }

    fn tensors(&self, spread: Spread) -> Vec<FreshTensor> {
        let towers = [self.sizes.image, self.sizes.text];
        let mut tensors = Vec::new();
        for (blocks, tower) in STACKS.iter().zip(towers) {
            for index in 0..tower.n_blocks {
                for parameter in blocks.parameters {
                    let key = format!("{}{index}.{}", blocks.prefix, parameter.key);
                    tensors.push(self.tensor(key, parameter, spread));
                }
            }
        }
        for parameter in OUTER.iter().filter(|parameter| self.holds(parameter)) {
            tensors.push(self.tensor(parameter.key.to_owned(), parameter, spread));
        }
        if self.with_buffers {
            tensors.push(FreshTensor::buffer(
                POSITION_IDS.to_owned(),
                crate::layouts::Buffer {
                    info: TensorInfo {
                        dtype: DType::I64,
                        shape: vec![1, self.sizes.text_len],
                    },
                    values: (0..self.sizes.text_len as i64).collect(),
                },
            ));
        }
        tensors
    }

    fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Zerovl),
            image_heads: Some(self.sizes.image.n_heads),
            text_heads: Some(self.sizes.text.n_heads),
            ..ModelRecord::default()
        }
    }

    fn describe(&self) -> String {
        format!(
            "family: zerovl, temperature: {}, sizes: {:?}",
            self.has_temperature, self.sizes
        )
    }
}
