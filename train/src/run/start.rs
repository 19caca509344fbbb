//! From a recipe to a model whose weights are variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use evaluate::Weights;
use evaluate::models::{Config, Multiway};
use merge::Checkpoint;

use crate::Result;
use crate::objectives::Objective;
use crate::recipe::ModelSettings;

/// A model whose weights are variables.
pub struct Start {
    /// The weights.
    pub weights: Weights,
    /// The model.
    pub model: Multiway,
    /// Its sizes.
    pub config: Config,
    /// Variables by name.
    pub variables: BTreeMap<String, Var>,
}

impl Start {
    /// Loads a checkpoint for training: heads that only the objectives use may be missing, and are
    /// then drawn anew under `seed`. `classes` says how many such heads tell apart, by the beginning
    /// of their names.
    ///
    /// # Errors
    /// When a tensor is missing or of another shape.
    pub fn load<'a>(
        checkpoint: Arc<Checkpoint>,
        model: &ModelSettings,
        objectives: impl IntoIterator<Item = &'a dyn Objective>,
        classes: &[(&str, usize)],
        seed: u64,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let prepared = Multiway::prepare(checkpoint, &model.overrides(), device, dtype)?;
        let (config, weights) = prepared;
        let heads: Vec<&str> = (objectives.into_iter())
            .flat_map(|objective| objective.heads())
            .copied()
            .collect();
        let mut weights = weights.with_fresh(&heads, seed).trainable();
        for &(name, n) in classes {
            weights = weights.with_fresh_classes(name, n);
        }
        let model = Multiway::load(&weights, config.clone())?;
        let variables = weights.variables();
        Ok(Self {
            weights,
            model,
            config,
            variables,
        })
    }

    /// Puts the model together anew after an update, where it computes in another dtype than f32.
    ///
    /// # Errors
    /// When the device fails.
    pub fn recast(&mut self) -> Result<()> {
        if self.weights.dtype() != DType::F32 {
            self.weights.recast();
            self.model = Multiway::load(&self.weights, self.config.clone())?;
        }
        Ok(())
    }

    /// The model for inference.
    ///
    /// # Errors
    /// When the device fails.
    pub fn frozen(&self) -> Result<Multiway> {
        Ok(Multiway::load(
            &self.weights.detached()?,
            self.config.clone(),
        )?)
    }
}
