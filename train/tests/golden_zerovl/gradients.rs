//! Gradients of the whole model, at once and in parts, on one and two ranks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::models::{Model, Overrides, prepare};
use evaluate::nn::{Buffers, GivenDrops, Gradient, Gradients};
use evaluate::weights::Weights;
use fixtures::{Case, Raw, number};
use merge::io::OpenOptions;
use serde_json::Value;
use train::batch::{Batch, Images, Texts};
use train::collective::{Alone, Collective};
use train::objectives::{ContrastSettings, MixDraw, Objective, Opening, Others, Randomness, spec};
use train::run::{Backward, Told};

use crate::fixture::{NOTHING_OMITTED, l2, plain};
use crate::threads::Threads;

fixtures::golden_tests! {
    package: "train", set: "zerovl",
    gradients_at_once_are_those_of_the_published_program: "loss_grad" => gradients,
    gradients_in_parts_are_those_of_the_published_program: "dga" => gradients,
}

const TEMPERATURE: &str = "loss.temperature";

/// Inputs that nobody asks for: contrast has no negatives of its own.
struct NoOthers;

impl Others for NoOthers {
    fn images(&self, _: &[u32]) -> train::Result<Images> {
        panic!("nobody asks for images")
    }

    fn texts(&self, _: &[u32]) -> train::Result<Texts> {
        panic!("nobody asks for texts")
    }
}

/// The model of a case: one with a constant temperature lacks the parameter.
pub fn write_model(case: &Case, path: &Path) {
    let mut tensors = case.tensors("model");
    if case["params"]["learned"] == false {
        tensors.remove(TEMPERATURE);
    }
    fixtures::write(path, &tensors);
}

fn rows(raw: &Raw, from: usize, n: usize) -> Tensor {
    let tensor = raw.tensor().narrow(0, from, n);
    tensor.and_then(|t| t.contiguous()).expect("rows")
}

fn batch(case: &Case, first: usize, n: usize) -> Batch {
    let inputs = case.tensors("input");
    let of = |name: &str, dtype: DType| {
        let rows = rows(&inputs[name], first, n).to_dtype(dtype);
        rows.expect("a dtype")
    };
    let texts = Texts::of_tensors(of("input_ids", DType::U32), of("attention_mask", DType::U8));
    Batch {
        first,
        n,
        image: Some(Images::new(of("image", DType::F32))),
        text: Some(texts.expect("texts")),
        ..Batch::default()
    }
}

/// The dropout masks of a case, by part and site.
struct Masks {
    by_name: BTreeMap<String, Raw>,
    /// Examples of a part.
    part: usize,
}

impl GivenDrops for Masks {
    fn kept(
        &self,
        site: &str,
        first: usize,
        shape: &[usize],
    ) -> candle_core::Result<Option<Vec<u8>>> {
        let site = site.strip_prefix("text.").unwrap_or(site);
        let name = format!("micro{}.{site}", first / self.part);
        let Some(mask) = self.by_name.get(&name) else {
            candle_core::bail!("the case has no mask `{name}`")
        };
        let mut mask = mask.tensor();
        // The last layer computes the first token alone.
        for (dim, &n) in shape.iter().enumerate() {
            mask = mask.narrow(dim, 0, n)?;
        }
        mask.flatten_all()?.to_vec1().map(Some)
    }
}

fn drops(case: &Case, part: usize) -> Option<Arc<dyn GivenDrops>> {
    let by_name = case["params"]["dropout_masks"].as_str()?;
    let by_name = case.set().tensors(by_name);
    Some(Arc::new(Masks { by_name, part }))
}

/// Whether a pattern of the case, a name or the beginning of one before `*`, says that it is not learned.
fn is_frozen(case: &Case, name: &str) -> bool {
    let patterns = case["params"]["frozen"].as_array();
    let mut patterns = patterns.into_iter().flatten().map(fixtures::text);
    patterns.any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    })
}

