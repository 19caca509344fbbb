//! Sums of gradients, by variable.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var};
use faer::Accum;

use super::cpu::{self, ops, slices};

/// Gradients of the variables that were asked for, summed over every pass that adds to them.
///
/// On the CPU in f32 a sum is a plain vector that is kept from step to step, so that fused kernels
/// add to it in place.
#[derive(Default)]
pub struct Gradients {
    sums: HashMap<TensorId, Sum>,
}

/// The gradient of a variable so far.
#[derive(Debug)]
enum Sum {
    /// In memory; meaningless until something has reached it.
    Host { values: Vec<f32>, is_reached: bool },
    /// On another device, or in another dtype.
    Device(Option<Tensor>),
}

/// The gradient of a variable.
#[derive(Clone, Copy, Debug)]
pub enum Gradient<'a> {
    /// Values in memory, row-major.
    Host(&'a [f32]),
    /// A tensor on another device, or in another dtype.
    Device(&'a Tensor),
}

impl Gradients {
    /// Of these variables; those of others are passed over.
    #[must_use]
    pub fn of<'a>(variables: impl IntoIterator<Item = &'a Var>) -> Self {
        let sums = variables.into_iter().map(|variable| {
            let sum = match cpu::takes(variable) {
                true => Sum::Host {
                    values: Vec::new(),
                    is_reached: false,
                },
                false => Sum::Device(None),
            };
            (variable.id(), sum)
        });
        Self {
            sums: sums.collect(),
        }
    }

    /// Starts again, as if nothing had reached any variable.
    pub fn clear(&mut self) {
        for sum in self.sums.values_mut() {
            match sum {
                Sum::Host { is_reached, .. } => *is_reached = false,
                Sum::Device(sum) => *sum = None,
            }
        }
    }

    /// Adds a gradient of `variable`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    pub fn add(&mut self, variable: &Tensor, gradient: &Tensor) -> Result<()> {
        self.add_to(variable.id(), gradient)
    }

    fn add_to(&mut self, id: TensorId, gradient: &Tensor) -> Result<()> {
        match self.sums.get_mut(&id) {
            None => Ok(()),
            Some(Sum::Host { values, is_reached }) => ops::with_slices([gradient], |[gradient]| {
                add_to_host(values, is_reached, gradient);
            }),
            Some(Sum::Device(sum)) => {
                *sum = Some(match sum.take() {
                    Some(sum) => (sum + gradient)?,
                    None => gradient.clone(),
                });
                Ok(())
            }
        }
    }

    /// Adds values to the gradient of a variable on the CPU in f32.
    pub(crate) fn add_values(&mut self, variable: &Tensor, gradient: &[f32]) {
        if let Some(Sum::Host { values, is_reached }) = self.sums.get_mut(&variable.id()) {
            add_to_host(values, is_reached, gradient);
        }
    }

    /// The values of the sum for a variable on the CPU in f32, and whether a kernel is to add to
    /// them or to write over them, as nothing has reached the variable yet. `None` for variables
    /// that are not watched.
    pub(crate) fn sum(&mut self, variable: &Tensor) -> Option<(&mut [f32], Accum)> {
        match self.sums.get_mut(&variable.id())? {
            Sum::Host { values, is_reached } => {
                values.resize(variable.elem_count(), 0.0);
                let accum = match std::mem::replace(is_reached, true) {
                    true => Accum::Add,
                    false => Accum::Replace,
                };
                Some((values, accum))
            }
            Sum::Device(_) => None,
        }
    }

    /// Adds what a backward pass found.
    ///
    /// # Errors
    /// When the device fails.
    pub fn absorb(&mut self, found: &GradStore) -> Result<()> {
        for &id in found.get_ids() {
            if let Some(gradient) = found.get_id(id) {
                self.add_to(id, gradient)?;
            }
        }
        Ok(())
    }

    /// The sum for a variable; `None` where nothing reached it.
    #[must_use]
    pub fn get(&self, variable: &Tensor) -> Option<Gradient<'_>> {
        match self.sums.get(&variable.id())? {
            Sum::Host { values, is_reached } => is_reached.then_some(Gradient::Host(values)),
            Sum::Device(sum) => sum.as_ref().map(Gradient::Device),
        }
    }

    /// The values of the sum for a variable on the CPU in f32, zeros where nothing reached it, to
    /// be changed in place; `None` for other variables.
    pub fn host(&mut self, variable: &Tensor) -> Option<&mut [f32]> {
        match self.sums.get_mut(&variable.id())? {
            Sum::Host { values, is_reached } => {
                if !std::mem::replace(is_reached, true) {
                    values.clear();
                    values.resize(variable.elem_count(), 0.0);
                }
                Some(values)
            }
            Sum::Device(_) => None,
        }
    }

    /// Puts another gradient in place of a sum, as after an exchange between ranks.
    pub fn set(&mut self, variable: &Tensor, gradient: Tensor) {
        if let Some(Sum::Device(sum)) = self.sums.get_mut(&variable.id()) {
            *sum = Some(gradient);
        }
    }
}

fn add_to_host(values: &mut Vec<f32>, is_reached: &mut bool, gradient: &[f32]) {
    match std::mem::replace(is_reached, true) {
        true => slices::add_into(values, gradient),
        false => {
            values.clear();
            values.extend_from_slice(gradient);
        }
    }
}
