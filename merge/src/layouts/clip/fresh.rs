//! The tensors of a CLIP or a SigLIP, from its sizes alone.

use crate::layouts::{GivenTwoTowers, ModelRecord, RecordFamily, TowerSizes};
use crate::synth::{Distribution, Fresh, FreshTensor, Spread};
use crate::{DType, Error, ParamKind, Result, TensorInfo};

use super::facts::{ClipActivation, ClipFacts, ClipLibrary, ClipResize, PooledText};
use super::spelling::{ClipSpelling, Place};
use super::table::{Axis, BIAS, GROUPS, Name, Tower};

/// The first value of a fresh model's scale of similarities: the logarithm of 1 / 0.07, and that of 10 in a SigLIP.
const FRESH_SCALE: [f32; 2] = [2.6592, std::f32::consts::LN_10];

/// The first value of a fresh SigLIP's bias of similarities.
const FRESH_BIAS: f32 = -10.0;

/// Sizes of a CLIP or a SigLIP to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSizes {
    /// The image tower.
    pub image: TowerSizes,
    /// The text tower.
    pub text: TowerSizes,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Side of the image in pixels.
    pub image_size: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Text positions.
    pub text_len: usize,
    /// Width of the joint space.
    pub joint_width: usize,
}

impl ClipSizes {
    /// CLIP's ViT-B/32.
    pub const BASE: Self = Self {
        image: TowerSizes::BASE,
        text: TowerSizes {
            n_blocks: 12,
            width: 512,
            n_heads: 8,
            ffn_width: 2048,
        },
        patch_size: 32,
        image_size: 224,
        vocabulary: 49408,
        text_len: 77,
        joint_width: 512,
    };

    /// CLIP's ViT-L/14.
    pub const LARGE: Self = Self {
        image: TowerSizes {
            n_blocks: 24,
            width: 1024,
            n_heads: 16,
            ffn_width: 4096,
        },
        text: TowerSizes::BASE,
        patch_size: 14,
        joint_width: 768,
        ..Self::BASE
    };

    /// SigLIP's ViT-B/16.
    pub const SIGLIP_BASE: Self = Self {
        text: TowerSizes::BASE,
        patch_size: 16,
        vocabulary: 32000,
        text_len: 64,
        joint_width: 768,
        ..Self::BASE
    };

    /// SigLIP's ViT-L/16, for images of 256 pixels.
    pub const SIGLIP_LARGE: Self = Self {
        image: Self::LARGE.image,
        text: Self::LARGE.image,
        image_size: 256,
        joint_width: 1024,
        ..Self::SIGLIP_BASE
    };
}

/// A CLIP or a SigLIP to be written, in Hugging Face's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipSpec {
    /// Its sizes.
    pub sizes: ClipSizes,
    /// Whether it is a SigLIP.
    pub is_siglip: bool,
}

impl ClipSizes {
    /// These sizes with those that are given.
    #[must_use]
    pub fn with(self, given: &GivenTwoTowers) -> Self {
        Self {
            image: self.image.with(&given.image),
            text: self.text.with(&given.text),
            patch_size: given.patch_size.unwrap_or(self.patch_size),
            image_size: given.image_size.unwrap_or(self.image_size),
            vocabulary: given.vocabulary.unwrap_or(self.vocabulary),
            text_len: given.text_len.unwrap_or(self.text_len),
            joint_width: given.joint_width.unwrap_or(self.joint_width),
        }
    }
}

impl ClipSpec {
    /// A CLIP or a SigLIP of a published size, the base one or the large one, with the sizes that are given. The joint
    /// space of a SigLIP is as wide as its image tower.
    #[must_use]
    pub fn published(is_siglip: bool, is_large: bool, given: &GivenTwoTowers) -> Self {
        let published = match (is_siglip, is_large) {
            (false, false) => ClipSizes::BASE,
            (false, true) => ClipSizes::LARGE,
            (true, false) => ClipSizes::SIGLIP_BASE,
            (true, true) => ClipSizes::SIGLIP_LARGE,
        };
        let mut sizes = published.with(given);
        if is_siglip && given.joint_width.is_none() {
            sizes.joint_width = sizes.image.width;
        }
        Self { sizes, is_siglip }
    }

    fn tower(&self, tower: Tower) -> TowerSizes {
        match tower {
            Tower::Image => self.sizes.image,
            Tower::Text | Tower::Both => self.sizes.text,
        }
    }