/// The numbers of a rank.
struct Found {
    /// Gradients averaged over the ranks; none where a variable is frozen.
    gradients: BTreeMap<String, Option<Vec<f32>>>,
    /// Sums and cases of this rank.
    told: Told,
}

/// Opens what [`write_model`] wrote, as variables.
pub fn opened(case: &Case, path: &Path) -> (Weights, Box<dyn Model>) {
    let config = case.set().config();
    let heads = |tower: &str| config[tower]["heads"].as_u64().map(|n| n as usize);
    let is_constant = case["params"]["learned"] == false;
    let overrides = Overrides {
        image_heads: heads("vision"),
        text_heads: heads("text"),
        temperature: case.number("temperature").filter(|_| is_constant),
        ..Overrides::default()
    };
    let checkpoint = merge::io::open(path, &OpenOptions::default()).expect("a checkpoint");
    let prepared = prepare(Arc::new(checkpoint), &overrides, &Device::Cpu, DType::F32);
    let (blueprint, weights) = prepared.expect("a model");
    let weights = weights.trainable();
    let model = blueprint.build(&weights).expect("built");
    (weights, model)
}

/// Opens the objective of a case, of which `part` rows are computed at once.
pub fn opened_objective(case: &Case, is_mixed: bool, part: usize) -> Box<dyn Objective> {
    let contrast = ContrastSettings {
        gather_backward: case["params"]["gather_backward"].as_bool().unwrap_or(true),
        ..ContrastSettings::default()
    };
    let opening = Opening {
        contrast: Some(contrast),
        part,
        ..Opening::default()
    };
    let name = if is_mixed { "mixup_nce" } else { "nce" };
    (spec(name).expect("known").open)(&opening).expect("opened")
}

/// Both passes over the parts of a rank's batch, or the only one.
pub fn learn_parts(backward: &Backward<'_>, parts: &[Batch], gradients: &mut Gradients) -> Told {
    let mut told = Told::default();
    let found = backward.is_twice().then(|| {
        let mut parts = parts.iter().map(|part| Ok(part.clone()));
        backward.look(&mut parts, &mut told).expect("looked")
    });
    for part in parts {
        let found = found
            .as_ref()
            .map(|found| (found, &NoOthers as &dyn Others));
        let learned = backward.learn(part, found, &mut told, gradients);
        learned.expect("learned");
    }
    assert_eq!(told.not_finite, None);
    told
}

fn learn(case: &Case, model: &Path, ranks: &dyn Collective) -> Found {
    let (weights, model) = opened(case, model);
    let params = &case["params"];
    let whole = case.tensors("input")["image"].shape[0];
    let share = whole / ranks.size();
    let part = case.count("micro_batch").unwrap_or(share);
    let mix = case.number("alpha").map(|alpha| MixDraw {
        alpha,
        mixes_images: case.param("mixed") == Some("image"),
    });
    let objective = opened_objective(case, mix.is_some(), part);
    let objectives: Vec<(Box<dyn Objective>, f64)> = vec![(objective, 1.0)];
    let buffers = Buffers::default();
    let drops = drops(case, part);
    assert_eq!(drops.is_some(), params["dropout"].is_number());
    let backward = Backward {
        collective: ranks,
        drops: drops.as_ref(),
        n_parts: share / part,
        randomness: Randomness {
            dropout: params["dropout"].as_f64().unwrap_or(0.0),
            mix,
            ..NOTHING_OMITTED
        },
        ..plain(model.as_ref(), &objectives, &buffers)
    };
    let first = ranks.rank() * share;
    let parts: Vec<Batch> = (0..share / part)
        .map(|at| batch(case, first + at * part, part))
        .collect();
    let variables = weights.variables();
    let learned = variables.iter().filter(|(name, _)| !is_frozen(case, name));
    let mut gradients = Gradients::of(learned.map(|(_, variable)| variable));
    let told = learn_parts(&backward, &parts, &mut gradients);
    let share = 1.0 / (ranks.size() * parts.len()) as f32;
    let mut by_name = BTreeMap::new();
    for (name, variable) in variables {
        let values = match gradients.get(&variable) {
            Some(Gradient::Host(gradient)) => Some(gradient.to_vec()),
            Some(Gradient::Device(_)) => panic!("a gradient on another device"),
            None => None,
        };
        let averaged = values.map(|mut values| {
            ranks.sum(&mut values).expect("a sum");
            values.iter_mut().for_each(|value| *value *= share);
            values
        });
        by_name.insert(name, averaged);
    }
    Found {
        gradients: by_name,
        told,
    }
}

