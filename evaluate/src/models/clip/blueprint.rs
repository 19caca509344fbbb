//! A CLIP that is not loaded yet.

use merge::layouts::ModelRecord;
use merge::{Checkpoint, Layout};

use super::config::Tower;
use super::{CLASSIFIER, Clip, Config, PROJECTIONS};
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, Model, ModelInput, Overrides, Setting,
};
use crate::{Result, Weights};

/// The name of the family.
pub(super) const NAME: &str = "clip";

/// Checkpoints of CLIP and SigLIP.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "CLIP and SigLIP",
    reads: |layout| layout.name().starts_with("clip/"),
    blueprint,
};

/// As open_clip's trainer has it: a variable of one axis does not decay, and the logarithm of the factor stays in `[0, ln 100]`.
pub const GROUPING: Grouping = Grouping {
    heads: &[CLASSIFIER],
    cross_modal: &[],
    undecayed: &["bias", "norm", "logit_scale", "class_embedding"],
    bounded: &[("logit_scale", [0.0, 4.605_170_185_988_092])],
    ..Grouping::NONE
};

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(ClipBlueprint { config }))
}

/// A CLIP that is not loaded yet.
#[derive(Clone, Debug)]
struct ClipBlueprint {
    config: Config,
}

impl Blueprint for ClipBlueprint {
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
                | Setting::Activation
                | Setting::ImageMean
                | Setting::ImageDeviation
                | Setting::CheckpointActivations
        )
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        match (head, self.config.is_siglip) {
            (Head::Contrastive, false) => PROJECTIONS.split_at(2).0,
            (Head::Contrastive, true) => PROJECTIONS.split_at(2).1,
            (Head::ImageClasses, _) => &[CLASSIFIER],
            _ => &[],
        }
    }

    fn grouping(&self) -> &'static Grouping {
        &GROUPING
    }

    fn record(&self) -> ModelRecord {
        self.config.record
    }

    fn build(&self, weights: &Weights) -> Result<Box<dyn Model>> {
        Ok(Box::new(Clip::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        // Input, packed projections, attention, the sum between, the FFN before its activation.
        let of_tower = |tower: &Tower, n_tokens: usize| {
            let whole = 6 * tower.width + tower.ffn_width;
            of.of_blocks(tower.n_blocks, n_tokens, tower.width, whole)
        };
        of_tower(&self.config.image, self.config.n_image_tokens())
            + of_tower(&self.config.text, self.config.text_len)
    }
}
