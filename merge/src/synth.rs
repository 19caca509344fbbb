//! Random checkpoints of published shape, for rehearsals, benches and training from scratch.
//!
//! A family says what a fresh model holds ([`Fresh`]). Weights are drawn as for a fresh model, except that
//! what a fresh model has at zero or one, and so alike in every expert, is moved a little: a merge of norms
//! or biases can then be seen. Experts start from one seed: each is the seed's weight plus a deviation of its
//! own, so that the distances between them are those of relatives. The same seed number gives the same seed
//! weights in every form and family of multiway models: `agnostic` is the seed of `all-specific`.

use std::fmt;
use std::sync::Arc;

use crate::convert::buffers;
use crate::io::Aliases;
use crate::layouts::{Buffer, CatalogSpec, ModelRecord};
use crate::plan::{Action, Entry, Generator, PlanBuilder};
use crate::random::Draws;
use crate::recipe::OutputDType;
use crate::{Error, MergePlan, ParamKind, Result, TensorInfo};

/// Deviation of an expert from its seed, in deviations of the seed's weights.
const EXPERT_DEVIATION: f32 = 0.1;

/// The size of fresh weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Standard deviation of linear weights and embeddings.
    pub deviation: f32,
    /// LayerScale of a fresh model, where the family has it.
    pub layer_scale: f32,
}

/// As published training from scratch starts, which is made for models of width 768. Much narrower
/// ones learn little from there.
impl Default for Spread {
    fn default() -> Self {
        Self {
            deviation: 0.02,
            layer_scale: 0.1,
        }
    }
}

/// The tensors of a fresh model of a family.
pub trait Fresh: fmt::Debug {
    /// Checks the sizes.
    ///
    /// # Errors
    /// [`Error::UnfitSizes`].
    fn check(&self) -> Result<()>;

    /// Every tensor of the checkpoint, in any order.
    fn tensors(&self, spread: Spread) -> Vec<FreshTensor>;

    /// Other names of its tensors, each with the tensor's.
    fn aliases(&self) -> Aliases {
        Aliases::new()
    }

    /// Facts that the weights will not hold.
    fn record(&self) -> ModelRecord;

    /// Family, form and sizes, for provenance.
    fn describe(&self) -> String;
}

/// The distribution of a tensor's elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Distribution {
    /// A normal one, of the tensor's mean and deviation.
    #[default]
    Normal,
    /// A uniform one from minus this to this. It is drawn for biases of a fresh model, too.
    Uniform(f32),
}

/// A tensor of a fresh model.
#[derive(Clone, Debug)]
pub struct FreshTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Shape, and the element type of published checkpoints.
    pub info: TensorInfo,
    /// Its kind.
    pub kind: ParamKind,
    /// The mean of its elements.
    pub mean: f32,
    /// Their standard deviation.
    pub deviation: f32,
    /// The distribution of its elements.
    pub distribution: Distribution,
    /// The name that its draws are keyed by.
    pub draw: String,
    /// For an expert's copy the name that the draws of its seed are keyed by.
    pub seed: Option<String>,
    /// The values of a buffer, which are not drawn.
    pub buffer: Option<Buffer>,
}

impl FreshTensor {
    /// A buffer that a loader rebuilds.
    #[must_use]
    pub fn buffer(name: String, buffer: Buffer) -> Self {
        Self {
            info: buffer.info.clone(),
            kind: ParamKind::Other,
            mean: 0.0,
            deviation: 0.0,
            distribution: Distribution::Normal,
            draw: name.clone(),
            seed: None,
            buffer: Some(buffer),
            name,
        }
    }
}

/// A random checkpoint.
#[derive(Clone, Debug)]
pub struct Synthesis<S = CatalogSpec> {
    /// The sizes of the model.
    pub spec: S,
    /// The seed of the draws.
    pub seed: u64,
    /// The size of the weights.
    pub spread: Spread,
    /// Element type of the parameters; `Keep` is f32.
    pub dtype: OutputDType,
    /// Start as training from scratch does: what a fresh model has at zero or one stays there, and
    /// experts begin as copies of their seed.
    pub is_fresh: bool,
}

