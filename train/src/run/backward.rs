//! From the examples of a step to gradients, in one part or several.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::DType;
use evaluate::crossing;
use evaluate::models::Model;
use evaluate::nn::{Buffers, GivenDrops, Gradients, SideLosses, Tape};

use crate::batch::Batch;
use crate::collective::Collective;
use crate::objectives::{
    FeatureGradients, Negatives, Objective, Others, PairFeatures, PassWays, Passes, Randomness,
    RoutingOf, Shared, Step, Whole, draw_negatives,
};
use crate::{Error, Result};

/// Numbers of a step, summed over its parts.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// By name: sum and cases; averaged at the end, over all ranks.
    pub values: BTreeMap<String, (f64, f64)>,
    /// The first loss that is not finite.
    pub not_finite: Option<String>,
}

impl Told {
    /// Adds a sum over `n` cases.
    pub fn add(&mut self, name: &str, sum: f64, n: f64) {
        let (total, count) = self.values.entry(name.to_owned()).or_default();
        *total += sum;
        *count += n;
    }
}

/// The settings that the gradients of a step depend on, besides the examples.
pub struct Backward<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// The objectives, with weights.
    pub objectives: &'a [(Box<dyn Objective>, f64)],
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// The key of the draws.
    pub randomness: Randomness,
    /// Dropout masks in place of those that would be drawn, to compute what another program computed.
    pub drops: Option<&'a Arc<dyn GivenDrops>>,
    /// The choice of routers, instead of the model's own.
    pub routing: Option<&'a RoutingOf<'a>>,
    /// The factor of the balance of routers.
    pub balance: f64,
    /// The ranks that share the experts of mixtures, where they do.
    pub experts: Option<&'a Rc<dyn Collective>>,
    /// Whether the inside of blocks is computed again in the backward pass.
    pub recomputes: bool,
    /// Memory that is used again.
    pub buffers: &'a Buffers,
    /// The factor of losses before their gradients are computed.
    pub scale: f64,
    /// Parts of this rank's share of the batch, all of one size.
    pub n_parts: usize,
}

/// The findings of a first pass over all parts of this rank.
#[derive(Debug)]
pub struct Found {
    /// For each objective, where it is one of features.
    gradients: Vec<Option<FeatureGradients>>,
    negatives: Option<Negatives>,
    /// The first example of this rank in the whole batch.
    first: usize,
}

