//! The optimizer: update rule, groups of parameters, schedule, clipping, averages.

mod adamw;
mod ema;
mod groups;
mod lars;
mod part;
mod scale;
mod schedule;

pub mod clip;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use adamw::{AdamW, Flavor, Step};
pub use ema::Ema;
pub use groups::{Group, GroupKind, GroupRules, GroupSettings, Override, ParamGroups};
pub use lars::Lars;
pub(crate) use part::{change_in_place, range_of};
pub use scale::{LossScale, LossScaleSettings};
pub use schedule::{
    Curve, Decay, Milestones, Schedule, Stairs, Warmup, Wave, accumulation, total_steps,
};

/// The update rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// [`AdamW`].
    #[default]
    AdamW,
    /// [`Lars`]: `beta1` is its momentum, `epsilon` its ε, and it has no second moment.
    Lars,
}

/// Whether a factor changes nothing.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_one(factor: &f64) -> bool {
    *factor == 1.0
}

/// The part `optim` of a recipe. Defaults, in parentheses, are those of the published programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSettings {
    /// `adamw` or `lars` (`adamw`).
    pub rule: Rule,
    /// The order of correction and decay in the update (`published`).
    pub flavor: Flavor,
    /// The highest learning rate (1e-4).
    pub lr: f64,
    /// The last learning rate (0).
    pub end_lr: f64,
    /// `2500` steps or `0.1` of all (2500).
    pub warmup: Warmup,
    /// `1` for a line, another power, `cosine`, `constant`, a [`Wave`] or [`Stairs`] (1).
    pub decay: Decay,
    /// Share of the first moment that is kept (0.9).
    pub beta1: f64,
    /// Share of the second moment that is kept (0.98).
    pub beta2: f64,
    /// `η` of LARS: what share of a variable's own size a step at rate 1 moves it (1e-3).
    #[serde(skip_serializing_if = "is_usual_trust")]
    pub trust: f64,
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
    /// Factor on the rate of cross-modal layers, of families that group them apart (1).
    #[serde(skip_serializing_if = "is_one")]
    pub cross_modal_lr_mult: f64,
    /// `published`, `exact` or `all`: which variables decay (`published`).
    pub rules: GroupRules,
    /// Parts of the names of the head's variables (those of the model's family: of vl-merging and VLMo the
    /// classifiers of VQA, NLVR2 and images).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<Vec<String>>,
    /// Variables that the checkpoint lacked: a run notes them when it starts.
    #[serde(skip)]
    pub missing: Option<Vec<String>>,
    /// Further variables that learn like the head, as paths of whole segments such as `attn.v` (none).
    pub raised: Vec<String>,
    /// Parts of the names of trained variables; all others are frozen. Empty: all are trained.
    pub trainable: Vec<String>,
    /// Rates and decays of variables by their names, later ones winning (none).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
    /// The largest norm of all gradients together (none).
    pub max_norm: Option<f64>,
    /// Decay of the moving average of the weights (none: no average is kept).
    pub ema: Option<f64>,
    /// The scale of the loss where training is in f16.
    pub loss_scale: LossScaleSettings,
}

/// `η` of LARS, as ZeroVL has it.
const USUAL_TRUST: f64 = 1e-3;

fn is_usual_trust(trust: &f64) -> bool {
    *trust == USUAL_TRUST
}

impl Default for OptimSettings {
    fn default() -> Self {
        Self {
            rule: Rule::AdamW,
            flavor: Flavor::Published,
            lr: 1e-4,
            end_lr: 0.0,
            warmup: Warmup::Steps(2500),
            decay: Decay::Power(1.0),
            beta1: 0.9,
            beta2: 0.98,
            trust: USUAL_TRUST,
            epsilon: 1e-8,
            correct_bias: true,
            weight_decay: 0.01,
            head_weight_decay: 0.01,
            lr_mult: 1.0,
            cross_modal_lr_mult: 1.0,
            rules: GroupRules::Published,
            heads: None,
            missing: None,
            raised: Vec::new(),
            trainable: Vec::new(),
            overrides: Vec::new(),
            max_norm: None,
            ema: None,
            loss_scale: LossScaleSettings::default(),
        }
    }
}

