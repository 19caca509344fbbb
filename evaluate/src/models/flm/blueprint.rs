//! An FLM that is not loaded yet.

use merge::layouts::{ModelRecord, OneStream, RecordFamily};
use merge::{Checkpoint, Layout};

use super::{Config, Flm, heads};
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, Model, ModelInput, Overrides, Setting, Streams,
};
use crate::{Result, Weights};

/// The name of the family, and of the layout of its checkpoints.
pub(super) const NAME: &str = "flm";

/// Checkpoints of FLM.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "FLM",
    reads: |layout| layout.name().starts_with(NAME),
    blueprint,
};

/// Parts of names in the published program are beginnings here. Norms of the image encoder and of
/// classifiers decay.
pub const GROUPING: Grouping = Grouping {
    heads: &[
        "vqa_classifier",
        "nlvr2_classifier",
        "mlm_score",
        "itm_score",
        "lm_score",
    ],
    cross_modal: &["cross_modal", "fusion_layers"],
    undecayed: &[
        "bias",
        "LayerNorm.weight",
        "norm.weight",
        "norm1.weight",
        "norm2.weight",
    ],
    ..Grouping::NONE
};

/// The beginnings of names that the published program has and never uses.
const UNUSED: &[&str] = &[
    "vit_model.positional_embedding",
    "vit_model.ln_final.",
    "text_transformer.pooler.",
    "cross_modal_image_pooler.",
    "lm_type_embeddings.",
    "itm_score_flm.",
];

/// The beginnings of names that only three streams use.
const OF_THREE: &[&str] = &["token_type_embeddings_flm.", "cross_modal_text_pooler_f."];

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(FlmBlueprint { config }))
}

/// An FLM that is not loaded yet.
#[derive(Clone, Debug)]
struct FlmBlueprint {
    config: Config,
}

impl Blueprint for FlmBlueprint {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn takes(&self, setting: Setting) -> bool {
        matches!(
            setting,
            Setting::Heads
                | Setting::ImageHeads
                | Setting::TextHeads
                | Setting::ImageMean
                | Setting::ImageDeviation
                | Setting::Streams
                | Setting::DropPath
                | Setting::Dropout
                | Setting::CheckpointActivations
        )
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        heads::prefixes(head)
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    fn leaves_out(&self, name: &str) -> bool {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        begins(UNUSED) || (!self.config.has_reconstructor() && begins(OF_THREE))
    }

    fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Flm),
            heads: Some(self.config.n_heads),
            image_heads: Some(self.config.image.n_heads),
            text_heads: Some(self.config.text.n_heads),
            image_mean: Some(self.config.input.image.mean),
            image_deviation: Some(self.config.input.image.deviation),
            streams: match self.config.streams {
                Streams::Three => None,
                Streams::Causal => Some(OneStream::Causal),
                Streams::Bidirectional => Some(OneStream::Bidirectional),
            },
            ..ModelRecord::default()
        }
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        Ok(Box::new(Flm::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        let (image, text, fused) = (&self.config.image, &self.config.text, self.config.width);
        let (t, p, f) = (
            self.config.input.text.len,
            image.n_tokens(),
            self.config.ffn_width,
        );
        let (encoded, n_streams, n_fusion) = match self.config.streams {
            Streams::Three => {
                let n_fusion = self.config.n_fusion_bottom + self.config.n_fusion_top;
                (2 * text.n_blocks, 2, n_fusion)
            }
            Streams::Causal | Streams::Bidirectional => (text.n_blocks, 1, 0),
        };
        let width = text.width;
        // Blocks, tokens, width, and numbers that a token keeps: input, packed projections, attention, sums
        // before norms, the FFN before its activation; looking at others takes queries, attention, a sum.
        let parts = [
            (
                image.n_blocks,
                p,
                image.width,
                6 * image.width + image.ffn_width,
            ),
            (encoded, t, width, 7 * width + text.ffn_width),
            (n_streams * self.config.n_cross, t, fused, 10 * fused + f),
            (n_fusion, t, fused, 5 * fused + f),
            // Keys and values of the tokens that are looked at.
            (self.config.n_cross, p, 0, 2 * fused),
            (n_fusion, 2 * t, 0, 2 * fused),
        ];
        let parts = parts.into_iter();
        parts
            .map(|(n_blocks, n_tokens, width, whole)| {
                of.of_blocks(n_blocks, n_tokens, width, whole)
            })
            .sum()
    }
}
