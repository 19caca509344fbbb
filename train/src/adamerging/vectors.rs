//! Task vectors of models over the variables that they share with their base.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use evaluate::models::Source;
use evaluate::nn::{Gradient, Gradients};
use merge::layouts::{ClipSpelling, clip};
use merge::progress::Silent;
use rayon::prelude::*;

use crate::run::Start;
use crate::{Error, Result};

/// A tensor of the base, and what each model has added to it.
struct Shared {
    shape: Vec<usize>,
    base: Vec<f32>,
    deltas: Vec<Vec<f32>>,
}

/// The task vectors, tensor by tensor.
pub(super) struct TaskVectors {
    /// Names of tensors as merges see them, in order.
    names: Vec<String>,
    tensors: Vec<Shared>,
}

impl TaskVectors {
    /// Of the variables that all models and the base have in one shape.
    ///
    /// # Errors
    /// When the base cannot be read.
    pub(super) fn new(base: &Path, models: &[&Start]) -> Result<Self> {
        let base = Source::file(base)?.checkpoint(&Silent)?;
        let base = clip::respelled(base, ClipSpelling::HUGGING_FACE)?;
        let by_key = models.iter().map(|start| {
            let named = start.variables.iter().filter_map(|(name, variable)| {
                let key = start.weights.key_of(name)?;
                Some((key.to_owned(), variable))
            });
            named.collect::<BTreeMap<_, _>>()
        });
        let by_key: Vec<_> = by_key.collect();
        let mut vectors = Self {
            names: Vec::new(),
            tensors: Vec::new(),
        };
        for (key, info) in base.tensors().filter(|(_, info)| info.dtype.is_float()) {
            let own = by_key.iter().map(|variables| variables.get(key).copied());
            let Some(own) = own.collect::<Option<Vec<_>>>() else {
                continue;
            };
            if own
                .iter()
                .any(|variable| variable.dims() != info.shape.as_slice())
            {
                continue;
            }
            let mut values = vec![0.0; info.n_elements()];
            merge::decode_f32(key, info.dtype, &base.read_all(key)?, &mut values)?;
            let delta = |variable: &candle_core::Var| -> Result<Vec<f32>> {
                let own = variable
                    .as_detached_tensor()
                    .flatten_all()?
                    .to_vec1::<f32>()?;
                Ok(own
                    .iter()
                    .zip(&values)
                    .map(|(own, base)| own - base)
                    .collect())
            };
            let deltas = own.into_iter().map(delta).collect::<Result<_>>()?;
            vectors.names.push(key.to_owned());
            vectors.tensors.push(Shared {
                shape: info.shape.clone(),
                base: values,
                deltas,
            });
        }
        Ok(vectors)
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// `W⁰ + Σ λᵢ Δᵢ` of each tensor, added up in f64 and rounded once.
    pub(super) fn merged(&self, coefficients: &[Vec<f64>]) -> Vec<Vec<f32>> {
        let tensors = self.tensors.par_iter().enumerate();
        let merged = tensors.map(|(index, tensor)| {
            let mut sums: Vec<f64> = tensor.base.iter().map(|&value| value.into()).collect();
            for (delta, own) in tensor.deltas.iter().zip(coefficients) {
                for (sum, delta) in sums.iter_mut().zip(delta) {
                    *sum += own[index] * f64::from(*delta);
                }
            }
            sums.into_iter().map(|sum| sum as f32).collect()
        });
        merged.collect()
    }

    /// Gives a model's variables these values.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn set(&self, start: &Start, merged: &[Vec<f32>], device: &Device) -> Result<()> {
        let values: BTreeMap<&str, usize> = (self.names.iter().enumerate())
            .map(|(index, name)| (name.as_str(), index))
            .collect();
        for (name, variable) in &start.variables {
            let key = start.weights.key_of(name).unwrap_or(name);
            if let Some(&index) = values.get(key) {
                let shape = self.tensors[index].shape.as_slice();
                variable.set(&Tensor::from_slice(&merged[index], shape, device)?)?;
            }
        }
        Ok(())
    }

    /// Adds to `slope` the products of a model's gradients with each task vector: by model, then by tensor.
    ///
    /// # Errors
    /// [`Error::NotFinite`]; when the device fails.
    pub(super) fn along(
        &self,
        start: &Start,
        gradients: &Gradients,
        slope: &mut [Vec<f64>],
    ) -> Result<()> {
        let values: BTreeMap<&str, usize> = (self.names.iter().enumerate())
            .map(|(index, name)| (name.as_str(), index))
            .collect();
        for (name, variable) in &start.variables {
            let key = start.weights.key_of(name).unwrap_or(name);
            let Some(&index) = values.get(key) else {
                continue;
            };
            let held;
            let found: &[f32] = match gradients.get(variable) {
                None => continue,
                Some(Gradient::Host(values)) => values,
                Some(Gradient::Device(tensor)) => {
                    held = tensor
                        .to_dtype(DType::F32)?
                        .flatten_all()?
                        .to_vec1::<f32>()?;
                    &held
                }
            };
            for (delta, slope) in self.tensors[index].deltas.iter().zip(slope.iter_mut()) {
                let products = delta.iter().zip(found);
                let sum: f64 = products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                if !sum.is_finite() {
                    let part = format!("the gradient of `{key}`");
                    return Err(Error::NotFinite { part });
                }
                slope[index] += sum;
            }
        }
        Ok(())
    }
}
