//! The optimizer: update rule, groups of parameters, schedule, clipping, averages.

mod adamw;
mod ema;
mod groups;
mod scale;
mod schedule;

pub mod clip;

use serde::{Deserialize, Serialize};

pub use adamw::{AdamW, Flavor, Step};
pub use ema::Ema;
pub use groups::{Group, GroupKind, GroupRules, GroupSettings, ParamGroups};
pub use scale::{LossScale, LossScaleSettings};
pub use schedule::{Curve, Decay, Schedule, Warmup, accumulation, total_steps};

/// The part `optim` of a recipe. Defaults, in parentheses, are those of the published programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSettings {
    /// Where correction and decay stand in the update (`published`).
    pub flavor: Flavor,
    /// The highest learning rate (1e-4).
    pub lr: f64,
    /// The last learning rate (0).
    pub end_lr: f64,
    /// `2500` steps or `0.1` of all (2500).
    pub warmup: Warmup,
    /// `1` for a line, another power, or `cosine` (1).
    pub decay: Decay,
    /// Share of the first moment that is kept (0.9).
    pub beta1: f64,
    /// Share of the second moment that is kept (0.98).
    pub beta2: f64,
    /// Added to the root of the second moment (1e-8).
    pub epsilon: f64,
    /// Whether moments are corrected for their start at zero (true).
    pub correct_bias: bool,
    /// Decay of the body (0.01).
    pub weight_decay: f64,
    /// Decay of the head (0.01).
    pub head_weight_decay: f64,
    /// Factor on the head's rate (1).
    pub lr_mult: f64,
    /// `published` or `exact`: which variables decay (`published`).
    pub rules: GroupRules,
    /// Parts of the names of the head's variables (the classifiers of VQA, NLVR2 and images).
    pub heads: Vec<String>,
    /// Further variables that learn like the head, as paths of whole segments such as `attn.v` (none).
    pub raised: Vec<String>,
    /// Parts of the names of what is trained, all else being frozen (empty: all is trained).
    pub trainable: Vec<String>,
    /// The largest norm of all gradients together (none).
    pub max_norm: Option<f64>,
    /// Decay of the moving average of the weights (none: no average is kept).
    pub ema: Option<f64>,
    /// The scale of the loss where training is in f16.
    pub loss_scale: LossScaleSettings,
}

impl Default for OptimSettings {
    fn default() -> Self {
        Self {
            flavor: Flavor::Published,
            lr: 1e-4,
            end_lr: 0.0,
            warmup: Warmup::Steps(2500),
            decay: Decay::Power(1.0),
            beta1: 0.9,
            beta2: 0.98,
            epsilon: 1e-8,
            correct_bias: true,
            weight_decay: 0.01,
            head_weight_decay: 0.01,
            lr_mult: 1.0,
            rules: GroupRules::Published,
            heads: ["vqa_classifier", "nlvr2_classifier", "img_cls_classifier"]
                .map(str::to_owned)
                .to_vec(),
            raised: Vec::new(),
            trainable: Vec::new(),
            max_norm: None,
            ema: None,
            loss_scale: LossScaleSettings::default(),
        }
    }
}

impl OptimSettings {
    /// The update rule.
    #[must_use]
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            correct_bias: self.correct_bias,
            flavor: self.flavor,
        }
    }

    /// The rates of a run of `total_steps`.
    #[must_use]
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        Schedule {
            peak: self.lr,
            end: self.end_lr,
            warmup_steps: self.warmup.steps(total_steps),
            total_steps,
            decay: self.decay,
        }
    }

    /// What the groups of parameters depend on.
    #[must_use]
    pub fn groups(&self) -> GroupSettings {
        GroupSettings {
            weight_decay: self.weight_decay,
            head_weight_decay: self.head_weight_decay,
            lr_mult: self.lr_mult,
            rules: self.rules,
            heads: self.heads.clone(),
            raised: self.raised.clone(),
            trainable: self.trainable.clone(),
        }
    }
}
