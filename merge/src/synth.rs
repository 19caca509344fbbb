//! Random checkpoints of published shape, for rehearsals and benches without a download.
//!
//! Weights are drawn as for a fresh model, except that what a fresh model has at zero or one, and
//! so alike in every expert, is moved a little: a merge of norms or biases can then be seen.
//! Experts start from one seed: each is the seed's weight plus a deviation of its own, so that the
//! distances between them are those of relatives. The same seed number gives the same seed weights
//! in every form and family: `agnostic` is the seed of `all-specific`.

use std::sync::Arc;

use crate::beside::Beside;
use crate::convert::buffers;
use crate::layouts::{CatalogSpec, Form, ModelRecord, beit, catalog, vl_merging, vlmo};
use crate::plan::{Action, Entry, Generator};
use crate::random::Draws;
use crate::recipe::OutputDType;
use crate::{Error, MergePlan, ParamKind, Result, Role, TensorInfo};

/// Deviation of an expert from its seed, in deviations of the seed's weights.
const EXPERT_DEVIATION: f32 = 0.1;

/// Logit scale of a fresh model: ln(1 / 0.07).
const LOGIT_SCALE: f32 = 2.659_26;

/// How large fresh weights are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Standard deviation of linear weights and embeddings.
    pub deviation: f32,
    /// LayerScale of a fresh model.
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

/// A random checkpoint.
#[derive(Clone, Debug)]
pub struct Synthesis {
    /// Family, form, sizes and heads.
    pub spec: CatalogSpec,
    /// What the draws are keyed by.
    pub seed: u64,
    /// How large the weights are.
    pub spread: Spread,
    /// Element type of the parameters; `Keep` is f32.
    pub dtype: OutputDType,
    /// Start as training from scratch does: what a fresh model has at zero or one stays there, and
    /// experts begin as copies of their seed.
    pub is_fresh: bool,
}

impl Synthesis {
    /// Says how every tensor is made.
    ///
    /// # Errors
    /// [`Error::UnfitSizes`].
    pub fn plan(&self) -> Result<MergePlan> {
        self.spec.sizes.check()?;
        self.spread.check()?;
        let window = self.spec.window();
        let entries = catalog(&self.spec)
            .into_iter()
            .map(|(name, info, kind)| match window.buffer(&name) {
                Some(buffer) => buffers::entry(name, buffer),
                None => self.parameter(name, info, kind),
            })
            .collect();
        Ok(MergePlan {
            recipe: self.recipe(),
            sources: Vec::new(),
            stages: Vec::new(),
            grams: Vec::new(),
            gram_uses: Vec::new(),
            model: self.record(),
            entries,
            dropped: Vec::new(),
            beside: Beside::default(),
        })
    }

    /// What the weights will not tell. BEiT's have no text and no fusion.
    fn record(&self) -> ModelRecord {
        let record = ModelRecord::from(&self.spec.sizes);
        match self.spec.form {
            form if form.is_beit() => ModelRecord {
                heads: record.heads,
                ..ModelRecord::default()
            },
            Form::VlmoAbsolute => ModelRecord {
                text_table_len: None,
                ..record
            },
            _ => record,
        }
    }

    fn parameter(&self, name: String, info: TensorInfo, kind: ParamKind) -> Entry {
        let key = agnostic_spelling(&name, self.spec.form.is_beit());
        let (mean, mut deviation) = self.spread.of(&key, kind);
        if self.is_fresh && !matches!(kind, ParamKind::LinearWeight | ParamKind::Embedding) {
            deviation = 0.0;
        }
        let (seed_key, is_expert) = match vl_merging::role_of(&key) {
            Some(Role::Expert { slot, .. }) => (slot.key, true),
            _ => (key.clone(), false),
        };
        let mut parts = vec![(Draws::new(self.seed, &seed_key), deviation)];
        let mut why = match deviation {
            0.0 => format!("{mean}"),
            _ => format!("{mean} ± {deviation:.2e}"),
        };
        if is_expert && !self.is_fresh {
            let own = deviation * EXPERT_DEVIATION;
            parts.push((Draws::new(self.seed, &key), own));
            why = format!("`{seed_key}` of the seed ± {own:.2e}");
        }
        parts.retain(|(_, deviation)| *deviation > 0.0);
        Entry {
            name,
            info: TensorInfo {
                dtype: self.dtype.apply(info.dtype),
                ..info
            },
            action: Action::Generate(Arc::new(Fill { mean, parts })),
            why,
        }
    }

    fn recipe(&self) -> String {
        let CatalogSpec { form, heads, .. } = &self.spec;
        format!(
            "synth: {{ form: {form:?}, heads: {heads:?}, seed: {}, fresh: {}, sizes: {:?}, {:?} }}",
            self.seed, self.is_fresh, self.spec.sizes, self.spread
        )
    }
}

/// The key in vl-merging spelling.
fn agnostic_spelling(name: &str, is_beit: bool) -> String {
    if is_beit {
        beit::prefixed(name)
    } else {
        vlmo::to_vl_merging(name)
    }
}

impl Spread {
    /// The published spread with what is given in its place.
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

    /// Mean and standard deviation of a fresh parameter, by its key in vl-merging spelling.
    fn of(self, key: &str, kind: ParamKind) -> (f32, f32) {
        match kind {
            ParamKind::Norm if key.ends_with("weight") => (1.0, self.deviation),
            ParamKind::Scale if key.contains("gamma_") => {
                (self.layer_scale, self.layer_scale / 10.0)
            }
            ParamKind::Scale => (LOGIT_SCALE, 0.0),
            ParamKind::LinearWeight => (0.0, self.deviation * residual_share(key)),
            _ => (0.0, self.deviation),
        }
    }
}

/// Weights of the residual branches of block i shrink by √(2 (i + 1)), as in the published start.
fn residual_share(key: &str) -> f32 {
    let (Some(Role::Shared(slot)) | Some(Role::Expert { slot, .. })) = vl_merging::role_of(key)
    else {
        return 1.0;
    };
    match slot.block {
        Some(block) if slot.module != "attn.qkv" => 1.0 / (2.0 * (block as f32 + 1.0)).sqrt(),
        _ => 1.0,
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
