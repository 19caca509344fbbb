//! A classifier that is not loaded yet.

use merge::layouts::ModelRecord;
use merge::{Checkpoint, Layout};

use super::{Config, HEAD, VitClassifier};
use crate::models::{
    Activations, Blueprint, Family, Grouping, Head, Model, ModelInput, Overrides, Setting,
};
use crate::{Result, Weights};

/// The name of the family, and of the layout of its checkpoints.
pub(super) const NAME: &str = "vit";

/// Checkpoints of timm's vision transformers.
pub const FAMILY: Family = Family {
    name: NAME,
    runs: "classifiers of timm (vit_*, deit_*)",
    reads: |layout| layout.name() == NAME,
    blueprint,
};

/// As timm's trainer has it: a variable of one axis does not decay, nor tokens and positions.
pub const GROUPING: Grouping = Grouping {
    heads: &["head."],
    cross_modal: &[],
    undecayed: &[
        "bias",
        "norm",
        "gamma",
        "cls_token",
        "reg_token",
        "pos_embed",
    ],
    ..Grouping::NONE
};

fn blueprint(
    checkpoint: &Checkpoint,
    layout: &dyn Layout,
    overrides: &Overrides,
) -> Result<Box<dyn Blueprint>> {
    let config = Config::read(checkpoint, layout, overrides)?;
    Ok(Box::new(VitBlueprint { config }))
}

/// A classifier that is not loaded yet.
#[derive(Clone, Debug)]
struct VitBlueprint {
    config: Config,
}

impl Blueprint for VitBlueprint {
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
                | Setting::Activation
                | Setting::ImageMean
                | Setting::ImageDeviation
                | Setting::DropPath
                | Setting::CheckpointActivations
        )
    }

    fn prefixes(&self, head: Head) -> &'static [&'static str] {
        match head {
            Head::ImageClasses => &[HEAD],
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
        Ok(Box::new(VitClassifier::load(weights, self.config.clone())?))
    }

    fn activation_bytes(&self, of: &Activations<'_>) -> u64 {
        let tower = &self.config.tower;
        // Input, packed projections, attention, the sum between, the FFN before its activation.
        let whole = 6 * tower.width + tower.ffn_width;
        of.of_blocks(tower.n_blocks, tower.n_tokens(), tower.width, whole)
    }
}
