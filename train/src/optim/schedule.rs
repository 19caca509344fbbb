//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How long the rate rises: `2500` steps, or `0.1` of all steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Warmup {
    /// Written as a whole number.
    Steps(u64),
    /// Written with a decimal point: a share of all steps, rounded down.
    Share(f64),
}

/// How the rate falls afterwards: `1` for a line, another number for its power, or `cosine`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Decay {
    /// `(1 − x)^power`, where `x` goes from 0 to 1.
    Power(f64),
    /// A curve with a name.
    Named(Curve),
}

/// Curves with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// `½ (1 + cos πx)`.
    Cosine,
}

/// Step → rate. With `w` steps of warm-up, `s` steps in all and `x = (u − w)/(s − w)`:
///
/// | step `u`, from 0 | rate |
/// |---|---|
/// | `u < w` | `peak · u / w` |
/// | `w ≤ u < s` | `end + (peak − end) · decay(x)` |
/// | `s ≤ u` | `end` |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The highest rate, after the warm-up.
    pub peak: f64,
    /// The last rate.
    pub end: f64,
    /// Steps of warm-up.
    pub warmup_steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// How the rate falls.
    pub decay: Decay,
}

impl Warmup {
    /// Steps of warm-up in a run of `total` steps.
    #[must_use]
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => (total as f64 * share) as u64,
        }
    }
}

impl Schedule {
    /// The rate of the step that `step` others precede. The first of a warm-up is 0, as published.
    #[must_use]
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        if step >= self.total_steps {
            return self.end;
        }
        let length = (self.total_steps - self.warmup_steps) as f64;
        let x = (step - self.warmup_steps) as f64 / length;
        let left = match self.decay {
            Decay::Power(power) => (1.0 - x).powf(power),
            Decay::Named(Curve::Cosine) => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        };
        self.end + (self.peak - self.end) * left
    }
}

/// Batches whose gradients are added up before a step, so that it sees `batch` examples in all when each
/// of `devices` takes `per_device` at once.
///
/// # Errors
/// [`Error::BatchNotReached`] when no whole number of batches gives `batch`. The published program rounds
/// down, and so trains on another batch than the one it was told.
pub fn accumulation(batch: u64, per_device: u64, devices: u64) -> Result<u64> {
    let at_once = per_device * devices;
    if at_once == 0 || batch == 0 || !batch.is_multiple_of(at_once) {
        return Err(Error::BatchNotReached { batch, at_once });
    }
    Ok(batch / at_once)
}

/// Steps of a run: `⌊batches · epochs / accumulation⌋`, where `batches` are those of one epoch on one
/// device.
#[must_use]
pub fn total_steps(batches: u64, epochs: u64, accumulation: u64) -> u64 {
    batches * epochs / accumulation.max(1)
}