    fn length(&self, tower: Tower, axis: Axis) -> usize {
        let patches = (self.sizes.image_size / self.sizes.patch_size).pow(2);
        match (axis, tower) {
            (Axis::Fixed(length), _) => length,
            (Axis::Width, tower) => self.tower(tower).width,
            (Axis::Ffn, tower) => self.tower(tower).ffn_width,
            (Axis::Patch, _) => self.sizes.patch_size,
            (Axis::Positions, Tower::Image) => patches + usize::from(!self.is_siglip),
            (Axis::Positions, _) => self.sizes.text_len,
            (Axis::Vocabulary, _) => self.sizes.vocabulary,
            (Axis::Joint, _) => self.sizes.joint_width,
            // No fresh model classifies.
            (Axis::Classes, _) => 0,
        }
    }

    /// A tensor of the file, of which `place` is the first part.
    fn tensor(&self, place: Place, key: String, n_parts: usize, spread: Spread) -> FreshTensor {
        let parameter = place.parameter;
        let tower = place.group.tower;
        let axes = parameter.shape.iter();
        let mut shape: Vec<usize> = axes.map(|axis| self.length(tower, *axis)).collect();
        if let Some(rows) = shape.first_mut() {
            *rows *= n_parts;
        }
        if parameter.kind == ParamKind::Scale && self.is_siglip {
            shape = vec![1];
        }
        let deviation = spread.deviation;
        let (mean, deviation) = match parameter.kind {
            ParamKind::Scale if key == BIAS => (FRESH_BIAS, 0.0),
            ParamKind::Scale => (FRESH_SCALE[usize::from(self.is_siglip)], 0.0),
            ParamKind::Norm if key.ends_with("weight") => (1.0, deviation),
            _ => (0.0, deviation),
        };
        FreshTensor {
            info: TensorInfo {
                dtype: DType::F32,
                shape,
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

impl Fresh for ClipSpec {
    fn check(&self) -> Result<()> {
        let sizes = &self.sizes;
        let others = [
            (sizes.vocabulary, 1 << 24),
            (sizes.text_len, 1 << 20),
            (sizes.joint_width, 1 << 18),
        ];
        let towers = [sizes.image, sizes.text];
        TowerSizes::check(&towers, sizes.image_size, sizes.patch_size, &others)?;
        // A SigLIP has no projection of images.
        match self.is_siglip && sizes.joint_width != sizes.image.width {
            true => Err(Error::UnfitSizes {
                reason: "the joint space of a SigLIP is as wide as its image tower",
            }),
            false => Ok(()),
        }
    }

    fn tensors(&self, spread: Spread) -> Vec<FreshTensor> {
        let mut tensors = Vec::new();
        for group in GROUPS {
            let blocks: Vec<Option<usize>> = match group.is_of_blocks {
                false => vec![None],
                true => (0..self.tower(group.tower).n_blocks).map(Some).collect(),
            };
            for block in blocks {
                for parameter in group.parameters {
                    let place = Place {
                        group,
                        block,
                        parameter,
                    };
                    let n_parts = match parameter.hugging_face {
                        Name::Part(_, 0, of) => of,
                        Name::Part(..) => continue,
                        _ => 1,
                    };
                    let held = place.held(ClipSpelling::HUGGING_FACE);
                    let held = held.filter(|_| place.is_of(self.is_siglip));
                    tensors.extend(held.map(|held| self.tensor(place, held.key, n_parts, spread)));
                }
            }
        }
        tensors
    }

    fn record(&self) -> ModelRecord {
        let (is_siglip, end) = (self.is_siglip, self.sizes.vocabulary as u32 - 1);
        let activation = match is_siglip {
            true => ClipActivation::GeluTanh,
            false => ClipActivation::QuickGelu,
        };
        let epsilon = if is_siglip { 1e-6 } else { 1e-5 };
        ModelRecord {
            family: Some(RecordFamily::Clip),
            image_heads: Some(self.sizes.image.n_heads),
            text_heads: Some(self.sizes.text.n_heads),
            clip: Some(ClipFacts {
                image_activation: Some(activation),
                text_activation: Some(activation),
                image_epsilon: Some(epsilon),
                text_epsilon: Some(epsilon),
                is_causal: Some(!is_siglip),
                pooled: Some(match is_siglip {
                    true => PooledText::Last,
                    false => PooledText::Largest,
                }),
                padding: Some(if is_siglip { 1 } else { end }),
                resize: Some(match is_siglip {
                    true => ClipResize::Squash,
                    false => ClipResize::Shortest,
                }),
                library: Some(ClipLibrary::HuggingFace),
            }),
            ..ModelRecord::default()
        }
    }

    fn describe(&self) -> String {
        let family = if self.is_siglip { "siglip" } else { "clip" };
        format!("family: {family}, sizes: {:?}", self.sizes)
    }
}
