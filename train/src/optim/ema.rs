//! An exponential moving average of the weights, to evaluate with.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use crate::{Error, Result};

/// `a ← decay·a + (1−decay)·p` for every variable, on its device and in its dtype.
pub struct Ema {
    decay: f64,
    averages: BTreeMap<String, Tensor>,
}

impl Ema {
    /// Averages that start at the variables as they are now.
    ///
    /// # Errors
    /// [`Error::Device`] when a variable cannot be copied.
    pub fn new(decay: f64, variables: &BTreeMap<String, Var>) -> Result<Self> {
        // A clone would share its memory with the variable and move along.
        let copies = variables
            .iter()
            .map(|(name, variable)| Ok((name.clone(), variable.as_detached_tensor().copy()?)));
        Ok(Self {
            decay,
            averages: copies.collect::<Result<_>>()?,
        })
    }

    /// Averages that a state file kept.
    #[must_use]
    pub fn resumed(decay: f64, averages: BTreeMap<String, Tensor>) -> Self {
        Self { decay, averages }
    }

    /// The averages by the variables' names, for a state file.
    #[must_use]
    pub fn averages(&self) -> &BTreeMap<String, Tensor> {
        &self.averages
    }

    /// Takes the variables as they are after a step into the averages.
    ///
    /// # Errors
    /// [`Error::NotAveraged`] for a variable that has no average; [`Error::Device`].
    pub fn update(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        for (name, variable) in variables {
            let average = find(&mut self.averages, name)?;
            let current = (variable.as_detached_tensor() * (1.0 - self.decay))?;
            *average = ((&*average * self.decay)? + current)?;
        }
        Ok(())
    }

    /// Exchanges averages and variables: once before an evaluation, once after it.
    ///
    /// # Errors
    /// As [`Ema::update`].
    pub fn swap(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        for (name, variable) in variables {
            let average = find(&mut self.averages, name)?;
            let current = variable.as_detached_tensor().copy()?;
            variable.set(average)?;
            *average = current;
        }
        Ok(())
    }
}

fn find<'a>(averages: &'a mut BTreeMap<String, Tensor>, name: &str) -> Result<&'a mut Tensor> {
    averages.get_mut(name).ok_or_else(|| Error::NotAveraged {
        name: name.to_owned(),
    })
}
