//! The scale of the loss in half precision: small gradients do not vanish, too large ones halve it.

use serde::{Deserialize, Serialize};

/// Settings by which the scale moves. The defaults are those of `torch.amp.GradScaler`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossScaleSettings {
    /// The first scale (65536).
    pub initial: f64,
    /// Factor after `growth_steps` steps in a row without an overflow (2).
    pub growth: f64,
    /// Factor after an overflow (0.5).
    pub backoff: f64,
    /// Steps without an overflow after which the scale grows (2000).
    pub growth_steps: u64,
}

impl Default for LossScaleSettings {
    fn default() -> Self {
        Self {
            initial: 65_536.0,
            growth: 2.0,
            backoff: 0.5,
            growth_steps: 2000,
        }
    }
}

/// The scale as it is now: part of the state that resuming needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScale {
    settings: LossScaleSettings,
    scale: f64,
    good_steps: u64,
}

impl LossScale {
    /// At the start of a run.
    #[must_use]
    pub fn new(settings: LossScaleSettings) -> Self {
        Self {
            settings,
            scale: settings.initial,
            good_steps: 0,
        }
    }

    /// The factor of the loss, and the divisor of gradients.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes note of a backward pass. `finite`: whether every gradient was. Only then is the optimizer
    /// to step, with the scale as it was.
    pub fn note(&mut self, finite: bool) {
        if !finite {
            self.scale *= self.settings.backoff;
            self.good_steps = 0;
            return;
        }
        self.good_steps += 1;
        if self.good_steps >= self.settings.growth_steps {
            // Kept in the range of f32, in which the loss is.
            let grown = self.scale * self.settings.growth;
            if grown <= f64::from(f32::MAX) {
                self.scale = grown;
            }
            self.good_steps = 0;
        }
    }
}
