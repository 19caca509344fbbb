//! From gradients to new weights.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::nn::{Gradient, Gradients};

use super::state_file::{Moment, Moments};
use crate::collective::Collective;
use crate::optim::clip::{clip_factor, square_sum};
use crate::optim::{AdamW, Ema, GroupKind, OptimSettings, ParamGroups, Schedule, Step};
use crate::{Error, Result};

/// The optimizer of a run.
pub struct Updater {
    rule: AdamW,
    schedule: Schedule,
    groups: ParamGroups,
    max_norm: Option<f64>,
    moments: Moments,
    average: Option<Ema>,
}

/// What an update was made of.
#[derive(Clone, Copy, Debug)]
pub struct Updated {
    /// The body's rate.
    pub rate: f64,
    /// The norm of all gradients together.
    pub norm: f64,
}

impl Updater {
    /// For these variables, each of which must be in just one group.
    ///
    /// # Errors
    /// When a setting is out of range or matches nothing.
    pub fn new(
        settings: &OptimSettings,
        total_steps: u64,
        variables: &BTreeMap<String, Var>,
    ) -> Result<Self> {
        settings.check()?;
        let shapes = variables
            .iter()
            .map(|(name, var)| (name.as_str(), var.dims()));
        let groups = ParamGroups::of(shapes, &settings.groups())?;
        groups.check(variables.keys().map(String::as_str))?;
        let average = settings.ema.map(|decay| Ema::new(decay, variables));
        Ok(Self {
            rule: settings.adamw(),
            schedule: settings.schedule(total_steps),
            groups,
            max_norm: settings.max_norm,
            moments: Moments::default(),
            average: average.transpose()?,
        })
    }

    /// Variables that are not frozen.
    pub fn trained<'a>(
        &'a self,
        variables: &'a BTreeMap<String, Var>,
    ) -> impl Iterator<Item = (&'a String, &'a Var)> {
        variables.iter().filter(|(name, _)| {
            let group = self.groups.group(name);
            group.is_ok_and(|group| group.kind != GroupKind::Frozen)
        })
    }

    /// Moments and averages, as a state file keeps them.
    #[must_use]
    pub fn kept_moments(&self) -> &Moments {
        &self.moments
    }

    /// Puts the averages of the weights among what is kept.
    pub fn gather_averages(&mut self) {
        if let Some(average) = &self.average {
            let averages = average.averages().iter();
            self.moments.averages = averages
                .map(|(name, tensor)| (name.clone(), Moment::Device(tensor.clone())))
                .collect();
        }
    }

    /// Takes up kept moments.
    ///
    /// # Errors
    /// [`Error::BadState`]-like errors are the caller's; here only the device can fail.
    pub fn resume(
        &mut self,
        moments: Moments,
        settings: &OptimSettings,
        variables: &BTreeMap<String, Var>,
    ) -> Result<()> {
        if let Some(decay) = settings.ema {
            let mut averages = BTreeMap::new();
            for (name, moment) in &moments.averages {
                let Some(variable) = variables.get(name) else {
                    continue;
                };
                let values = moment.values()?.into_owned();
                let tensor = Tensor::from_vec(values, variable.dims(), &Device::Cpu)?;
                averages.insert(name.clone(), tensor.to_device(variable.device())?);
            }
            self.average = Some(Ema::resumed(decay, averages));
        }
        self.moments = moments;
        Ok(())
    }

    /// Averages of the weights in the place of the weights, or back again.
    ///
    /// # Errors
    /// When the device fails.
    pub fn swap_averages(&mut self, variables: &BTreeMap<String, Var>) -> Result<()> {
        match &mut self.average {
            Some(average) => average.swap(variables),
            None => Ok(()),
        }
    }

    /// Adds up the gradients of all ranks, of those variables that any of them has reached.
    ///
    /// # Errors
    /// When a rank is gone.
    pub fn exchange(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &mut Gradients,
        collective: &dyn Collective,
    ) -> Result<()> {
        if collective.size() == 1 {
            return Ok(());
        }
        // What no rank has reached stays without a gradient: zeros would let it decay.
        let reached = self
            .trained(variables)
            .map(|(_, variable)| gradients.get(variable).is_some());
        let mut reached: Vec<f64> = reached
            .map(|reached| f64::from(u8::from(reached)))
            .collect();
        collective.sum_f64(&mut reached)?;
        for ((_, variable), reached) in self.trained(variables).zip(reached) {
            if reached == 0.0 {
                continue;
            }
            if let Some(values) = gradients.host(variable) {
                collective.sum(values)?;
                continue;
            }
            let own = match gradients.get(variable) {
                Some(Gradient::Device(own)) => own.clone(),
                _ => variable.zeros_like()?,
            };
            let sum = collective.sum_tensor(&own)?;
            gradients.set(variable, sum);
        }
        Ok(())
    }

    /// The norm of all gradients together, each times `factor`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn norm(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        factor: f64,
    ) -> Result<f64> {
        let mut sum = 0.0;
        for (_, variable) in self.trained(variables) {
            sum += match gradients.get(variable) {
                None => 0.0,
                Some(Gradient::Host(values)) => square_sum(values),
                Some(Gradient::Device(tensor)) => {
                    let squares = tensor.to_dtype(DType::F32)?.sqr()?.sum_all()?;
                    f64::from(squares.to_scalar::<f32>()?)
                }
            };
        }
        Ok(sum.sqrt() * factor)
    }

    /// The first variable whose gradient is not finite.
    ///
    /// # Errors
    /// When the device fails.
    pub fn not_finite(
        &self,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
    ) -> Result<Option<String>> {
        for (name, variable) in self.trained(variables) {
            let is_finite = match gradients.get(variable) {
                None => true,
                Some(Gradient::Host(values)) => values.iter().all(|value| value.is_finite()),
                Some(Gradient::Device(tensor)) => {
                    let sum = tensor.to_dtype(DType::F32)?.abs()?.sum_all()?;
                    sum.to_scalar::<f32>()?.is_finite()
                }
            };
            if !is_finite {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Makes update number `index`, counted from 0, with gradients times `factor`, whose norm is
    /// `norm`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn update(
        &mut self,
        index: u64,
        variables: &BTreeMap<String, Var>,
        gradients: &Gradients,
        factor: f64,
        norm: f64,
    ) -> Result<Updated> {
        let rate = self.schedule.rate(index);
        let clipped = self.max_norm.map_or(1.0, |max| clip_factor(norm, max));
        for (name, variable) in variables {
            let group = self.groups.group(name)?;
            if group.kind == GroupKind::Frozen {
                continue;
            }
            let Some(gradient) = gradients.get(variable) else {
                continue;
            };
            let step = Step {
                index,
                rate: rate * group.rate_factor,
                decay: group.decay,
                gradient_scale: factor * clipped,
            };
            let (m, v) = self.moments.of(name, variable)?;
            match (gradient, m, v) {
                (Gradient::Host(g), Moment::Host(m), Moment::Host(v)) => {
                    let range = 0..g.len();
                    self.rule
                        .update_in_place_by(step, variable, g, range, m, v)?;
                }
                (Gradient::Device(g), Moment::Device(m), Moment::Device(v)) => {
                    let g = g.to_dtype(DType::F32)?;
                    (*m, *v) = self.rule.update_by_operations(step, variable, &g, m, v)?;
                }
                _ => return Err(Error::OtherMoments { name: name.clone() }),
            }
        }
        if let Some(average) = &mut self.average {
            average.update(variables)?;
        }
        Ok(Updated { rate, norm })
    }
}
