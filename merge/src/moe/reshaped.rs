//! A tensor of an expert with noise, and times a factor.

use std::fmt;

use crate::methods::{Chunk, Elementwise, Real, Value};
use crate::random::Draws;

/// `out = (x + noise) · scale`.
pub(super) struct Reshaped {
    /// The factor.
    pub(super) scale: f64,
    /// The draws of the noise, and its standard deviation.
    pub(super) noise: Option<(Draws, f64)>,
}

impl Elementwise for Reshaped {
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    ) {
        let scale = T::from_f64(self.scale);
        let mut noise = vec![0.0f32; if self.noise.is_some() { out.len() } else { 0 }];
        if let Some((draws, deviation)) = &self.noise {
            draws.add_normal(*deviation as f32, chunk.first, &mut noise);
        }
        let values = chunk.members.first().copied().unwrap_or_default();
        for (index, (out, value)) in out.iter_mut().zip(values).enumerate() {
            let drawn = noise.get(index).copied().unwrap_or(0.0);
            *out = step(step(value.real() + T::from_f64(f64::from(drawn))) * scale);
        }
    }
}

impl fmt::Display for Reshaped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.noise {
            Some((_, deviation)) => write!(f, "times {} with noise of {deviation}", self.scale),
            None => write!(f, "times {}", self.scale),
        }
    }
}
