//! The squares of gradients, by the names of a checkpoint's tensors.

use std::collections::BTreeMap;

use candle_core::{DType, Var};
use evaluate::models::Head;
use evaluate::nn::{Gradient, Gradients, Tape};
use merge::fisher::{Squares, Sums};
use rayon::prelude::*;

use super::{CLASSES, Labels};
use crate::batch::Batch;
use crate::collective::Alone;
use crate::objectives::{Objective, Shared, Step};
use crate::run::Start;
use crate::{Error, Result};

/// The largest distance of the summed probabilities of all classes from 1, in f32.
const TOLERANCE: f64 = 1e-3;

/// Sums of squared gradients.
pub(super) struct Squared {
    labels: Labels,
    sums: Sums,
    /// Variables with the names of their tensors.
    variables: Vec<(String, Var)>,
    gradients: Gradients,
}

impl Squared {
    /// Zeros for every tensor of floats that the checkpoint has.
    pub(super) fn new(start: &Start, labels: Labels) -> Result<Self> {
        let mut sums = Sums::new();
        for (key, info) in start.weights.checkpoint().tensors() {
            if info.dtype.is_float() {
                sums.insert(key.to_owned(), Squares::zeros(&info.shape));
            }
        }
        let mut variables = Vec::with_capacity(start.variables.len());
        for (name, variable) in &start.variables {
            let key = start.weights.key_of(name);
            let key = key.ok_or_else(|| Error::FreshHead { name: name.clone() })?;
            variables.push((key.to_owned(), variable.clone()));
        }
        Ok(Self {
            labels,
            gradients: Gradients::of(variables.iter().map(|(_, variable)| variable)),
            sums,
            variables,
        })
    }

    /// Goes on with sums that were kept.
    ///
    /// # Errors
    /// [`Error::OtherMoments`] for those of other tensors.
    pub(super) fn resume(&mut self, kept: Sums) -> Result<()> {
        for (name, squares) in &self.sums {
            if kept.get(name).map(Squares::shape) != Some(squares.shape()) {
                return Err(Error::OtherMoments { name: name.clone() });
            }
        }
        self.sums = kept;
        Ok(())
    }

    /// The sums so far.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// The sums, and the names of tensors that are weights of the model.
    pub(super) fn into_sums(self) -> (Sums, Vec<String>) {
        let names = self.variables.into_iter().map(|(key, _)| key);
        (self.sums, names.collect())
    }

    /// Adds the squared gradient of the log-likelihood of a group of examples, or of one example by all classes.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; when the model lacks a head, or the device fails.
    pub(super) fn add(
        &mut self,
        batch: &Batch,
        start: &Start,
        objectives: &[(Box<dyn Objective>, f64)],
    ) -> Result<()> {
        if self.labels == Labels::Given {
            self.backward(batch, start, objectives)?;
            return self.square(1.0);
        }
        let heads = objectives
            .iter()
            .flat_map(|(objective, _)| objective.spec().heads);
        let head = heads.copied().find(|head| CLASSES.contains(head));
        let n_classes = start.model.n_classes(head.unwrap_or(Head::ImageClasses))?;
        let mut total = 0.0;
        for class in 0..n_classes as u32 {
            let batch = Batch {
                classes: Some(vec![class; batch.n]),
                ..batch.clone()
            };
            // The loss is minus the logarithm of the class's probability.
            let probability = (-self.backward(&batch, start, objectives)?).exp();
            total += probability;
            self.square(probability)?;
        }
        match (total - 1.0).abs() <= TOLERANCE {
            true => Ok(()),
            false => Err(Error::NoProbabilities { total }),
        }
    }

    /// The gradients of all objectives together; their loss.
    fn backward(
        &mut self,
        batch: &Batch,
        start: &Start,
        objectives: &[(Box<dyn Objective>, f64)],
    ) -> Result<f64> {
        self.gradients.clear();
        let (shared, mut sum) = (Shared::default(), 0.0);
        for (objective, weight) in objectives {
            let tape = Tape::new();
            let step = Step {
                tape: Some(&tape),
                ..Step::plain(start.model.as_ref(), batch, &Alone, &shared)
            };
            let loss = objective.loss(&step)?;
            if !loss.reported.is_finite() {
                let part = format!("the loss {}", objective.name());
                return Err(Error::NotFinite { part });
            }
            // Expected labels take the log-likelihood itself, without the objective's weight.
            let weight = match self.labels {
                Labels::Given => *weight,
                Labels::Expected => 1.0,
            };
            sum += weight * loss.reported;
            let value = (loss.value.to_dtype(DType::F32)? * weight)?;
            tape.backward(&value, &mut self.gradients)?;
        }
        Ok(sum)
    }

    /// Adds `factor` times the square of what the last pass has found.
    fn square(&mut self, factor: f64) -> Result<()> {
        let mut found: BTreeMap<&str, Gradient<'_>> = BTreeMap::new();
        for (key, variable) in &self.variables {
            if let Some(gradient) = self.gradients.get(variable) {
                found.insert(key, gradient);
            }
        }
        for (key, gradient) in found {
            let Some(squares) = self.sums.get_mut(key) else {
                continue;
            };
            let is_finite = match gradient {
                Gradient::Host(values) => add_squares(squares.values_mut(), values, factor),
                Gradient::Device(gradient) => {
                    let values = gradient.to_dtype(DType::F32)?.flatten_all()?;
                    add_squares(squares.values_mut(), &values.to_vec1::<f32>()?, factor)
                }
            };
            if !is_finite {
                let part = format!("the gradient of `{key}`");
                return Err(Error::NotFinite { part });
            }
        }
        Ok(())
    }
}

/// Adds `factor` times each value squared, in f64; whether all are finite.
fn add_squares(sums: &mut [f64], values: &[f32], factor: f64) -> bool {
    const PIECE: usize = 1 << 14;
    (sums.par_chunks_mut(PIECE).zip(values.par_chunks(PIECE)))
        .map(|(sums, values)| {
            let mut is_finite = true;
            for (sum, &value) in sums.iter_mut().zip(values) {
                let value = f64::from(value);
                is_finite &= value.is_finite();
                *sum += factor * value * value;
            }
            is_finite
        })
        .reduce(|| true, |a, b| a && b)
}
