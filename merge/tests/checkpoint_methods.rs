//! Two checkpoints of a family by every method of the registry, and those with a closed form by that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fixtures::Raw;
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, EveTask};
use merge::methods::{Base, METHODS, by_name};
use merge::progress::Silent;
use merge::recipe::{OutputDType, Parameters};
use merge::synth::{Fresh, Spread, Synthesis};
use merge::{Checkpoint, MergePlan, MergeRecipe, Role};
use safetensors::Dtype;

use crate::eve;
use crate::zerovl::{self, opened, values};

/// Methods that walk from the first model to the second.
const WALKS: [&str; 3] = ["slerp", "nearswap", "arcee_fusion"];

/// Methods of the experts of one model.
const OF_EXPERTS: [&str; 2] = ["interpolate", "arithmetic"];

/// Results are rounded to f32 once; sums of a whole tensor go in another order here.
const RELATIVE: f64 = 2e-6;
const ABSOLUTE: f64 = 1e-7;

/// Each matrix of inputs is a multiple of the identity; so is the information of each element.
const TIMES: [f64; 2] = [1.0, 3.0];

struct Models {
    folder: tempfile::TempDir,
}

impl Models {
    fn new(spec: impl Fresh + Clone) -> Self {
        let models = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        for (name, seed) in [("base", 3), ("a", 1), ("b", 2)] {
            let synthesis = Synthesis {
                spec: spec.clone(),
                seed,
                spread: Spread::default(),
                is_fresh: false,
                dtype: OutputDType::Keep,
            };
            eve::write(&synthesis.plan().expect("a plan"), &models.path(name));
        }
        for (name, times) in ["a", "b"].into_iter().zip(TIMES) {
            models.write_grams(name, times);
            models.write_information(name, times);
        }
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    fn write_grams(&self, name: &str, times: f64) {
        let model = opened(&self.path(name));
        let layout = layouts::detect(&model).expect("a layout");
        let mut tensors = BTreeMap::new();
        for (key, info) in model.tensors() {
            let Some(gram) = gram_of(layout.as_ref(), key) else {
                continue;
            };
            let n = info.shape[1];
            let values = (0..n * n).map(|at| if at % (n + 1) == 0 { times } else { 0.0 });
            let bytes = values.flat_map(f64::to_le_bytes).collect();
            let raw = Raw {
                dtype: Dtype::F64,
                shape: vec![n, n],
                bytes,
            };
            tensors.insert(gram, raw);
        }
        fixtures::write(&self.path(&format!("{name}.gram")), &tensors);
    }

    fn write_information(&self, name: &str, times: f64) {
        let mut tensors = fixtures::tensors(&self.path(name));
        tensors.retain(|_, raw| raw.dtype == Dtype::F32);
        for raw in tensors.values_mut() {
            let n = raw.bytes.len() / 4;
            raw.bytes = (times as f32).to_le_bytes().repeat(n);
        }
        fixtures::write(&self.path(&format!("{name}.fisher")), &tensors);
    }

    /// The parameters of a model under a method.
    fn parameters(&self, method: &str, name: &str) -> String {
        let described = by_name(method, &Parameters::default(), false).expect("a method");
        let mut parameters = Vec::new();
        for spec in described.parameters() {
            let value = match spec.name {
                "weight" => "0.5".to_owned(),
                "t" => "0.25".to_owned(),
                // Nothing is dropped, so that there is a closed form.
                "density" if !method.starts_with("della") => "1".to_owned(),
                "density" => "0.5".to_owned(),
                "gamma" => "0".to_owned(),
                "grams" => self.path(&format!("{name}.gram")).display().to_string(),
                "fisher" => self.path(&format!("{name}.fisher")).display().to_string(),
                _ => continue,
            };
            parameters.push(format!("{}: {value}", spec.name));
        }
        parameters.join(", ")
    }

    fn recipe(&self, method: &str) -> MergeRecipe {
        let described = by_name(method, &Parameters::default(), false).expect("a method");
        let base = match described.needs().base {
            _ if WALKS.contains(&method) => Some("a"),
            Base::Required => Some("base"),
            Base::Optional | Base::None => None,
        };
        let names: &[&str] = match method {
            "passthrough" => &["a"],
            _ => &["a", "b"],
        };
        let (mut whole, mut models) = (String::new(), String::new());
        for name in names {
            let parameters = self.parameters(method, name);
            let path = self.path(name);
            models += &format!("- {{ model: {:?}", path);
            match WALKS.contains(&method) {
                // It is the recipe's, not a model's.
                true => whole = format!("parameters: {{ {parameters} }}\n"),
                false => models += &format!(", parameters: {{ {parameters} }}"),
            }
            models += " }\n";
        }
        if described.own_parameters().contains(&"method") {
            whole = "parameters: { method: task_arithmetic, beta: 0.5 }\n".to_owned();
        }
        let base = base.map(|name| format!("base_model: {:?}\n", self.path(name)));
        let yaml = format!(
            "merge_method: {method}\n{}{whole}models:\n{models}",
            base.unwrap_or_default()
        );
        let recipe = MergeRecipe::parse(&yaml, Path::new("test"));
        recipe.unwrap_or_else(|error| panic!("{yaml}: {error}"))
    }
}

/// The gram matrix of a linear weight.
fn gram_of(layout: &dyn merge::Layout, key: &str) -> Option<String> {
    match layout.role(key).expect("a known key") {
        Role::Shared(slot) | Role::Routing(slot) => layout.gram_key(&slot, None),
        Role::Expert { expert, slot } => layout.gram_key(&slot, Some(expert)),
        _ => None,
    }
}

fn sign(x: f64) -> bool {
    x >= 0.0
}

/// The great circle between two vectors.
fn slerp(a: &[f64], b: &[f64], t: f64) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    let cosine = if norms > 0.0 { dot(a, b) / norms } else { 1.0 };
    let [of_a, of_b] = match cosine.abs() > 0.9995 {
        true => [1.0 - t, t],
        false => {
            let angle = cosine.acos();
            [(1.0 - t) * angle, t * angle].map(|part| part.sin() / angle.sin())
        }
    };
    a.iter().zip(b).map(|(a, b)| of_a * a + of_b * b).collect()
}

