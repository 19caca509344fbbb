//! The first values of a fresh multiway model.

use crate::layouts::ModelRecord;
use crate::synth::{Distribution, Fresh, FreshTensor, Spread};
use crate::{ParamKind, Result, Role};

use super::{CatalogSpec, Form, beit, catalog, vl_merging, vlmo};

/// Logit scale of a fresh model: ln(1 / 0.07).
const LOGIT_SCALE: f32 = 2.659_26;

impl Fresh for CatalogSpec {
    fn check(&self) -> Result<()> {
        self.sizes.check()
    }

    fn tensors(&self, spread: Spread) -> Vec<FreshTensor> {
        let window = self.window();
        let tensors = catalog(self).into_iter();
        let tensors = tensors.map(|(name, info, kind)| {
            if let Some(buffer) = window.buffer(&name) {
                return FreshTensor::buffer(name, buffer);
            }
            let draw = agnostic_spelling(&name, self.form.is_beit());
            let (mean, deviation) = start_of(&draw, kind, spread);
            let seed = match vl_merging::role_of(&draw) {
                Some(Role::Expert { slot, .. }) => Some(slot.key),
                _ => None,
            };
            FreshTensor {
                name,
                info,
                kind,
                mean,
                deviation,
                distribution: Distribution::Normal,
                draw,
                seed,
                buffer: None,
            }
        });
        tensors.collect()
    }

    /// BEiT's have no text and no fusion.
    fn record(&self) -> ModelRecord {
        let record = ModelRecord::from(&self.sizes);
        match self.form {
            form if form.is_beit() => ModelRecord {
                family: record.family,
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

    fn describe(&self) -> String {
        let Self { form, heads, .. } = self;
        format!("form: {form:?}, heads: {heads:?}, sizes: {:?}", self.sizes)
    }
}

/// The key in vl-merging spelling.
fn agnostic_spelling(name: &str, is_beit: bool) -> String {
    match is_beit {
        true => beit::prefixed(name),
        false => vlmo::to_vl_merging(name),
    }
}

/// Mean and standard deviation of a fresh parameter, by its key in vl-merging spelling.
fn start_of(key: &str, kind: ParamKind, spread: Spread) -> (f32, f32) {
    let Spread {
        deviation,
        layer_scale,
    } = spread;
    match kind {
        ParamKind::Norm if key.ends_with("weight") => (1.0, deviation),
        ParamKind::Scale if key.contains("gamma_") => (layer_scale, layer_scale / 10.0),
        ParamKind::Scale => (LOGIT_SCALE, 0.0),
        ParamKind::LinearWeight => (0.0, deviation * residual_share(key)),
        _ => (0.0, deviation),
    }
}

/// Weights of the residual branches of block i shrink by √(2 (i + 1)), as in the published start.
fn residual_share(key: &str) -> f32 {
    let (Some(Role::Shared(slot)) | Some(Role::Expert { slot, .. })) = vl_merging::role_of(key)
    else {
        return 1.0;
    };
    match super::index_of(&slot) {
        Some(block) if slot.module != "attn.qkv" => 1.0 / (2.0 * (block as f32 + 1.0)).sqrt(),
        _ => 1.0,
    }
}
