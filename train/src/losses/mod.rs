//! Losses over given tensors: what `vlmerge forward --loss` computes, and what golden tests compare.
//!
//! One row for each loss of each family, by the names of the golden folders. The loss itself is an
//! objective's.

mod clip;
mod eve;
mod flm;
mod multiway;
mod two_towers;
mod vit;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Tensor};
use evaluate::Weights;
use evaluate::forward::Given;
use evaluate::models::{Dvae, Model};
use evaluate::nn::{Gradient, Gradients, Routing, SideLosses, Tape};

use crate::batch::Batch;
use crate::collective::Alone;
use crate::objectives::{
    BALANCE_WEIGHT, ContrastSettings, FeatureLoss, LanguageSettings, MixDraw, Objective, Opening,
    PairSettings, Passes, Randomness, Shared, Step,
};
use crate::{Error, Result, objectives};

/// A loss of a family.
pub struct LossSpec {
    /// The family of models.
    pub family: &'static str,
    /// Its name in the golden folders.
    pub name: &'static str,
    /// The objective that computes it, by its name in recipes.
    pub objective: &'static str,
    /// Further objectives that are added to it.
    pub beside: &'static [&'static str],
    /// The part of the balance of routers in the loss.
    pub balance: BalancePart,
    /// The pairs that belong together, if it takes others than recipes do by default.
    pub pairs: Option<PairSettings>,
    /// Passes of the objectives by their names, each with the number by which tensors for its routers are called.
    pub passes: &'static [(&'static str, usize)],
    /// The settings of guessing words, if it has others than recipes do by default.
    pub language: Option<LanguageSettings>,
    /// The tensors that it reads.
    pub inputs: &'static [&'static str],
    /// The batch that they make.
    pub batch: fn(&Given) -> Result<Batch>,
}

/// The part of the balance of routers in a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BalancePart {
    /// None.
    None,
    /// It is added.
    Added,
    /// It is all of the loss.
    Alone,
}

/// Every loss.
pub const LOSSES: &[&[LossSpec]] = &[
    multiway::LOSSES,
    two_towers::LOSSES,
    flm::LOSSES,
    eve::LOSSES,
    clip::LOSSES,
    vit::LOSSES,
];

/// The settings that a loss depends on beside the tensors.
#[derive(Clone, Default)]
pub struct LossOptions {
    /// The mix of pairs, for losses that mix.
    pub mix: Option<MixDraw>,
    /// The settings of comparing images and texts, for losses that do.
    pub contrast: Option<ContrastSettings>,
    /// The settings of guessing words, for losses that do.
    pub language: Option<LanguageSettings>,
    /// The tokenizer of images, for losses that guess their tokens.
    pub image_tokenizer: Option<Arc<Dvae>>,
}

/// A loss with its gradients.
#[derive(Debug)]
pub struct Computed {
    /// The loss.
    pub loss: f64,
    /// Further numbers, such as accuracies.
    pub measures: Vec<(&'static str, f64)>,
    /// The gradient of every variable that it reaches, in f32, by the variable's name.
    pub gradients: BTreeMap<String, Tensor>,
}

/// Every loss of a family.
pub fn of_family(family: &str) -> impl Iterator<Item = &'static LossSpec> {
    let all = LOSSES.iter().flat_map(|losses| losses.iter());
    all.filter(move |loss| loss.family == family)
}

/// The loss of a family by its name in the golden folders or in recipes.
///
/// # Errors
/// [`Error::UnknownLoss`] with those of the family.
pub fn by_name(family: &str, name: &str) -> Result<&'static LossSpec> {
    let found = of_family(family).find(|loss| loss.name == name);
    let is_only = |loss: &&LossSpec| loss.objective == name && loss.beside.is_empty();
    let found = found.or_else(|| of_family(family).find(is_only));
    found.ok_or_else(|| {
        let known: Vec<&str> = of_family(family).map(|loss| loss.name).collect();
        Error::UnknownLoss {
            name: name.to_owned(),
            family: family.to_owned(),
            known: known.join(", "),
        }
    })
}

