//! Sizes of a CLIP, read off a checkpoint, and what its configuration says.

use merge::layouts::{
    Clip as ClipLayout, ClipActivation, ClipFacts, ClipLibrary, ClipResize, ModelRecord,
    PooledText, Stack,
};
use merge::{Checkpoint, Layout};

use crate::images::{Alpha, ImageInput, Margins, Passes, Resize};
use crate::models::settings::{agreed, normalize};
use crate::models::towers::sizes;
use crate::models::{ModelInput, Overrides};
use crate::nn::Activation;
use crate::text::{Padding, TextInput, TextRule};
use crate::{Error, ModelFault, Result};

/// Sizes of a tower, and what its weights do not tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tower {
    /// Number of blocks.
    pub n_blocks: usize,
    /// Hidden size.
    pub width: usize,
    /// Attention heads of each block.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// The number that every norm adds to the variance.
    pub epsilon: f64,
    /// The function between the two layers of an FFN.
    pub activation: Activation,
}

/// Sizes of both towers, and what brings them together.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The image tower.
    pub image: Tower,
    /// The text tower.
    pub text: Tower,
    /// Whether it is a SigLIP: no class token, patches pooled by attention, texts seen from both sides.
    pub is_siglip: bool,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Text positions.
    pub text_len: usize,
    /// Width of the joint space.
    pub joint_width: usize,
    /// Whether a token of a text sees those before it alone.
    pub is_causal: bool,
    /// The rule that picks the row of a text that stands for it.
    pub pooled: PooledText,
    /// Whether a bias is added to similarities.
    pub has_bias: bool,
    /// Facts about the model for the file that its weights go to.
    pub record: ModelRecord,
    /// Pixels and tokens.
    pub input: ModelInput,
}

impl Config {
    /// The sizes of a checkpoint in Hugging Face's spelling. A fact that neither the file's record nor the configuration beside
    /// it says must be given.
    ///
    /// # Errors
    /// [`ModelFault::UnknownSize`] for activations and heads that nothing tells, and [`ModelFault::BadSize`].
    pub fn read(
        checkpoint: &Checkpoint,
        layout: &dyn Layout,
        overrides: &Overrides,
    ) -> Result<Self> {
        let found = layout.dimensions();
        let is_siglip = layout.name().ends_with("/siglip");
        let record = ModelRecord::of(checkpoint)?;
        let config = match ClipLayout::read(checkpoint)? {
            Some(clip) => clip.config(checkpoint)?,
            None => Default::default(),
        };
        let facts = record.clip.unwrap_or(config.facts);
        let unknown = |what| unknown(checkpoint, what);
        let heads = |what, given: Option<usize>, recorded: Option<usize>, told| {
            let given = given.or(overrides.n_heads);
            agreed(checkpoint, what, given, recorded.or(told))
        };
        let image_heads = heads(
            "image_heads",
            overrides.image_heads,
            record.image_heads,
            config.image_heads,
        )?;
        let text_heads = heads(
            "text_heads",
            overrides.text_heads,
            record.text_heads,
            config.text_heads,
        )?;
        let activation = |told| agreed(checkpoint, "activation", overrides.activation, told);
        let image_activation = activation(facts.image_activation)?;
        let text_activation = activation(facts.text_activation)?;
        let epsilon = if is_siglip { 1e-6 } else { 1e-5 };
        let tower = |name, heads, activation, of: Option<f64>| {
            let stack = found.stack(name).ok_or_else(|| unknown("a tower"))?;
            tower(checkpoint, stack, heads, activation, of.unwrap_or(epsilon))
        };
        let image = tower("image", image_heads, image_activation, facts.image_epsilon)?;
        let text = tower("text", text_heads, text_activation, facts.text_epsilon)?;
        let side = found.image_size.ok_or_else(|| unknown("the image size"))?;
        let text_len = found
            .text_len
            .ok_or_else(|| unknown("the text positions"))?;
        let vocabulary = found.vocabulary.ok_or_else(|| unknown("the vocabulary"))?;
        let joint_width = match is_siglip {
            true => image.width,
            false => (found.joint_width).ok_or_else(|| unknown("the width of the joint space"))?,
        };
        let is_causal = facts.is_causal.unwrap_or(!is_siglip);
        let pooled = facts.pooled.unwrap_or(match is_siglip {
            true => PooledText::Last,
            false => PooledText::Largest,
        });
        let library = facts.library.unwrap_or(ClipLibrary::HuggingFace);
        let mut picture = image_input(side, is_siglip, facts.resize, library);
        let recorded = ModelRecord {
            image_mean: record.image_mean.or(config.image_mean),
            image_deviation: record.image_deviation.or(config.image_deviation),
            ..record
        };
        normalize(&mut picture, checkpoint, overrides, &recorded)?;
        let record = ModelRecord {
            family: Some(merge::layouts::RecordFamily::Clip),
            image_heads: Some(image.n_heads),
            text_heads: Some(text.n_heads),
            image_mean: Some(picture.mean),
            image_deviation: Some(picture.deviation),
            clip: Some(ClipFacts {
                image_activation,
                text_activation,
                image_epsilon: Some(image.epsilon),
                text_epsilon: Some(text.epsilon),
                is_causal: Some(is_causal),
                pooled: Some(pooled),
                library: Some(library),
                ..facts
            }),
            ..ModelRecord::default()
        };
        Ok(Self {
            image,
            text,
            is_siglip,
            patch_size: found.patch_size.ok_or_else(|| unknown("the patch size"))?,
            text_len,
            joint_width,
            is_causal,
            pooled,
            has_bias: checkpoint.get("logit_bias").is_some(),
            record,
            input: ModelInput {
                image: picture,
                text: TextInput {
                    len: text_len,
                    // No token sees what follows it, so padding changes nothing.
                    padding: match is_causal && pooled != PooledText::Last {
                        true => Padding::Longest,
                        false => Padding::Full,
                    },
                    vocabulary,
                    // Tokenizers of CLIP know what becomes of texts, and those of transformers' SigLIP.
                    rule: match (is_siglip, library) {
                        (true, ClipLibrary::OpenClip) => TextRule::Siglip,
                        _ => TextRule::Verbatim,
                    },
                    padding_id: match is_siglip {
                        true => Some(facts.padding.unwrap_or(1)),
                        false => None,
                    },
                    ends_at_largest: pooled == PooledText::Largest,
                },
            },
        })
    }

