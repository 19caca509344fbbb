//! From a recipe to a model whose weights are variables.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Var};
use evaluate::Weights;
use evaluate::models::{self, Blueprint, Head, Model, Overrides, Setting};
use evaluate::ranks::ExpertShare;
use merge::Checkpoint;

use super::ExpertVariables;
use crate::Result;
use crate::objectives::ObjectiveSpec;

/// The demands of a run on the model that it starts from.
pub struct Wanted {
    /// Facts about the model that its checkpoint lacks.
    pub overrides: Overrides,
    /// Settings of the run that the family must know.
    pub settings: Vec<Setting>,
    /// The objectives, whose heads may be missing.
    pub objectives: Vec<&'static ObjectiveSpec>,
    /// The number of classes of each fresh head.
    pub classes: Vec<(Head, usize)>,
    /// The seed of their draws.
    pub seed: u64,
    /// Of the experts of mixtures those that this process holds.
    pub experts: ExpertShare,
}

/// A model whose weights are variables.
pub struct Start {
    /// The weights.
    pub weights: Weights,
    /// The model.
    pub model: Box<dyn Model>,
    /// The blueprint of the model, from before its weights were loaded.
    pub blueprint: Box<dyn Blueprint>,
    /// Variables by name, without those of experts that other ranks hold.
    pub variables: BTreeMap<String, Var>,
    /// Which variables are of experts that ranks share out.
    pub experts: ExpertVariables,
}

impl Start {
    /// Loads a checkpoint for training. It draws the heads that the objectives use and the checkpoint
    /// lacks.
    ///
    /// # Errors
    /// When the family ignores a setting of the run, or a tensor is missing or of another shape.
    pub fn load(
        checkpoint: Arc<Checkpoint>,
        wanted: &Wanted,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let (blueprint, weights) = models::prepare(checkpoint, &wanted.overrides, device, dtype)?;
        models::check_settings(blueprint.as_ref(), wanted.settings.iter().copied())?;
        let fresh: Vec<&str> = (wanted.objectives.iter())
            .flat_map(|spec| spec.heads)
            .flat_map(|&head| blueprint.prefixes(head))
            .copied()
            .collect();
        let mut weights = (weights.with_fresh(&fresh, wanted.seed))
            .sharing_experts(wanted.experts)
            .trainable();
        for &(head, n) in &wanted.classes {
            if let Some(prefix) = blueprint.prefixes(head).first() {
                weights = weights.with_fresh_classes(prefix, n);
            }
        }
        let shapes = weights.check(|weights| blueprint.build(weights))?;
        let model = blueprint.build(&weights)?;
        let variables = weights.variables();
        let experts = match wanted.experts.is_all() {
            true => ExpertVariables::default(),
            false => ExpertVariables::of(shapes, &variables, |name| blueprint.is_of_expert(name)),
        };
        Ok(Self {
            experts,
            weights,
            model,
            blueprint,
            variables,
        })
    }

    /// Frees weights in memory that variables were made of, on this rank or another.
    ///
    /// # Errors
    /// When a tensor that no variable was made of cannot be read.
    pub(super) fn release(&mut self) -> Result<()> {
        let (variables, others) = (&self.variables, self.experts.others());
        let is_gone = |name: &str| variables.contains_key(name) || others.contains_key(name);
        Ok(self.weights.release(is_gone)?)
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
