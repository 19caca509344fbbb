//! An EVE that is not loaded yet.

use merge::layouts::ModelRecord;
use merge::{Checkpoint, Layout};

use super::heads::TEMPERATURES;
use super::{Config, Eve, heads};
use crate::models::blueprint::AT_WORK;
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, Model, ModelInput, Overrides, Setting,
};
use crate::{Result, Weights};

/// The name of the family, and of the layout of its checkpoints.
pub(super) const NAME: &str = "eve";

/// Checkpoints of EVE.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "EVE",
    reads: |layout| layout.name().starts_with("eve/"),
    blueprint,
};

/// The published program gives another rate to what a checkpoint lacks, which are the heads, and goes by parts of names:
/// norms before feed-forward networks and the norm of text embeddings decay.
pub const GROUPING: Grouping = Grouping {
    heads: &[
        "itc_",
        "itm_head",
        "output.",
        "attn1.",
        "attn2.",
        "fc.0.",
        "attn_pool.",
        "nlvr2_output.",
        "pixel_head.",
        "decoder.",
        "mlm_head.",
    ],
    cross_modal: &[],
    undecayed: &[
        "bias",
        "LayerNorm.bias",
        "LayerNorm.weight",
        "norm.bias",
        "norm.weight",
        "norm1.bias",
        "norm1.weight",
        "norm2.bias",
        "norm2.weight",
    ],
    raises_missing: true,
    bounded: &[("itc_temp", TEMPERATURES)],
};

/// The table of relative positions in checkpoints, and its name in the model.
const RELATIVE_TABLE: [&str; 2] = [
    "backbone.encoder.relative_position_bias_table",
    "relative_position_bias_table",
];

/// The common part of the names of a mixture's experts.
const EXPERTS: &str = ".mlp_moe.moe.experts.experts.";

/// Heads of earlier experiments. The published program uses them only by a setting.
const UNUSED: &[&str] = &["mitc_", "mitm_head.", "itc_vl_"];

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(EveBlueprint { config }))
}

/// An EVE that is not loaded yet.
#[derive(Clone, Debug)]
struct EveBlueprint {
    config: Config,
}

impl Blueprint for EveBlueprint {
    fn family(&self) -> &'static str {
        NAME
    }

    fn input(&self) -> &ModelInput {
        &self.config.input
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
            | Setting::PairLen
            | Setting::AsPublished
            | Setting::Routing
            | Setting::DecoderDepth
            | Setting::TiedWords
            | Setting::DropPath
            | Setting::CheckpointActivations
            | Setting::Dropout => true,
            Setting::Balance | Setting::ShareExperts => {
                self.config.experts.iter().any(Option::is_some)
            }
            Setting::TextTableLen => self.config.relative.is_some(),
            _ => false,
        }
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        heads::prefixes(head)
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    fn name_of(&self, key: &str) -> String {
        let name = merge::layouts::eve_key(key).unwrap_or_else(|| key.to_owned());
        match name == RELATIVE_TABLE[0] {
            true => RELATIVE_TABLE[1].to_owned(),
            false => name,
        }
    }

    fn spell(&self, name: &str) -> String {
        match name == RELATIVE_TABLE[1] {
            true => RELATIVE_TABLE[0].to_owned(),
            false => name.to_owned(),
        }
    }

    fn leaves_out(&self, name: &str) -> bool {
        let is_unused = UNUSED.iter().any(|start| name.starts_with(start));
        is_unused || name.contains(".position_ids_")
    }

    fn is_of_expert(&self, name: &str) -> bool {
        name.contains(EXPERTS)
    }

    fn record(&self) -> ModelRecord {
        self.config.record()
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        Ok(Box::new(Eve::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        let config = &self.config;
        let n_tokens = (config.n_patches() + 1 + config.pair_len) as u64;
        let per_token = of.n_examples as u64 * n_tokens * 4;
        let (d, f) = (config.width, config.ffn_width);
        // Input, packed projections, attention, the sum between, the FFN before its activation.
        let plain = 6 * d + f;
        // A router's norm, tokens, answers and sums are a graph, and two experts answer each token.
        let mixture = 14 * d + 2 * f;
        let (kept_plain, kept_mixture) = match of.are_recomputed {
            true => (d, 8 * d + 2 * f),
            false => (plain, mixture),
        };
        let of_blocks = config.experts.iter().map(|experts| match experts {
            Some(_) => kept_mixture,
            None => kept_plain,
        });
        let kept: usize = of_blocks.sum();
        per_token * (kept as u64 + AT_WORK * mixture as u64)
    }
}