impl<S: Fresh> Synthesis<S> {
    /// Says how every tensor is made.
    ///
    /// # Errors
    /// [`Error::UnfitSizes`].
    pub fn plan(&self) -> Result<MergePlan> {
        self.spec.check()?;
        self.spread.check()?;
        let mut builder = PlanBuilder::new(self.recipe());
        for tensor in self.spec.tensors(self.spread) {
            builder.add(self.entry(tensor))?;
        }
        for (name, of) in self.spec.aliases() {
            builder.alias(&name, &of)?;
        }
        builder.model(self.spec.record()).finish()
    }

    /// The entry that makes a tensor.
    pub(crate) fn entry(&self, tensor: FreshTensor) -> Entry {
        match tensor.buffer {
            Some(buffer) => buffers::entry(tensor.name, buffer),
            None => self.parameter(tensor),
        }
    }

    fn parameter(&self, tensor: FreshTensor) -> Entry {
        let info = TensorInfo {
            dtype: self.dtype.apply(tensor.info.dtype),
            shape: tensor.info.shape.clone(),
        };
        if let Distribution::Uniform(bound) = tensor.distribution {
            let draws = Draws::new(self.seed, &tensor.draw);
            return Entry {
                info,
                action: Action::Generate(Arc::new(Uniform { bound, draws })),
                why: format!("uniform in ±{bound:.2e}"),
                name: tensor.name,
            };
        }
        let mean = tensor.mean;
        let is_drawn_when_fresh =
            matches!(tensor.kind, ParamKind::LinearWeight | ParamKind::Embedding);
        let deviation = match self.is_fresh && !is_drawn_when_fresh {
            true => 0.0,
            false => tensor.deviation,
        };
        let seed_key = tensor.seed.as_ref().unwrap_or(&tensor.draw);
        let mut parts = vec![(Draws::new(self.seed, seed_key), deviation)];
        let mut why = match deviation {
            0.0 => format!("{mean}"),
            _ => format!("{mean} ± {deviation:.2e}"),
        };
        if tensor.seed.is_some() && !self.is_fresh {
            let own = deviation * EXPERT_DEVIATION;
            parts.push((Draws::new(self.seed, &tensor.draw), own));
            why = format!("`{seed_key}` of the seed ± {own:.2e}");
        }
        parts.retain(|(_, deviation)| *deviation > 0.0);
        Entry {
            info,
            action: Action::Generate(Arc::new(Fill { mean, parts })),
            name: tensor.name,
            why,
        }
    }

    fn recipe(&self) -> String {
        format!(
            "synth: {{ {}, seed: {}, fresh: {}, {:?} }}",
            self.spec.describe(),
            self.seed,
            self.is_fresh,
            self.spread
        )
    }
}

impl Spread {
    /// The published spread, with the given values in its place.
    #[must_use]
    pub fn given(deviation: Option<f32>, layer_scale: Option<f32>) -> Self {
        let published = Self::default();
        Self {
            deviation: deviation.unwrap_or(published.deviation),
            layer_scale: layer_scale.unwrap_or(published.layer_scale),
        }
    }

    fn check(self) -> Result<()> {
        let is_fit = |value: f32| value.is_finite() && value >= 0.0;
        match is_fit(self.deviation) && is_fit(self.layer_scale) {
            true => Ok(()),
            false => Err(Error::UnfitSizes {
                reason: "deviation and LayerScale must be finite and not below zero",
            }),
        }
    }
}

/// Draws that are as likely anywhere between two bounds.
struct Uniform {
    bound: f32,
    draws: Draws,
}

impl Generator for Uniform {
    fn fill(&self, first: usize, out: &mut [f32]) {
        self.draws.fill_uniform(first, out);
        for value in out {
            *value = self.bound * (2.0 * *value - 1.0);
        }
    }
}

/// A mean plus scaled normal draws.
struct Fill {
    mean: f32,
    parts: Vec<(Draws, f32)>,
}

impl Generator for Fill {
    fn fill(&self, first: usize, out: &mut [f32]) {
        out.fill(self.mean);
        for (draws, deviation) in &self.parts {
            draws.add_normal(*deviation, first, out);
        }
    }
}
