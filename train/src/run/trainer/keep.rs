//! Measuring on the way, and keeping states and the best weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Trainer;
use crate::log::Record;
use crate::run::{Best, Measured, write_model};
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
        let ranks = self.place.collective;
        let tokenizer = self.loader.tokenizer.as_deref();
        let measured = validation.measure(
            model.as_ref(),
            tokenizer,
            device,
            self.dtype,
            progress,
            ranks,
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

    fn note_best(&mut self, measured: &Measured) -> Result<()> {
        let (step, value) = (self.state.step, measured.chosen);
        if self.state.best.is_some_and(|best| best.value >= value) {
            return Ok(());
        }
        // Every rank has measured the same.
        self.state.best = Some(Best { step, value });
        if !self.place.collective.is_first() {
            return Ok(());
        }
        self.write_weights("best.safetensors")?;
        let best = serde_json::json!({
            "step": step,
            "chosen": value,
            "values": measured.values.iter().cloned().collect::<BTreeMap<_, _>>(),
        });
        let text = format!("{best:#}\n");
        merge::io::write_file(&self.folder.file("best.json"), text.as_bytes(), true)?;
        Ok(())
    }

    pub(super) fn write_weights(&self, name: &str) -> Result<()> {
        self.folder.unseal()?;
        self.write_weights_to(&self.folder.file(name))
    }

    fn write_weights_to(&self, path: &Path) -> Result<()> {
        let variables = self.start.variables.iter();
        let tensors: BTreeMap<String, Tensor> = variables
            .map(|(name, variable)| (name.clone(), variable.as_detached_tensor()))
            .collect();
        let (weights, blueprint) = (&self.start.weights, self.start.blueprint.as_ref());
        let recipe = self.recipe.to_yaml()?;
        write_model(path, weights, &tensors, blueprint, &recipe, &self.notes)
    }

    /// Keeps the state: the first rank writes, the others hand it what they own.
    pub(super) fn save(&mut self) -> Result<()> {
        let collective = self.place.collective;
        let entries = self.updater.kept();
        if collective.is_first() {
            let (step, keep) = (self.state.step, self.recipe.save.keep);
            self.folder
                .keep(step, keep, |place| {
                    // First what other ranks must hand over: they wait for nothing after it.
                    let values = |at: usize| self.updater.whole(&entries[at].0, collective);
                    let path = place.join("state.safetensors");
                    self.state.write(&path, &entries, values)?;
                    self.write_weights_to(&place.join("model.safetensors"))
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
        }
        Ok(collective.barrier()?)
    }
}
