//! AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>) in two flavors.
//!
//! Both keep `m ← β₁m + (1−β₁)g` and `v ← β₂v + (1−β₂)g²`. With `t` steps made, this one included:
//!
//! | flavor | decay | update | decay |
//! |---|---|---|---|
//! | published | | `p ← p − lr·√(1−β₂ᵗ)/(1−β₁ᵗ) · m/(√v + ε)` | `p ← p − lr·wd·p` |
//! | torch | `p ← p − lr·wd·p` | `p ← p − lr/(1−β₁ᵗ) · m/(√v/√(1−β₂ᵗ) + ε)` | |

mod tensors;

use merge::vectorized;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Elements per task: four slices of it stay in the second-level cache.
const CHUNK: usize = 1 << 14;

/// The order of bias correction and decay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Flavor {
    /// As published training had it: `ε` next to the uncorrected root, decay after the update.
    #[default]
    Published,
    /// As `torch.optim.AdamW`: `ε` next to the corrected root, decay before the update.
    Torch,
}

/// The update rule. Its numbers are f64 and rounded once per step, as torch does with a program's
/// numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Share of the first moment that is kept.
    pub beta1: f64,
    /// Share of the second moment that is kept.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Whether the moments are corrected for their start at zero.
    pub correct_bias: bool,
    /// The order of correction and decay.
    pub flavor: Flavor,
}

/// One step: the same for all elements of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Steps made before this one: 0 in the first. The schedule takes the same number.
    pub index: u64,
    /// The learning rate.
    pub rate: f64,
    /// The weight decay, which is multiplied by the rate.
    pub decay: f64,
    /// Multiplies the gradient as it is read: clipping, the loss scale, the share of one batch among
    /// accumulated ones. 1 leaves it as it is.
    pub gradient_scale: f64,
}

/// A step's numbers in the form that serves both flavors.
#[derive(Clone, Copy)]
struct Factors {
    gradient: f64,
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    kept_before: f64,
    root: f64,
    step: f64,
    lost_after: f64,
}

impl AdamW {
    /// Moves the parameters `p` against the gradients `g`, and keeps the moments `m` and `v`, in one
    /// pass over memory on all threads. The slices may be any part of a parameter: elements do not see
    /// each other, so neither cuts nor threads change a bit.
    ///
    /// # Errors
    /// [`Error::SliceLengths`] when the four lengths differ; nothing has been changed then.
    pub fn update(
        &self,
        step: Step,
        p: &mut [f32],
        g: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) -> Result<()> {
        if [g.len(), m.len(), v.len()] != [p.len(); 3] {
            return Err(Error::SliceLengths {
                parameter: p.len(),
                gradient: g.len(),
                first_moment: m.len(),
                second_moment: v.len(),
            });
        }
        let factors = self.factors(step);
        if p.len() <= CHUNK {
            factors.apply(p, g, m, v);
            return Ok(());
        }
        (p.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .for_each(|((p, g), (m, v))| factors.apply(p, g, m, v));
        Ok(())
    }

    fn factors(&self, step: Step) -> Factors {
        // The powers in f64: β₂ᵗ goes to zero, and with it its error.
        let steps = (step.index + 1) as f64;
        let (first, second) = if self.correct_bias {
            (1.0 - self.beta1.powf(steps), 1.0 - self.beta2.powf(steps))
        } else {
            (1.0, 1.0)
        };
        let decayed = step.rate * step.decay;
        let (kept_before, root, size, lost_after) = match self.flavor {
            Flavor::Published => (1.0, 1.0, step.rate * second.sqrt() / first, decayed),
            Flavor::Torch => (1.0 - decayed, 1.0 / second.sqrt(), step.rate / first, 0.0),
        };
        Factors {
            gradient: step.gradient_scale,
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            kept_before,
            root,
            step: size,
            lost_after,
        }
    }
}

impl Factors {
    /// The step on one chunk of equally long slices.
    fn apply(&self, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let [scale, beta1, beta2, epsilon] =
            [self.gradient, self.beta1, self.beta2, self.epsilon].map(|x| x as f32);
        let [new1, new2] = [1.0 - self.beta1, 1.0 - self.beta2].map(|x| x as f32);
        let [before, root, step, after] =
            [self.kept_before, self.root, self.step, self.lost_after].map(|x| x as f32);
        vectorized(
            #[inline(always)]
            || {
                let moments = m.iter_mut().zip(v.iter_mut());
                for ((p, g), (m, v)) in p.iter_mut().zip(g).zip(moments) {
                    let g = g * scale;
                    *m = *m * beta1 + g * new1;
                    *v = *v * beta2 + g * g * new2;
                    let moved = *p * before - step * (*m / (v.sqrt() * root + epsilon));
                    *p = moved - after * moved;
                }
            },
        );
    }
}
