//! What a run takes in memory, before its first step.

use super::Trainer;

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
    /// Bytes of what a part of the batch keeps for its backward pass, by estimate.
    pub activation_bytes: u64,
}

impl Memory {
    /// All together, with the weights.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        4 * self.n_parameters + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes
    }
}

impl Trainer<'_> {
    /// What the run takes in memory.
    #[must_use]
    pub fn memory(&self) -> Memory {
        let variables = self.start.variables.values();
        let n_parameters: u64 = variables.map(|variable| variable.elem_count() as u64).sum();
        let trained = self.updater.trained(&self.start.variables);
        let n_trained: u64 = trained.map(|(_, var)| var.elem_count() as u64).sum();
        let averaged = match self.recipe.optim.ema {
            Some(_) => n_parameters,
            None => 0,
        };
        let config = &self.start.config;
        let n_tokens = (config.n_patches() + 1 + config.text_len) as u64;
        let part = self.order.batch_size() / self.place.collective.size() / self.n_parts;
        // Input, norms, packed projections, attention, the FFN before and after GELU, sums.
        let per_token = match self.recipe.checkpoint_activations {
            true => config.width,
            false => 10 * config.width + 2 * config.ffn_width,
        };
        let per_block = part as u64 * n_tokens * 4 * per_token as u64;
        Memory {
            n_parameters,
            gradient_bytes: 4 * n_trained,
            optimizer_bytes: 2 * 4 * self.updater.n_owned() + 4 * averaged,
            activation_bytes: per_block * config.n_blocks as u64,
        }
    }
}
