//! EVE's training against numbers that the published program printed: fixtures/eve.

mod losses;
mod optimizer;
mod ranks;
mod recipes;
mod training;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::Weights;
use evaluate::forward::Given;
use evaluate::models::{self, Blueprint, Model, Overrides, RouterWay};
use fixtures::{Case, Raw, Set, number};
use merge::io::OpenOptions;

pub type Tensors = BTreeMap<String, Raw>;

/// A model whose weights are variables.
pub struct Trained {
    pub blueprint: Box<dyn Blueprint>,
    pub model: Box<dyn Model>,
    pub weights: Weights,
}

pub fn size(set: &Set, name: &str) -> usize {
    set.config()[name].as_u64().expect("a size") as usize
}

/// The model of these tensors, whose routers choose as the case says.
pub fn open(case: &Case, tensors: &Tensors) -> Trained {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    fixtures::write(&path, tensors);
    let file = Arc::new(merge::io::open(&path, &OpenOptions::default()).expect("it opens"));
    let set = case.set();
    let overrides = Overrides {
        n_heads: Some(size(set, "num_heads")),
        pair_len: Some(size(set, "pairs_max_tokens")),
        routing: Some(match case.param("capacity") {
            Some("upstream") => RouterWay::AsPublished,
            _ => RouterWay::Unlimited,
        }),
        ..Overrides::default()
    };
    let prepared = models::prepare(file, &overrides, &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    let weights = weights.trainable();
    let model = blueprint.build(&weights).expect("it loads");
    Trained {
        blueprint,
        model,
        weights,
    }
}

/// Tensors of a case as the model takes them, with `more`, of which it leaves out what it does not know.
pub fn given(case: &Case, trained: &Trained, more: Tensors) -> Given {
    let mut tensors = case.tensors("inputs");
    tensors.extend(more);
    let named = trained.model.named_passes().expect("passes");
    let known = named.inputs();
    tensors.retain(|name, _| known.iter().any(|input| input.is_called(name)));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inputs.safetensors");
    fixtures::write(&path, &tensors);
    let file = merge::io::open(&path, &OpenOptions::default()).expect("it opens");
    Given::open(&file, known, &Device::Cpu, DType::F32).expect("inputs")
}

/// The tolerances of the manifest of this name.
pub fn tolerances<const N: usize>(case: &Case, of: &str, names: [&str; N]) -> [f64; N] {
    let manifest = case.set().json("manifest.json");
    names.map(|name| number(&manifest["tolerances"][of][name]))
}

/// The value at a path of keys in the expected file.
pub fn expected(case: &Case) -> serde_json::Value {
    let keys = fixtures::list(&case["key"]).iter().map(fixtures::text);
    keys.fold(case.json("expected"), |value, key| value[key].clone())
}

/// Compares a loss.
pub fn check_loss(case: &Case, what: &str, found: f64, expected: f64) {
    let [rel, abs] = tolerances(case, "loss", ["rel", "abs"]);
    let error = (found - expected).abs();
    assert!(
        error <= rel * expected.abs() + abs,
        "{what}: {found} instead of {expected}"
    );
}

/// Compares norms of gradients: those far below the largest absolutely, as the manifest says in words. A gradient that the published
/// program does not reach has none, or zeros.
pub fn check_norms(
    case: &Case,
    what: &str,
    found: &BTreeMap<String, f64>,
    expected: &serde_json::Value,
) {
    let [tolerance] = tolerances(case, "gradient", ["rel_l2_per_tensor"]);
    let expected = expected.as_object().expect("norms");
    let largest = expected.values().filter_map(|norm| norm.as_f64());
    let floor = 1e-6 * largest.fold(0.0, f64::max);
    assert!(floor > 0.0, "{what}: a comparison");
    for (name, norm) in expected {
        let norm = norm.as_f64().unwrap_or(0.0);
        let found = found.get(name).copied().unwrap_or(0.0);
        let error = (found - norm).abs();
        assert!(
            error <= (tolerance * norm).max(floor),
            "{what}: {name}: {found} instead of {norm}"
        );
    }
    for name in found.keys() {
        assert!(expected.contains_key(name), "{what}: {name} is unknown");
    }
}
