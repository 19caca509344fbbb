//! Losses that parts of a model ask for beside the objective: balance of a router's experts.

use std::cell::RefCell;

use candle_core::Tensor;

/// Collects side losses of a pass, each a scalar with its name, in the order in which they came.
///
/// A pass without one computes none of them. A recorded segment sees no pass, so a layer with a side
/// loss stands outside of segments, or makes the loss from what its segment puts out.
#[derive(Debug, Default)]
pub struct SideLosses(RefCell<Vec<(String, Tensor)>>);

impl SideLosses {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns names and scalars, and leaves the collection empty.
    #[must_use]
    pub fn take(&self) -> Vec<(String, Tensor)> {
        self.0.take()
    }

    pub(super) fn add(&self, name: String, loss: &Tensor) {
        self.0.borrow_mut().push((name, loss.clone()));
    }
}