impl Backward<'_> {
    /// Whether the parts of a batch are passed through twice: an objective looks beyond its part.
    #[must_use]
    pub fn is_twice(&self) -> bool {
        looks_beyond(self.objectives, self.n_parts)
    }

    /// The first pass: features of all parts, without keeping what they are made of; then the losses of the
    /// whole batch by features, with their gradients, and negatives.
    ///
    /// # Errors
    /// When a part cannot be read, a rank is gone or the device fails.
    pub fn look(
        &self,
        parts: &mut dyn Iterator<Item = Result<Batch>>,
        told: &mut Told,
    ) -> Result<Found> {
        let shared = Shared::default();
        let mut features: Vec<Vec<Vec<PairFeatures>>> = vec![Vec::new(); self.objectives.len()];
        // Where negatives are drawn and no objective has features to draw by.
        let mut plain: Vec<Vec<PairFeatures>> = Vec::new();
        let mut objectives = self.objectives.iter().map(|(objective, _)| objective);
        let negatives = objectives
            .clone()
            .find_map(|objective| objective.negatives());
        let has_features = objectives.any(|objective| objective.of_features().is_some());
        let mut whole = Batch::default();
        for (number, batch) in parts.enumerate() {
            let batch = batch?;
            if number == 0 {
                whole.first = batch.first;
            }
            whole.n += batch.n;
            if let Some(numbers) = &batch.image_numbers {
                let all = whole.image_numbers.get_or_insert_default();
                all.extend_from_slice(numbers);
            }
            for ((objective, _), features) in self.objectives.iter().zip(&mut features) {
                let Some(objective) = objective.of_features() else {
                    continue;
                };
                let tape = Tape::checkpointing().reusing(self.buffers);
                let step = self.step(&batch, Some(&tape), &shared, None);
                let pairs = objective.features(&step)?;
                let pairs = pairs.iter().map(PairFeatures::detached);
                features.push(pairs.collect::<Result<_>>()?);
            }
            if negatives.is_some() && !has_features {
                let tape = Tape::checkpointing().reusing(self.buffers);
                let step = self.step(&batch, Some(&tape), &shared, None);
                let ways = PassWays::default();
                let pass = step.pass(&ways);
                plain.push(vec![PairFeatures::apart(&step, [&pass; 2])?.detached()?]);
            }
        }
        let step = self.step(&whole, None, &shared, None);
        let mut found = Found {
            gradients: Vec::with_capacity(self.objectives.len()),
            negatives: None,
            first: whole.first,
        };
        let mut compared = None;
        for ((objective, _), parts) in self.objectives.iter().zip(features) {
            let Some(objective) = objective.of_features() else {
                found.gradients.push(None);
                continue;
            };
            let pairs = PairFeatures::joined(parts)?;
            let gradients = FeatureGradients::of(objective, &pairs, &step)?;
            found.gradients.push(Some(gradients));
            if negatives.is_some() && compared.is_none() {
                compared = pairs.into_iter().next();
            }
        }
        if let Some(pairs) = negatives {
            let pair = match compared {
                Some(pair) => Some(pair),
                None => PairFeatures::joined(plain)?.into_iter().next(),
            };
            let pair = pair.ok_or(Error::NotInBatch { what: "features" })?;
            match draw_negatives(&pair, pairs, &step) {
                // All ranks go on to the end of the step, and learn of it there.
                Err(Error::NotFinite { part }) => {
                    told.not_finite.get_or_insert(part);
                }
                drawn => found.negatives = Some(drawn?),
            }
        }
        Ok(found)
    }

    /// Adds the gradients of every objective on a part of the batch. `found` and `others` are those of the
    /// whole batch, where there was a first pass.
    ///
    /// # Errors
    /// When the model lacks a head, a rank is gone or the device fails. A loss that is not finite is no
    /// error: `told` names it.
    pub fn learn(
        &self,
        batch: &Batch,
        found: Option<(&Found, &dyn Others)>,
        told: &mut Told,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let shared = Shared::default();
        let mut total = 0.0;
        let passes = self.objectives.iter().map(|(objective, _)| &**objective);
        let passes = Passes::of(passes, batch);
        let mut balanced: Option<f64> = None;
        for (number, (objective, weight)) in self.objectives.iter().enumerate() {
            let tape = match self.recomputes {
                true => Tape::checkpointing(),
                false => Tape::new(),
            }
            .reusing(self.buffers);
            let whole = found.map(|(found, others)| Whole {
                negatives: found.negatives.as_ref(),
                first: found.first,
                others,
            });
            let losses = SideLosses::new();
            let step = Step {
                side_losses: Some(&losses),
                ..self.step(batch, Some(&tape), &shared, whole.as_ref())
            };
            let of_whole = found.and_then(|(found, _)| {
                let gradients = found.gradients.get(number)?.as_ref()?;
                Some((gradients, found.first))
            });
            let loss = match (of_whole, objective.of_features()) {
                (Some((whole, first)), Some(objective)) => {
                    let features = objective.features(&step)?;
                    let row = batch.first - first;
                    whole.of_part(&features, row, self.n_parts, self.model.dual()?)
                }
                _ => objective.loss(&step),
            };
            let loss = match loss {
                // All ranks go on to the end of the step, and learn of it there.
                Err(Error::NotFinite { part }) => {
                    told.not_finite.get_or_insert(part);
                    continue;
                }
                loss => loss?,
            };
            if !loss.reported.is_finite() {
                let part = || format!("the loss {}", objective.name());
                told.not_finite.get_or_insert_with(part);
            }
            total += weight * loss.reported;
            told.add(&format!("loss/{}", objective.name()), loss.reported, 1.0);
            for (name, sum, n) in loss.measures {
                told.add(name, sum, n);
            }
            let mut value = (loss.value.to_dtype(DType::F32)? * (weight * self.scale))?;
            let balance = passes.balance(objective.as_ref(), batch, losses.take())?;
            if let Some(balance) = balance {
                let part = f64::from(crossing::number::<f32>(&balance)?);
                *balanced.get_or_insert_default() += part;
                if self.balance > 0.0 {
                    value = (value + (balance * (self.balance * self.scale))?)?;
                }
            }
            tape.backward(&value, gradients)?;
        }
        if let Some(balanced) = balanced {
            if !balanced.is_finite() {
                let part = "the balance of routers";
                told.not_finite.get_or_insert_with(|| part.to_owned());
            }
            told.add("loss/balance", balanced, 1.0);
            total += self.balance * balanced;
        }
        told.add("loss", total, 1.0);
        Ok(())
    }

    fn step<'s>(
        &'s self,
        batch: &'s Batch,
        tape: Option<&'s Tape>,
        shared: &'s Shared,
        whole: Option<&'s Whole<'s>>,
    ) -> Step<'s> {
        Step {
            model: self.model,
            batch,
            collective: self.collective,
            randomness: Some(self.randomness),
            drops: self.drops,
            routing: self.routing,
            side_losses: None,
            experts: self.experts,
            tape,
            shared,
            whole,
        }
    }
}

/// Whether an objective looks beyond one of `n_parts` parts, so that they are passed through twice.
#[must_use]
pub fn looks_beyond(objectives: &[(Box<dyn Objective>, f64)], n_parts: usize) -> bool {
    let mut objectives = objectives.iter().map(|(objective, _)| objective);
    n_parts > 1
        && objectives
            .any(|objective| objective.of_features().is_some() || objective.negatives().is_some())
}