/// The result of a method, where it is a formula of a few lines; `has_gram` says whether the tensor is the
/// weight of a recorded layer.
fn closed_form(
    method: &str,
    (base, a, b): (&[f64], &[f64], &[f64]),
    has_gram: bool,
) -> Option<Vec<f64>> {
    let each = |of: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
        let values = base.iter().zip(a).zip(b);
        values.map(|((base, a), b)| of(*base, *a, *b)).collect()
    };
    let elected = |base: f64, a: f64, b: f64| {
        let [da, db] = [a - base, b - base];
        let is_plus = sign(0.5 * (da + db));
        let agree = [da, db]
            .into_iter()
            .filter(move |d| *d != 0.0 && sign(*d) == is_plus);
        (agree.clone().sum::<f64>(), agree.count() as f64)
    };
    Some(match method {
        "linear" => each(&|_, a, b| (a + b) / 2.0),
        "task_arithmetic" | "dare_linear" | "breadcrumbs" => {
            each(&|base, a, b| base + 0.5 * (a - base) + 0.5 * (b - base))
        }
        "ties" => each(&|base, a, b| {
            let (sum, n) = elected(base, a, b);
            base + if n > 0.0 { sum / n } else { 0.0 }
        }),
        "dare_ties" | "breadcrumbs_ties" => each(&|base, a, b| base + 0.5 * elected(base, a, b).0),
        "regmean" | "mats" if has_gram => {
            each(&|_, a, b| (TIMES[0] * a + TIMES[1] * b) / (TIMES[0] + TIMES[1]))
        }
        "regmean" | "mats" => each(&|_, a, b| (a + b) / 2.0),
        "fisher" => {
            let [of_a, of_b] = TIMES.map(|times| 0.5 * (times + 1e-6));
            each(&|_, a, b| (of_a * a + of_b * b) / (of_a + of_b))
        }
        "slerp" => slerp(a, b, 0.25),
        "nearswap" => each(&|_, a, b| {
            let share = (0.25 / (a - b).abs().max(1e-6)).clamp(0.0, 1.0);
            share * b + (1.0 - share) * a
        }),
        "ram" => each(&|base, a, b| {
            let active = [a - base, b - base].into_iter().filter(|d| d.abs() > 1e-5);
            let n = active.clone().count().max(1) as f64;
            base + active.sum::<f64>() / n
        }),
        "passthrough" => a.to_vec(),
        _ => return None,
    })
}

fn check(method: &str, models: &Models, merged: &Checkpoint) -> bool {
    let [base, a, b] = ["base", "a", "b"].map(|name| opened(&models.path(name)));
    let layout = layouts::detect(&a).expect("a layout");
    assert_eq!(merged.tensors().count(), a.tensors().count(), "{method}");
    let (mut is_closed, mut is_new) = (false, false);
    for (key, info) in a.tensors() {
        let found = merged.require(key).expect("there");
        assert_eq!(
            (found.dtype, &found.shape),
            (info.dtype, &info.shape),
            "{method} {key}"
        );
        if !info.dtype.is_float() {
            let bytes = merged.read_all(key).expect("it reads");
            assert_eq!(bytes, a.read_all(key).expect("it reads"), "{method} {key}");
            continue;
        }
        let found = values(merged, key);
        assert!(
            found.iter().all(|value| value.is_finite()),
            "{method} {key}"
        );
        let of = [&base, &a, &b].map(|model| values(model, key));
        is_new |= found != of[1];
        let has_gram = gram_of(layout.as_ref(), key).is_some();
        let inputs = (of[0].as_slice(), of[1].as_slice(), of[2].as_slice());
        let Some(expected) = closed_form(method, inputs, has_gram) else {
            continue;
        };
        is_closed = true;
        let differs = fixtures::first_difference(&found, &expected, RELATIVE, ABSOLUTE);
        assert_eq!(differs, None, "{method} {key}");
    }
    assert!(
        is_new || method == "passthrough",
        "{method} changes something"
    );
    is_closed
}

#[test]
fn every_method_merges_two_zerovl_checkpoints_and_those_with_a_closed_form_agree() {
    every_method(&Models::new(zerovl::tiny()));
}

/// Expert by expert, routers included.
#[test]
fn every_method_merges_two_eve_checkpoints_and_those_with_a_closed_form_agree() {
    for task in [EveTask::Backbone, EveTask::Retrieval] {
        every_method(&Models::new(eve::tiny(task)));
    }
}

fn every_method(models: &Models) {
    let mut n_closed = 0;
    for row in METHODS {
        let recipe = models.recipe(row.name);
        let resolved = MergePlan::resolve(&recipe);
        if OF_EXPERTS.contains(&row.name) {
            assert!(
                resolved.is_err(),
                "{} merges experts of one model",
                row.name
            );
            continue;
        }
        let (plan, _) = resolved.unwrap_or_else(|error| panic!("{}: {error}", row.name));
        let merged = in_memory(&plan, &RunOptions::default(), &Silent);
        let merged = merged.unwrap_or_else(|error| panic!("{}: {error}", row.name));
        n_closed += usize::from(check(row.name, models, &merged));
    }
    assert!(n_closed >= 12, "{n_closed} closed forms");
}
