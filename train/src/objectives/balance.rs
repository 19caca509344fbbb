//! Balance of routers' experts, a loss beside those of objectives.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::Objective;
use crate::batch::Batch;
use crate::{Error, Result};

/// The factor of the balance loss unless a recipe gives another, as in EVE's program.
pub const BALANCE_WEIGHT: f64 = 0.001;

/// Passes of a step, over which balance is averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passes {
    /// Of all objectives.
    pub all: usize,
}

impl Passes {
    /// Those that objectives make of a batch.
    pub fn of<'o>(objectives: impl IntoIterator<Item = &'o dyn Objective>, batch: &Batch) -> Self {
        let passes = objectives.into_iter();
        Self {
            all: passes.map(|objective| objective.n_passes(batch)).sum(),
        }
    }

    /// The part that one objective has in the balance loss of a step, from the side losses of its own passes: the mean
    /// over routers of the mean over all passes of the step, those of other objectives counting as 0, so that parts
    /// add up. `None` of a model without routers. A router whose experts are evenly chosen has 1.
    ///
    /// Chen et al. 2024, "EVE", <https://arxiv.org/abs/2308.11971>; Shazeer et al. 2017, "Outrageously large neural
    /// networks", <https://arxiv.org/abs/1701.06538>, section 4.
    ///
    /// # Errors
    /// [`Error::OtherPasses`] when a router has seen more or fewer passes than the objective says, and when the device
    /// fails.
    pub fn balance(
        self,
        objective: &dyn Objective,
        batch: &Batch,
        losses: Vec<(String, Tensor)>,
    ) -> Result<Option<Tensor>> {
        let expected = objective.n_passes(batch);
        let mut by_router: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
        for (name, loss) in losses {
            by_router.entry(name).or_default().push(loss);
        }
        let n_routers = by_router.len();
        let mut sum: Option<Tensor> = None;
        for (router, losses) in by_router {
            if losses.len() != expected {
                return Err(Error::OtherPasses {
                    objective: objective.name(),
                    router,
                    found: losses.len(),
                    expected,
                });
            }
            for loss in losses {
                sum = Some(match sum {
                    Some(sum) => (sum + loss)?,
                    None => loss,
                });
            }
        }
        let share = 1.0 / (n_routers * self.all).max(1) as f64;
        Ok(sum.map(|sum| sum * share).transpose()?)
    }
}