impl OptimSettings {
    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for the first that is outside of its range; so is `warmup: 2500.0`, which
    /// would be a share.
    pub fn check(&self) -> Result<()> {
        let Self { warmup, decay, .. } = self;
        let share = match warmup {
            Warmup::Share(share) => *share,
            Warmup::Steps(_) => 0.0,
        };
        let (power, floor, cycles, factor) = match decay {
            Decay::Power(power) => (*power, 0.0, 1.0, 1.0),
            Decay::Named(_) => (1.0, 0.0, 1.0, 1.0),
            Decay::Wave(wave) => (1.0, wave.floor, wave.cycles, 1.0),
            Decay::Stairs(stairs) => (1.0, 0.0, 1.0, stairs.factor),
        };
        let scale = &self.loss_scale;
        let at_least_0 = |x: f64| x >= 0.0 && x.is_finite();
        let above_0 = |x: f64| x > 0.0 && x.is_finite();
        let share_below_1 = |x: f64| (0.0..1.0).contains(&x);
        const AT_LEAST_0: &str = "a finite number of at least 0";
        const ABOVE_0: &str = "a finite number above 0";
        const SHARE: &str = "at least 0 and below 1";
        let checks = [
            ("lr", self.lr, at_least_0(self.lr), AT_LEAST_0),
            ("end_lr", self.end_lr, at_least_0(self.end_lr), AT_LEAST_0),
            (
                "warmup",
                share,
                (0.0..=1.0).contains(&share),
                "a share from 0 to 1",
            ),
            ("decay", power, above_0(power), ABOVE_0),
            ("decay.cycles", cycles, above_0(cycles), ABOVE_0),
            (
                "decay.floor",
                floor,
                (0.0..=1.0).contains(&floor),
                "a share from 0 to 1",
            ),
            ("decay.factor", factor, at_least_0(factor), AT_LEAST_0),
            ("beta1", self.beta1, share_below_1(self.beta1), SHARE),
            ("beta2", self.beta2, share_below_1(self.beta2), SHARE),
            ("trust", self.trust, above_0(self.trust), ABOVE_0),
            ("epsilon", self.epsilon, above_0(self.epsilon), ABOVE_0),
            (
                "weight_decay",
                self.weight_decay,
                at_least_0(self.weight_decay),
                AT_LEAST_0,
            ),
            (
                "head_weight_decay",
                self.head_weight_decay,
                at_least_0(self.head_weight_decay),
                AT_LEAST_0,
            ),
            (
                "lr_mult",
                self.lr_mult,
                at_least_0(self.lr_mult),
                AT_LEAST_0,
            ),
            (
                "cross_modal_lr_mult",
                self.cross_modal_lr_mult,
                at_least_0(self.cross_modal_lr_mult),
                AT_LEAST_0,
            ),
            (
                "max_norm",
                self.max_norm.unwrap_or(1.0),
                self.max_norm.is_none_or(above_0),
                ABOVE_0,
            ),
            (
                "ema",
                self.ema.unwrap_or(0.0),
                self.ema.is_none_or(share_below_1),
                SHARE,
            ),
            (
                "loss_scale.initial",
                scale.initial,
                above_0(scale.initial),
                ABOVE_0,
            ),
            (
                "loss_scale.growth",
                scale.growth,
                scale.growth >= 1.0,
                "at least 1",
            ),
            (
                "loss_scale.backoff",
                scale.backoff,
                scale.backoff > 0.0 && scale.backoff < 1.0,
                "between 0 and 1",
            ),
        ];
        let of_overrides = self.overrides.iter().flat_map(|of| {
            let numbers = [
                ("overrides.lr", of.lr),
                ("overrides.weight_decay", of.weight_decay),
            ];
            let given = numbers.into_iter();
            given.filter_map(|(name, number)| {
                number.map(|number| (name, number, at_least_0(number), AT_LEAST_0))
            })
        });
        let mut all = checks.into_iter().chain(of_overrides);
        match all.find(|(_, _, holds, _)| !holds) {
            Some((setting, value, _, range)) => Err(Error::OutOfRange {
                setting,
                value,
                range,
            }),
            None => Ok(()),
        }
    }

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

    /// The settings that make the groups of parameters.
    #[must_use]
    pub fn groups(&self) -> GroupSettings {
        GroupSettings {
            weight_decay: self.weight_decay,
            head_weight_decay: self.head_weight_decay,
            lr_mult: self.lr_mult,
            cross_modal_lr_mult: self.cross_modal_lr_mult,
            rules: self.rules,
            heads: self.heads.clone(),
            missing: self.missing.clone(),
            raised: self.raised.clone(),
            trainable: self.trainable.clone(),
            overrides: self.overrides.clone(),
            lr: self.lr,
        }
    }
}
