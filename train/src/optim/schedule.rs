//! The learning rate as a pure function of the step.

use serde::{Deserialize, Serialize};

use crate::Error;

/// The length of the rise of the rate: `2500` steps, or `0.1` of all steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Warmup {
    /// Written as a whole number.
    Steps(u64),
    /// Written with a decimal point: a share of all steps, rounded down.
    Share(f64),
}

/// The fall of the rate after that: `1` for a line, another number for its power, `cosine`, `constant`, `{ cycles: 0.5,
/// floor: 0.1 }` or `{ milestones: [0.5, 0.75], factor: 0.1 }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Decay {
    /// `(1 − x)^power`, where `x` goes from 0 to 1.
    Power(f64),
    /// A curve with a name.
    Named(Curve),
    /// Half waves of a cosine above a floor.
    Wave(Wave),
    /// Falls at a few steps.
    Stairs(Stairs),
}

/// Curves with names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// `½ (1 + cos πx)`.
    Cosine,
    /// Always the peak.
    Constant,
}

/// `floor + (1 − floor) ½ (1 + cos(2π cycles x))`, in shares of the peak; `end` has no part in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wave {
    /// Times up and down; half of one falls from the peak to the floor.
    pub cycles: f64,
    /// The least share of the peak.
    #[serde(default)]
    pub floor: f64,
}

/// The most milestones of [`Stairs`].
const MAX_STAIRS: usize = 8;

/// `factor` to the power of the milestones that are passed, in shares of the peak; `end` has no part in
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stairs {
    /// Steps at which the rate falls, from 0: whole numbers, or shares of all steps.
    pub milestones: Milestones,
    /// The factor of the rate at each.
    pub factor: f64,
}

/// A few steps, in no order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Milestones([Option<Warmup>; MAX_STAIRS]);

impl Milestones {
    /// Milestones that are passed at a step of a run of `total` steps.
    fn passed(&self, step: u64, total: u64) -> i32 {
        let passed = self.0.iter().flatten();
        passed.filter(|at| step >= at.steps(total)).count() as i32
    }
}

impl TryFrom<&[Warmup]> for Milestones {
    type Error = String;

    fn try_from(steps: &[Warmup]) -> Result<Self, String> {
        let mut milestones = Self::default();
        if steps.len() > MAX_STAIRS {
            return Err(format!("at most {MAX_STAIRS} milestones are possible"));
        }
        for (place, step) in milestones.0.iter_mut().zip(steps) {
            *place = Some(*step);
        }
        Ok(milestones)
    }
}

impl Serialize for Milestones {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().flatten())
    }
}

impl<'de> Deserialize<'de> for Milestones {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let steps = Vec::<Warmup>::deserialize(deserializer)?;
        Self::try_from(steps.as_slice()).map_err(serde::de::Error::custom)
    }
}

/// Step → rate. With `w` steps of warm-up, `s` steps in all and `x = (u − w)/(s − w)`:
///
/// | step `u`, from 0 | rate |
/// |---|---|
/// | `u < w` | `peak · u / w` |
/// | `w ≤ u < s` | `end + (peak − end) · decay(x)` |
/// | `s ≤ u` | `end` |
///
/// [`Wave`], [`Stairs`] and [`Curve::Constant`] give `peak · decay(x)` from `w` on, also for `s ≤ u`, as
/// the published program does.
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
    /// The fall of the rate.
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
            return self.peak * (step as f64 / self.warmup_steps as f64);
        }
        if let Some(share) = self.share(step) {
            return self.peak * share;
        }
        if step >= self.total_steps {
            return self.end;
        }
        let length = (self.total_steps - self.warmup_steps) as f64;
        let x = (step - self.warmup_steps) as f64 / length;
        let left = match self.decay {
            Decay::Power(power) => (1.0 - x).powf(power),
            _ => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
        };
        self.end + (self.peak - self.end) * left
    }

    /// The share of the peak, where the curve knows no end.
    fn share(&self, step: u64) -> Option<f64> {
        match self.decay {
            Decay::Power(_) | Decay::Named(Curve::Cosine) => None,
            Decay::Named(Curve::Constant) => Some(1.0),
            Decay::Wave(Wave { cycles, floor }) => {
                let length = self.total_steps.saturating_sub(self.warmup_steps).max(1);
                let x = (step - self.warmup_steps) as f64 / length as f64;
                let turn = (std::f64::consts::PI * cycles * 2.0 * x).cos();
                Some((floor + (1.0 - floor) * 0.5 * (1.0 + turn)).max(0.0))
            }
            Decay::Stairs(Stairs { milestones, factor }) => {
                Some(factor.powi(milestones.passed(step, self.total_steps)))
            }
        }
    }
}

/// Batches whose gradients are added up before a step, so that it sees `batch` examples in all when each
/// of `devices` takes `per_device` at once.
///
/// # Errors
/// [`Error::BatchNotReached`] when no whole number of batches gives `batch`. The published program rounds
/// down, and so trains on another batch than the recipe says.
pub fn accumulation(batch: u64, per_device: u64, devices: u64) -> crate::Result<u64> {
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