/// The loss that the published program computed. Its log of parts leaves out mixing, so only where
/// nothing is mixed is that the loss.
fn loss<'v>(case: &Case, expected: &'v Value) -> Option<&'v Value> {
    let is_mixed = case.number("alpha").is_some();
    let names = ["loss", "objective", "logged_loss"].into_iter();
    let mut names = names.filter(|name| !is_mixed || *name != "logged_loss");
    names.find_map(|name| expected.get(name).filter(|value| !value.is_null()))
}

fn check_told(case: &Case, expected: &Value, rank: usize, told: &Told) {
    let close = |name: &str, expected: &Value| {
        let expected = number(expected.get(rank).unwrap_or(expected));
        let (sum, n) = told.values[name];
        let atol = case.tolerance("loss", "atol");
        let within = atol + case.tolerance("loss", "rtol") * expected.abs();
        let off = (sum / n - expected).abs();
        assert!(
            off <= within,
            "{name} of rank {rank}: {}, expected {expected}",
            sum / n
        );
    };
    if let Some(expected) = loss(case, expected) {
        close("loss", expected);
    }
    close("nce_i2t_accuracy", &expected["i2t_acc"]);
    close("nce_t2i_accuracy", &expected["t2i_acc"]);
}

fn gradients(case: &Case) {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model.safetensors");
    write_model(case, &model);
    let found: Vec<Found> = match case.count("ranks") {
        Some(1) => vec![learn(case, &model, &Alone)],
        Some(n) => Threads::run(n, |rank| learn(case, &model, rank)),
        None => panic!("the case does not say how many ranks"),
    };
    let expected = &case.json("expected")[case.text("key")];
    for (rank, found) in found.iter().enumerate() {
        check_told(case, expected, rank, &found.told);
    }
    let norms = expected["grad_norms"].as_object().expect("norms");
    let names: Vec<&String> = found[0].gradients.keys().collect();
    let mut listed: Vec<&String> = norms.keys().collect();
    listed.sort_unstable();
    assert_eq!(names, listed);
    let largest = norms.values().filter_map(|norm| norm.as_f64());
    let largest = largest.fold(0.0, f64::max);
    let rel_l2 = case.tolerance("grad", "rel_l2");
    let least = case.tolerance("grad", "atol_norm") * largest;
    let full = case
        .file_if_any("expected_grads")
        .map(|path| fixtures::tensors(&path));
    for (name, norm) in norms {
        let found = found[0].gradients[name].as_ref();
        let Some(norm) = norm.as_f64() else {
            assert!(found.is_none(), "{name} is frozen and learns");
            continue;
        };
        let found = found.unwrap_or_else(|| panic!("{name} learns nothing"));
        let found = found.iter().map(|&value| f64::from(value));
        let off = match &full {
            Some(full) => {
                let expected = full[name].values();
                assert_eq!(found.len(), expected.len(), "{name}");
                l2(found.zip(expected).map(|(a, b)| a - b))
            }
            None => (l2(found) - norm).abs(),
        };
        assert!(
            off <= rel_l2 * norm || off <= least,
            "{name}: off by {off}, its norm is {norm}"
        );
    }
}