    /// Tokens of an image: its patches, and the class token of a CLIP.
    #[must_use]
    pub fn n_image_tokens(&self) -> usize {
        (self.input.image.side / self.patch_size).pow(2) + usize::from(!self.is_siglip)
    }
}

fn unknown(checkpoint: &Checkpoint, what: &'static str) -> Error {
    Error::Model(ModelFault::UnknownSize {
        path: checkpoint.path().into(),
        what,
    })
}

fn tower(
    checkpoint: &Checkpoint,
    stack: &Stack,
    heads: Option<usize>,
    activation: Option<ClipActivation>,
    epsilon: f64,
) -> Result<Tower> {
    let unknown = |what| unknown(checkpoint, what);
    let n_heads = heads.ok_or_else(|| {
        unknown(
            "its attention heads: put config.json or open_clip_config.json beside it, or give --image-heads and \
             --text-heads",
        )
    })?;
    let activation = activation.ok_or_else(|| {
        unknown(
            "the activation of its FFNs: put config.json or open_clip_config.json beside it, or give --activation",
        )
    })?;
    let ffn_width = stack.ffn_width;
    Ok(Tower {
        n_blocks: stack.n_blocks,
        width: stack.width,
        n_heads: sizes::heads(checkpoint, stack.width, Some(n_heads))?,
        ffn_width: ffn_width.ok_or_else(|| unknown("the width of its FFNs"))?,
        epsilon,
        activation: activation.into(),
    })
}

/// The picture input of either library: their crops differ by a pixel, and transformers drops transparency before it
/// resizes.
#[must_use]
pub fn image_input(
    side: usize,
    is_siglip: bool,
    resize: Option<ClipResize>,
    library: ClipLibrary,
) -> ImageInput {
    let squash = if is_siglip {
        ClipResize::Squash
    } else {
        ClipResize::Shortest
    };
    let input = ImageInput::square(side);
    let input = match is_siglip {
        true => input,
        false => input.normalized_by(ImageInput::CLIP),
    };
    let (margins, alpha) = match library {
        ClipLibrary::HuggingFace => (Margins::LastLarger, Alpha::Dropped),
        ClipLibrary::OpenClip => (Margins::Even, Alpha::Premultiplied),
    };
    ImageInput {
        resize: match resize.unwrap_or(squash) {
            ClipResize::Squash => Resize::Squash,
            ClipResize::Shortest => Resize::Shorter { to: side },
        },
        passes: Passes::LessFirst,
        margins,
        alpha,
        ..input
    }
}
