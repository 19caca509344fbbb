//! What a run takes in memory, before its first step.

use evaluate::models::Activations;
use merge::io::Container;

use super::{Start, Updater};
use crate::collective::Collective;
use crate::objectives::ObjectiveSpec;
use crate::recipe::TrainRecipe;

/// What a run takes in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Numbers that are variables.
    pub n_parameters: u64,
    /// Bytes of gradients.
    pub gradient_bytes: u64,
    /// Bytes of what the optimizer of this rank keeps: both moments of its share of the variables,
    /// and averages of all of them where they are asked for.
    pub optimizer_bytes: u64,
    /// Bytes of the weights that the run starts from, which stay in memory where no file holds them:
    /// fresh ones, merges, resized tables.
    pub start_bytes: u64,
    /// Bytes of the copy of the weights that is made when they are kept.
    pub saving_bytes: u64,
    /// Bytes of what a part of the batch keeps for its backward pass, by estimate.
    pub activation_bytes: u64,
}

impl Memory {
    /// All together, with the weights: at its peak, which is in a step or while it is kept.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        let lasting = 4 * self.n_parameters + self.gradient_bytes + self.optimizer_bytes;
        lasting + self.start_bytes + self.activation_bytes.max(self.saving_bytes)
    }

    /// Of a run whose parts of a batch have `n_examples` each.
    pub(super) fn of(
        recipe: &TrainRecipe,
        start: &Start,
        updater: &Updater,
        specs: impl Iterator<Item = &'static ObjectiveSpec>,
        n_examples: usize,
        collective: &dyn Collective,
    ) -> Self {
        let variables = start.variables.values();
        let n_parameters: u64 = variables.map(|variable| variable.elem_count() as u64).sum();
        let trained = updater.trained(&start.variables);
        let n_trained: u64 = trained.map(|(_, var)| var.elem_count() as u64).sum();
        let averaged = match recipe.optim.ema {
            Some(_) => n_parameters,
            None => 0,
        };
        let branches: Vec<_> = specs.flat_map(ObjectiveSpec::branches).collect();
        let source = start.weights.checkpoint();
        Self {
            n_parameters,
            gradient_bytes: 4 * n_trained,
            start_bytes: match source.info().container {
                Container::Memory => source.tensors().map(|(_, info)| info.n_bytes()).sum(),
                _ => 0,
            },
            saving_bytes: match collective.is_first() {
                true => 4 * n_parameters,
                false => 0,
            },
            optimizer_bytes: 2 * 4 * updater.n_owned() + 4 * averaged,
            activation_bytes: start.blueprint.activation_bytes(&Activations {
                n_examples,
                are_recomputed: recipe.checkpoint_activations,
                branches: &branches,
            }),
        }
    }
}
