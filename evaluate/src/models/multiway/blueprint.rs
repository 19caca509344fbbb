//! A multiway model that is not loaded yet.

use merge::layouts::{ModelRecord, vlmo};
use merge::{Checkpoint, Layout};

use super::heads::prefixes;
use super::{Config, Multiway};
use crate::images::ImageInput;
use crate::models::blueprint::{AT_WORK, BlockSizes};
use crate::models::{
    Activations, Blueprint, Branch, Family, Grouping, Head, Model, ModelInput, Overrides, Setting,
};
use crate::text::{Padding, TextInput, TextRule};
use crate::{Result, Weights};

/// Checkpoints in the spelling of vl-merging and of VLMo.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "vl-merging and VLMo",
    reads: |layout| Config::reads(layout.name()),
    blueprint,
};

/// The groups of the published programs. The weights of norms within experts (`norm1.v.weight`) and within
/// classifiers (`vqa_classifier.1.weight`) are not in their list, so these decay.
pub const GROUPING: Grouping = Grouping {
    heads: &["vqa_classifier", "nlvr2_classifier", "img_cls_classifier"],
    cross_modal: &[],
    undecayed: &[
        "bias",
        "LayerNorm.weight",
        "norm.weight",
        "norm1.weight",
        "norm2.weight",
        "norm.v.weight",
        "norm.l.weight",
        "norm.vl.weight",
    ],
    ..Grouping::NONE
};

/// The name of the family.
pub(super) const NAME: &str = "multiway";

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(MultiwayBlueprint {
        input: config.input(),
        config,
    }))
}

/// A multiway model that is not loaded yet.
#[derive(Clone, Debug)]
pub struct MultiwayBlueprint {
    config: Config,
    input: ModelInput,
}

impl Config {
    /// Pixels and tokens that the model takes: the square transform, and texts whose padding no token
    /// sees.
    #[must_use]
    pub fn input(&self) -> ModelInput {
        ModelInput {
            image: ImageInput::square(self.image_size),
            text: TextInput {
                len: self.text_len,
                padding: Padding::Longest,
                vocabulary: self.vocabulary,
                rule: TextRule::Verbatim,
                padding_id: None,
                ends_at_largest: false,
            },
        }
    }
}

impl Blueprint for MultiwayBlueprint {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.input
    }

    fn patch_side(&self) -> Option<usize> {
        Some(self.config.image_size / self.config.patch_size)
    }

    fn feature_width(&self) -> Option<usize> {
        Some(self.config.width)
    }

    fn takes(&self, setting: Setting) -> bool {
        match setting {
            Setting::Heads
            | Setting::FusionStart
            | Setting::ShallowAttention
            | Setting::TextTableLen
            | Setting::DropPath
            | Setting::Dropout
            | Setting::CheckpointActivations => true,
            Setting::ImageHeads
            | Setting::TextHeads
            | Setting::Activation
            | Setting::Temperature
            | Setting::ImageMean
            | Setting::ImageDeviation
            | Setting::Streams
            | Setting::PairLen
            | Setting::AsPublished
            | Setting::Routing
            | Setting::DecoderDepth
            | Setting::TiedWords
            | Setting::Balance
            | Setting::ShareExperts => false,
        }
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        prefixes(head)
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    fn name_of(&self, key: &str) -> String {
        vlmo::to_vl_merging(key)
    }

    fn spell(&self, name: &str) -> String {
        match self.config.layout.starts_with("vlmo/") {
            true => vlmo::from_vl_merging(name),
            false => name.to_owned(),
        }
    }

    fn leaves_out(&self, name: &str) -> bool {
        let unused = [
            "temporal_relative_position_bias_table",
            "position_embeddings.weight",
        ];
        unused.iter().any(|end| name.ends_with(end))
    }

    fn record(&self) -> ModelRecord {
        self.config.record()
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        Ok(Box::new(Multiway::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        let config = &self.config;
        let n_tokens = (config.n_patches() + 1 + config.text_len) as u64;
        let per_token = of.n_examples as u64 * n_tokens * 4;
        // Input, norms, packed projections, attention, the FFN before and after GELU, sums.
        let whole = per_token * (10 * config.width + 2 * config.ffn_width) as u64;
        let kept = match of.are_recomputed {
            true => per_token * config.width as u64,
            false => whole,
        };
        // Contrast of both branches runs the fusion blocks twice.
        let n_twice = match of.branches.contains(&Branch::Fused) {
            true => config.n_blocks.saturating_sub(config.fusion_start),
            false => 0,
        };
        let n_run = (config.n_blocks + n_twice) as u64;
        if let Some(dtype) = of.graphs {
            let stretch = |n_tokens: usize| {
                let sizes = BlockSizes {
                    width: config.width,
                    ffn_width: config.ffn_width,
                    heads: config.n_heads,
                    keys: n_tokens,
                };
                of.of_graphs(dtype, config.n_blocks + n_twice, n_tokens, sizes)
            };
            return stretch(config.n_patches() + 1) + stretch(config.text_len);
        }
        n_run * kept + AT_WORK * whole
    }
}
