//! From a recipe to a model whose weights are variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use evaluate::Weights;
use evaluate::models::{self, Blueprint, Head, Model, Overrides};
use merge::Checkpoint;

use crate::Result;
use crate::objectives::Objective;

/// A model whose weights are variables.
pub struct Start {
    /// The weights.
    pub weights: Weights,
    /// The model.
    pub model: Box<dyn Model>,
    /// What was known of it before its weights were loaded.
    pub blueprint: Box<dyn Blueprint>,
    /// Variables by name.
    pub variables: BTreeMap<String, Var>,
}

impl Start {
    /// Loads a checkpoint for training: heads that the objectives use may be missing, and are then
    /// drawn anew under `seed`. `classes` says how many such heads tell apart.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load<'a>(
        checkpoint: Arc<Checkpoint>,
        overrides: &Overrides,
        objectives: impl IntoIterator<Item = &'a dyn Objective>,
        classes: &[(Head, usize)],
        seed: u64,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let (blueprint, weights) = models::prepare(checkpoint, overrides, device, dtype)?;
        let fresh: Vec<&str> = (objectives.into_iter())
            .flat_map(|objective| objective.spec().heads)
            .flat_map(|&head| blueprint.prefixes(head))
            .copied()
            .collect();
        let mut weights = weights.with_fresh(&fresh, seed).trainable();
        for &(head, n) in classes {
            if let Some(prefix) = blueprint.prefixes(head).first() {
                weights = weights.with_fresh_classes(prefix, n);
            }
        }
        let model = blueprint.build(&weights)?;
        let variables = weights.variables();
        Ok(Self {
            weights,
            model,
            blueprint,
            variables,
        })
    }

    /// Builds the model again after an update, where it computes in another dtype than f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn recast(&mut self) -> Result<()> {
        if self.weights.dtype() != DType::F32 {
            self.weights.recast();
            self.model = self.blueprint.build(&self.weights)?;
        }
        Ok(())
    }

    /// The model for inference.
    ///
    /// # Errors
    /// When the device fails.
    pub fn frozen(&self) -> Result<Box<dyn Model>> {
        Ok(self.blueprint.build(&self.weights.detached()?)?)
    }
}
