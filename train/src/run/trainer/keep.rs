//! Measuring on the way, and keeping states and the best weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Trainer;
use crate::log::Record;
use crate::run::gathered::Gathered;
use crate::run::{Best, Measured, Together, write_model};
use crate::{Error, Result};

impl Trainer<'_> {
    /// Measures on validation data, the ranks together, and keeps the best weights.
    pub(super) fn validate(&mut self) -> Result<()> {
        self.updater.swap_averages(&self.start.variables)?;
        let measured = self.measure();
        if let Ok(Some(measured)) = &measured {
            self.note_best(measured)?;
        }
        self.updater.swap_averages(&self.start.variables)?;
        measured?;
        self.validated_at = Some(self.state.step);
        Ok(self.place.collective.barrier()?)
    }

    fn measure(&mut self) -> Result<Option<Measured>> {
        let Some(validation) = &self.validation else {
            return Ok(None);
        };
        let model = self.start.frozen()?;
        let (device, progress) = (&self.place.device, self.place.progress);
        let together = match self.place.sharing(&self.recipe)? {
            Some(ranks) => Together::ByExperts(ranks),
            None => Together::ByBatches(self.place.collective),
        };
        let tokenizer = self.loader.tokenizer.as_deref();
        let measured = validation.measure(
            model.as_ref(),
            tokenizer,
            device,
            self.dtype,
            progress,
            together,
        )?;
        if let Some(log) = &mut self.log {
            let values = measured.values.iter();
            log.write(&Record {
                step: self.state.step,
                examples: self.state.examples,
                values: values
                    .map(|(name, value)| (format!("validation/{name}"), *value))
                    .collect(),
            })?;
        }
        Ok(Some(measured))
    }

    /// The first rank's number, for all ranks. Each rank that shares experts computes the number itself, and another kind of
    /// processor may round otherwise; all must agree whether to keep the weights.
    fn chosen_by_first(&self, chosen: f64) -> Result<f64> {
        if !self.start.experts.are_shared_out() {
            return Ok(chosen);
        }
        let collective = self.place.collective;
        let mut value = [if collective.is_first() { chosen } else { 0.0 }];
        collective.sum_f64(&mut value)?;
        Ok(value[0])
    }

    fn note_best(&mut self, measured: &Measured) -> Result<()> {
        let step = self.state.step;
        let value = self.chosen_by_first(measured.chosen)?;
        if self.state.best.is_some_and(|best| best.value >= value) {
            return Ok(());
        }
        self.state.best = Some(Best { step, value });
        self.write_weights("best.safetensors")?;
        if !self.place.collective.is_first() {
            return Ok(());
        }
        let best = serde_json::json!({
            "step": step,
            "chosen": value,
            "values": measured.values.iter().cloned().collect::<BTreeMap<_, _>>(),
        });
        let text = format!("{best:#}\n");
        merge::io::write_file(&self.folder.file("best.json"), text.as_bytes(), true)?;
        Ok(())
    }

    /// Writes the weights into the run's folder: all ranks call this together.
    pub(super) fn write_weights(&self, name: &str) -> Result<()> {
        let others = self.bring_others()?;
        if !self.place.collective.is_first() {
            return Ok(());
        }
        self.folder.unseal()?;
        self.write_weights_to(&self.folder.file(name), others.as_ref())
    }

    /// Brings the experts that other ranks hold to the first one: all ranks call this together.
    fn bring_others(&self) -> Result<Option<Gathered>> {
        let (start, folder) = (&self.start, self.folder.passing());
        let collective = self.place.collective;
        Gathered::bring(&start.experts, &start.variables, collective, &folder)
    }

    fn write_weights_to(&self, path: &Path, others: Option<&Gathered>) -> Result<()> {
        let variables = self.start.variables.iter();
        let tensors: BTreeMap<String, Tensor> = variables
            .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
            .collect();
        let (weights, blueprint) = (&self.start.weights, self.start.blueprint.as_ref());
        let (recipe, notes) = (self.recipe.to_yaml()?, &self.notes);
        let others = others.map(Gathered::file);
        write_model(path, weights, &tensors, others, blueprint, &recipe, notes)
    }

    /// Keeps the state: the first rank writes, the others hand it what they own.
    pub(super) fn save(&mut self) -> Result<()> {
        let collective = self.place.collective;
        let entries = self.updater.kept(collective)?;
        self.state.skipped = self.updater.skipped(collective)?;
        if collective.is_first() {
            let (step, keep) = (self.state.step, self.recipe.save.keep);
            self.folder
                .keep(step, keep, |place| {
                    // Whatever the disk does, other ranks wait until they have handed over everything.
                    let values = |at: usize| self.updater.whole(&entries[at].0, collective);
                    let path = place.join("state.safetensors");
                    let written = self.state.write(&path, &entries, values);
                    let others = self.bring_others()?;
                    written?;
                    self.write_weights_to(&place.join("model.safetensors"), others.as_ref())
                })
                .map_err(|error| Error::NotSaved {
                    step,
                    kept: self.folder.newest(),
                    source: Box::new(error),
                })?;
        } else {
            for (key, _) in &entries {
                self.updater.whole(key, collective)?;
            }
            self.bring_others()?;
        }
        Ok(collective.barrier()?)
    }
}
