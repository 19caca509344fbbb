//! LayerScale: a factor per channel on a residual branch.

use candle_core::Tensor;

use crate::Weights;
use crate::weights::Init;

/// The first value at BEiT, of every size.
const INITIAL: f32 = 0.1;

/// Per-channel factors, or none at all.
#[derive(Clone, Debug)]
pub struct LayerScale(Option<Tensor>);

impl LayerScale {
    /// Loads `name: (width)`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, width: usize) -> crate::Result<Self> {
        Ok(Self(Some(weights.get(
            name,
            &[width],
            Init::Constant(INITIAL),
        )?)))
    }

    /// A factor of one.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// The factors, `(width)`.
    #[must_use]
    pub fn factors(&self) -> Option<&Tensor> {
        self.0.as_ref()
    }
}
