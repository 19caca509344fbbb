//! Beginning a run.

use std::sync::Arc;

use evaluate::nn::{Buffers, Gradients};

use super::TrainPlan;
use crate::Result;
use crate::log::Log;
use crate::recipe::CheckedRecipe;
use crate::run::RunFolder;
use crate::run::trainer::{Pace, Trainer, Where};

impl<'a> Trainer<'a> {
    /// Plans a run and begins it, or goes on with it where its folder has a state.
    ///
    /// # Errors
    /// As [`TrainPlan::of`] and [`Trainer::begin`].
    pub fn open(recipe: CheckedRecipe, place: Where<'a>) -> Result<Self> {
        Self::begin(TrainPlan::of(recipe, &place)?, place)
    }

    /// Makes the folder of a planned run and writes its recipe.
    ///
    /// # Errors
    /// When the folder or a file in it cannot be written.
    pub fn begin(mut plan: TrainPlan, place: Where<'a>) -> Result<Self> {
        plan.recipe.check_routing()?;
        let is_first = place.collective.is_first();
        let folder = RunFolder::open(place.folder, is_first)?;
        folder.require_newest(plan.resumed_at)?;
        let log = is_first
            .then(|| Log::open(folder.path(), plan.resumed_at))
            .transpose()?;
        if is_first {
            let yaml = plan.recipe.to_yaml()?;
            merge::io::write_file(&folder.file("recipe.yaml"), yaml.as_bytes(), true)?;
        }
        plan.start.release()?;
        let trained = plan.updater.trained(&plan.start.variables);
        let gradients = Gradients::of(trained.map(|(_, var)| var));
        Ok(Self {
            memory: plan.memory(),
            loader: Arc::new(plan.loader),
            validation: plan.validation,
            validated_at: None,
            recipe: plan.recipe,
            place,
            folder,
            objectives: plan.objectives,
            start: plan.start,
            updater: plan.updater,
            gradients,
            buffers: Buffers::default(),
            order: plan.order,
            n_parts: plan.n_parts,
            n_steps: plan.n_steps,
            balance: plan.balance,
            notes: plan.notes,
            state: plan.state,
            log,
            pace: Pace::default(),
            dtype: plan.dtype,
        })
    }
}
