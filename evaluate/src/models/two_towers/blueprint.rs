//! A pair of towers that is not loaded yet.

use merge::layouts::{ModelRecord, RecordFamily};
use merge::{Checkpoint, Layout};

use super::config::PROBE;
use super::{Config, Temperature, TwoTowers};
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, Model, ModelInput, Overrides, Setting,
};
use crate::{Result, Weights};

/// The name of the family, and of the layout of its checkpoints.
pub(super) const NAME: &str = "zerovl";

/// Checkpoints of ZeroVL.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "ZeroVL",
    reads: |layout| layout.name() == NAME,
    blueprint,
};

/// Biases and norms do not decay. ZeroVL's own program decays everything, which its recipes ask for by
/// `rules: all`.
pub const GROUPING: Grouping = Grouping {
    heads: &[PROBE],
    cross_modal: &[],
    undecayed: &[
        "bias",
        "LayerNorm.weight",
        "norm.weight",
        "norm1.weight",
        "norm2.weight",
    ],
    ..Grouping::NONE
};

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(TwoTowersBlueprint { config }))
}

/// A pair of towers that is not loaded yet.
#[derive(Clone, Debug)]
struct TwoTowersBlueprint {
    config: Config,
}

impl Blueprint for TwoTowersBlueprint {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
    }

    fn feature_width(&self) -> Option<usize> {
        Some(self.config.joint_width)
    }

    fn takes(&self, setting: Setting) -> bool {
        matches!(
            setting,
            Setting::Heads
                | Setting::ImageHeads
                | Setting::TextHeads
                | Setting::Temperature
                | Setting::ImageMean
                | Setting::ImageDeviation
                | Setting::DropPath
                | Setting::Dropout
                | Setting::CheckpointActivations
        )
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        match head {
            Head::Contrastive => &["image_projection", "text_projection"],
            Head::ImageClasses => &[PROBE],
            _ => &[],
        }
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    fn record(&self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Zerovl),
            image_heads: Some(self.config.image.n_heads),
            text_heads: Some(self.config.text.n_heads),
            temperature: match self.config.temperature {
                Temperature::Constant(value) => Some(value),
                Temperature::Learned => None,
            },
            image_mean: Some(self.config.input.image.mean),
            image_deviation: Some(self.config.input.image.deviation),
            ..ModelRecord::default()
        }
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        Ok(Box::new(TwoTowers::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        let (image, text) = (&self.config.image, &self.config.text);
        // Input, packed projections, attention, the sum between, the FFN before its activation; norms
        // after the sums keep one more.
        let towers = [
            (
                image.n_blocks,
                image.n_tokens(),
                image.width,
                6 * image.width + image.ffn_width,
            ),
            (
                text.n_blocks,
                self.config.input.text.len,
                text.width,
                7 * text.width + text.ffn_width,
            ),
        ];
        let towers = towers.into_iter();
        towers
            .map(|(n_blocks, n_tokens, width, whole)| {
                of.of_blocks(n_blocks, n_tokens, width, whole)
            })
            .sum()
    }
}