impl LossSpec {
    /// The loss of one objective, as recipes have it unless they say otherwise.
    const fn of(
        family: &'static str,
        name: &'static str,
        objective: &'static str,
        inputs: &'static [&'static str],
        batch: fn(&Given) -> Result<Batch>,
    ) -> Self {
        Self {
            family,
            name,
            objective,
            beside: &[],
            balance: BalancePart::None,
            pairs: None,
            passes: &[],
            language: None,
            inputs,
            batch,
        }
    }

    /// The objective, for a batch of `n` examples.
    ///
    /// # Errors
    /// [`Error::NoImageTokenizer`]; [`Error::BadSetting`] for options that do not fit together, or that the
    /// loss does not read.
    pub fn objective(&self, options: &LossOptions, n: usize) -> Result<Box<dyn Objective>> {
        let spec = objectives::spec(self.objective)?;
        let unread = [
            (
                "contrast",
                options.contrast.is_some() && !spec.reads("contrast"),
            ),
            (
                "language",
                options.language.is_some() && !spec.reads("language"),
            ),
            (
                "image_tokenizer",
                options.image_tokenizer.is_some() && !spec.needs.masked_patches,
            ),
        ];
        if let Some((key, _)) = unread.into_iter().find(|(_, is_unread)| *is_unread) {
            return Err(self.bad(key, "does not read it"));
        }
        let objective = (spec.open)(&Opening {
            image_tokenizer: options.image_tokenizer.as_ref(),
            contrast: options.contrast,
            language: options.language.or(self.language),
            pairs: self.pairs,
            part: n,
            ..Opening::default()
        })?;
        let mixes = objective.of_features().is_some_and(FeatureLoss::mixes);
        match (mixes, options.mix) {
            (true, None) => Err(self.bad("mix", "needs a share and a side")),
            (false, Some(_)) => Err(self.bad("mix", "mixes nothing")),
            _ => Ok(objective),
        }
    }

    fn bad(&self, key: &str, fault: &str) -> Error {
        Error::BadSetting {
            key: key.into(),
            reason: format!("the loss `{}` {fault}", self.name),
        }
    }

    /// The batch of given tensors.
    ///
    /// # Errors
    /// When one of [`LossSpec::inputs`] is missing, or sizes disagree.
    pub fn batch(&self, given: &Given) -> Result<Batch> {
        given.check(self.name, self.inputs)?;
        (self.batch)(given)
    }

    /// All objectives of the loss, for a batch of `n` examples: the one of its name first.
    fn objectives(&self, options: &LossOptions, n: usize) -> Result<Vec<Box<dyn Objective>>> {
        let mut objectives = vec![self.objective(options, n)?];
        for name in self.beside {
            objectives.push((objectives::spec(name)?.open)(&Opening {
                pairs: self.pairs,
                part: n,
                ..Opening::default()
            })?);
        }
        Ok(objectives)
    }

    /// The loss and its gradients, where the weights of `model` are variables of `weights`: by tape, as
    /// training computes them. Nothing is left out at random.
    ///
    /// # Errors
    /// As [`LossSpec::batch`] and [`LossSpec::objective`], when the model lacks a head, or the device fails.
    pub fn compute(
        &self,
        model: &dyn Model,
        weights: &Weights,
        given: &Given,
        options: &LossOptions,
    ) -> Result<Computed> {
        self.compute_by(model, weights, given, options, &|| Some(Tape::new()))
    }

    /// The same, recorded on tapes that `tape` gives, one for each objective, or as one graph.
    ///
    /// # Errors
    /// As [`LossSpec::compute`].
    pub fn compute_by(
        &self,
        model: &dyn Model,
        weights: &Weights,
        given: &Given,
        options: &LossOptions,
        tape: &dyn Fn() -> Option<Tape>,
    ) -> Result<Computed> {
        let batch = self.batch(given)?;
        let objectives = self.objectives(options, batch.n)?;
        let passes = Passes::of(objectives.iter().map(|objective| &**objective), &batch);
        let mut routings: BTreeMap<&str, Routing> = BTreeMap::new();
        for &(name, number) in self.passes {
            let routing = model.named_passes()?.routing(given, number)?;
            routings.extend(routing.map(|routing| (name, routing)));
        }
        let routing = |name: &str| routings.get(name).cloned();
        let (shared, variables) = (Shared::default(), weights.variables());
        let mut gradients = Gradients::of(variables.values());
        let (mut sum, mut measures) = (0.0, Vec::new());
        for objective in &objectives {
            let (tape, losses) = (tape(), SideLosses::new());
            let step = Step {
                randomness: options.mix.map(Randomness::mixing),
                routing: Some(&routing),
                side_losses: Some(&losses),
                tape: tape.as_ref(),
                ..Step::plain(model, &batch, &Alone, &shared)
            };
            let loss = objective.loss(&step)?;
            measures.extend(loss.measures.iter().map(|&(name, sum, n)| (name, sum / n)));
            let mut value = match self.balance {
                BalancePart::Alone => None,
                _ => {
                    sum += loss.reported;
                    Some(loss.value.to_dtype(DType::F32)?)
                }
            };
            let balance = match self.balance {
                BalancePart::None => None,
                _ => passes.balance(objective.as_ref(), &batch, losses.take())?,
            };
            if let Some(balance) = balance {
                let balance = (balance * BALANCE_WEIGHT)?;
                sum += f64::from(balance.to_scalar::<f32>()?);
                value = Some(match value {
                    Some(value) => (value + balance)?,
                    None => balance,
                });
            }
            match (value, tape) {
                (Some(value), Some(tape)) => tape.backward(&value, &mut gradients)?,
                (Some(value), None) => gradients.absorb(&value.backward()?)?,
                (None, _) => {}
            }
        }
        let mut by_name = BTreeMap::new();
        for (name, variable) in variables {
            let gradient = match gradients.get(&variable) {
                Some(Gradient::Host(values)) => {
                    Tensor::from_slice(values, variable.shape(), given.device())?
                }
                Some(Gradient::Device(gradient)) => gradient.to_dtype(DType::F32)?,
                None => continue,
            };
            by_name.insert(name, gradient);
        }
        Ok(Computed {
            loss: sum,
            measures,
            gradients: by_name,
        })
    }
}

/// A batch of images.
fn images(given: &Given, name: &str) -> Result<Batch> {
    let image = given.images(name)?;
    Ok(Batch {
        n: image.pixels.dim(0)?,
        image: Some(image),
        ..Batch::default()
    })
}

/// A batch of images with their texts, of which `text` names the ids and the mask.
fn pairs(given: &Given, image: &str, text: [&str; 2]) -> Result<Batch> {
    let [ids, mask] = text;
    Ok(Batch {
        text: Some(given.texts(ids, mask)?),
        ..images(given, image)?
    })
}
