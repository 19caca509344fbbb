//! Laws of every merge method.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::methods::{Base, MergeMethod};
use merge::recipe::{ExpertChoice, ModelRef, OutputDType, Parameter, Parameters};
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

use fixtures::{self as fixture, Raw};

/// A model of one shallow and one deep block, with LayerNorms and one linear layer, as f32 bits.
struct Toy {
    folder: tempfile::TempDir,
}

const SEED: [f32; 4] = [1.0, -2.0, 0.5, 4.0];

impl Toy {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the experts' layers; `of` gives the four values of an expert's every tensor.
    fn specific(&self, name: &str, dtype: Dtype, of: impl Fn(&str) -> [f32; 4]) -> PathBuf {
        let mut tensors = BTreeMap::new();
        for (block, experts) in [(0, &["v", "l"][..]), (1, &["v", "l", "vl"][..])] {
            for expert in experts {
                let key = |rest: &str| format!("transformer.blocks.{block}.{rest}");
                let values = of(expert);
                tensors.insert(
                    key(&format!("attn.{expert}.proj.weight")),
                    raw(dtype, &[2, 2], &values),
                );
                tensors.insert(
                    key(&format!("norm1.{expert}.weight")),
                    raw(dtype, &[4], &values),
                );
            }
        }
        let path = self.path(name);
        fixture::write(&path, &tensors);
        path
    }

    fn seed(&self, dtype: Dtype) -> PathBuf {
        let mut tensors = BTreeMap::new();
        for block in 0..2 {
            let key = |rest: &str| format!("transformer.blocks.{block}.{rest}");
            tensors.insert(key("attn.proj.weight"), raw(dtype, &[2, 2], &SEED));
            tensors.insert(key("norm1.weight"), raw(dtype, &[4], &SEED));
        }
        let path = self.path("seed.safetensors");
        fixture::write(&path, &tensors);
        path
    }

    /// Gram matrices of the linear layers, the same for every expert if `are_equal`.
    fn grams(&self, are_equal: bool) -> PathBuf {
        let mut tensors = BTreeMap::new();
        for (block, experts) in [(0, &["v", "l"][..]), (1, &["v", "l", "vl"][..])] {
            for (index, expert) in experts.iter().enumerate() {
                let extra = if are_equal { 0.0 } else { index as f64 };
                let gram = [2.0 + extra, 0.5, 0.5, 1.0];
                let bytes = gram
                    .iter()
                    .flat_map(|value: &f64| value.to_le_bytes())
                    .collect();
                let name = format!("transformer.blocks.{block}.attn.{expert}.proj");
                tensors.insert(
                    name,
                    Raw {
                        dtype: Dtype::F64,
                        shape: vec![2, 2],
                        bytes,
                    },
                );
            }
        }
        let path = self.path("grams.safetensors");
        fixture::write(&path, &tensors);
        path
    }
}

fn raw(dtype: Dtype, shape: &[usize], values: &[f32]) -> Raw {
    let ours = merge::DType::from_name(&dtype.to_string()).expect("known dtype");
    let mut bytes = vec![0; values.len() * ours.size_bytes()];
    merge::encode_f32("toy", ours, values, &mut bytes).expect("a float dtype");
    Raw {
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

/// Gives a method what it does not do without, and this weight.
pub fn give(parameters: &mut Parameters, described: &dyn MergeMethod, weight: f64) {
    for spec in described.parameters() {
        match spec.name {
            "weight" => parameters.set("weight", Parameter::Number(weight)),
            "t" => parameters.set("t", Parameter::Number(0.25)),
            "density" => parameters.set("density", Parameter::Number(0.5)),
            "sparsity" => parameters.set("sparsity", Parameter::Number(0.5)),
            _ => {}
        }
    }
    if described.own_parameters().contains(&"method") {
        let method = Parameter::Text("task_arithmetic".to_owned());
        parameters.set("method", method);
        parameters.set("beta", Parameter::Number(0.5));
    }
}

fn recipe(toy: &Toy, method: &str, model: &Path, dtype: Dtype) -> MergeRecipe {
    let mut parameters = Parameters::default();
    let described = merge::methods::by_name(method, &Parameters::default(), false);
    let described = described.expect("a method");
    if described.needs().grams {
        let grams = toy.grams(true);
        let text = grams.to_str().expect("UTF-8").to_owned();
        parameters.set("grams", Parameter::Text(text));
    }
    give(&mut parameters, described.as_ref(), 1.0);
    if let Some(name) = described.needs().paired {
        // The model itself, with the signs that information cannot have.
        let mut tensors = fixture::tensors(model);
        for tensor in tensors.values_mut() {
            let values = tensor.values().into_iter();
            let magnitudes: Vec<f32> = values.map(|value| value.abs() as f32).collect();
            *tensor = raw(tensor.dtype, &tensor.shape, &magnitudes);
        }
        let file = toy.path("paired.safetensors");
        fixture::write(&file, &tensors);
        let file = file.to_str().expect("UTF-8").to_owned();
        parameters.set(name, Parameter::Text(file));
    }
    let takes_two = !["interpolate", "arithmetic", "regmean"].contains(&method);
    MergeRecipe {
        merge_method: method.to_owned(),
        models: vec![ModelRef::new(model)],
        base_model: (described.needs().base == Base::Required)
            .then(|| ModelRef::new(toy.seed(dtype))),
        experts: takes_two.then(|| two_experts("vision, language")),
        parameters,
        ..MergeRecipe::default()
    }
}

/// The same experts in both blocks.
fn two_experts(order: &str) -> ExpertChoice {
    let yaml = format!("merge_method: x\nexperts: {{ 0: [{order}], 1: [{order}] }}");
    let parsed = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
    parsed.experts.expect("given")
}

/// Methods that merge experts.
fn of_experts() -> impl Iterator<Item = &'static str> {
    let names = merge::methods::NAMES.into_iter();
    names.filter(|name| *name != "passthrough")
}

fn run(toy: &Toy, recipe: &MergeRecipe, run: &RunOptions) -> Result<BTreeMap<String, Raw>, Error> {
    let (plan, _) = MergePlan::resolve(recipe)?;
    let target = toy.path("merged.safetensors");
    let write = WriteOptions {
        force: true,
        ..WriteOptions::new(&target)
    };
    execute(&plan, &write, run, &merge::progress::Silent)?;
    Ok(fixture::tensors(&target))
}

#[test]
fn inputs_equal_to_the_base_merge_to_the_base_and_keep_their_dtype() {
    for method in of_experts() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
            let toy = Toy::new();
            let model = toy.specific("model.safetensors", dtype, |_| SEED);
            let recipe = recipe(&toy, method, &model, dtype);
            let merged = run(&toy, &recipe, &RunOptions::default()).expect("merges");
            assert_eq!(merged.len(), 4, "{method}");
            for (name, tensor) in merged {
                assert_eq!(tensor.dtype, dtype, "{method} {name}");
                let expected = SEED.map(f64::from);
                let difference = fixture::first_difference(&tensor.values(), &expected, 1e-6, 0.0);
                assert_eq!(difference, None, "{method} {name} {dtype}");
            }
        }
    }
}

#[test]
fn regmean_of_equal_grams_is_the_mean() {
    let toy = Toy::new();
    let model = toy.specific("model.safetensors", Dtype::F32, |expert| match expert {
        "v" => [2.0; 4],
        "l" => [4.0; 4],
        _ => [12.0; 4],
    });
    let recipe = recipe(&toy, "regmean", &model, Dtype::F32);
    let merged = run(&toy, &recipe, &RunOptions::default()).expect("merges");
    for (name, mean) in [("transformer.blocks.0", 3.0), ("transformer.blocks.1", 6.0)] {
        let weight = &merged[&format!("{name}.attn.proj.weight")];
        let difference = fixture::first_difference(&weight.values(), &[mean; 4], 1e-6, 0.0);
        assert_eq!(difference, None);
    }
}

#[test]
fn mats_begins_at_the_base_or_the_mean_and_ends_where_regmean_does() {
    let toy = Toy::new();
    let values = [[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 1.0, 0.0]];
    let model = toy.specific("model.safetensors", Dtype::F64, |expert| match expert {
        "v" => values[0],
        "l" => values[1],
        _ => [5.0, 1.0, 0.0, 2.0],
    });
    let merged = |method: &str, base: bool, settings: &[(&str, f64)]| {
        let mut recipe = recipe(&toy, method, &model, Dtype::F64);
        let grams = toy.grams(false);
        let text = grams.to_str().expect("UTF-8").to_owned();
        recipe.parameters.set("grams", Parameter::Text(text));
        for (name, value) in settings {
            recipe.parameters.set(name, Parameter::Number(*value));
        }
        recipe.experts = Some(two_experts("vision, language"));
        recipe.base_model = base.then(|| ModelRef::new(toy.seed(Dtype::F64)));
        let merged = run(&toy, &recipe, &RunOptions::default()).expect("merges");
        ["attn.proj.weight", "norm1.weight"]
            .map(|key| merged[&format!("transformer.blocks.0.{key}")].values())
    };
    let same = |found: &[f64], expected: &[f64]| {
        let difference = fixture::first_difference(found, expected, 1e-9, 1e-12);
        assert_eq!(difference, None);
    };
    let mean = [0.5, 1.5, 2.0, 2.0];
    let none = [("iterations", 0.0)];
    let solved = merged("regmean", false, &[("shrink", 0.7)]);
    for (base, start) in [(false, mean), (true, SEED.map(f64::from))] {
        let [weight, norm] = merged("mats", base, &none);
        same(&weight, &start);
        same(&norm, &mean);
        let all = [("shrink", 0.7), ("tolerance", 0.0)];
        let [weight, norm] = merged("mats", base, &all);
        same(&weight, &solved[0]);
        same(&norm, &solved[1]);
        // One step is on the way: 4 numbers in two directions need two.
        let one = [("shrink", 0.7), ("tolerance", 0.0), ("iterations", 1.0)];
        let [weight, _] = merged("mats", base, &one);
        let far = |from: &[f64]| -> f64 {
            let pairs = from.iter().zip(&solved[0]);
            pairs.map(|(from, to)| (from - to).powi(2)).sum()
        };
        assert!(far(&weight) > 1e-6 && far(&weight) < far(&start));
    }
}

#[test]
fn regmean_pulls_towards_the_plain_mean_as_the_ridge_grows() {
    let toy = Toy::new();
    let model = toy.specific("model.safetensors", Dtype::F32, |expert| match expert {
        "v" => [1.0, 2.0, 3.0, 4.0],
        "l" => [0.0, 1.0, 1.0, 0.0],
        _ => [5.0, 1.0, 0.0, 2.0],
    });
    let mut recipe = recipe(&toy, "regmean", &model, Dtype::F32);
    let grams = toy.grams(false);
    let text = grams.to_str().expect("UTF-8").to_owned();
    recipe.parameters.set("grams", Parameter::Text(text));
    let distance = |ridge: f64, recipe: &mut MergeRecipe| {
        recipe.parameters.set("ridge", Parameter::Number(ridge));
        let merged = run(&toy, recipe, &RunOptions::default()).expect("merges");
        let weight = merged["transformer.blocks.0.attn.proj.weight"].values();
        let mean = [0.5, 1.5, 2.0, 2.0];
        weight
            .iter()
            .zip(mean)
            .map(|(w, m)| (w - m).abs())
            .fold(0.0, f64::max)
    };
    let distances = [0.0, 1.0, 1e6].map(|ridge| distance(ridge, &mut recipe));
    assert!(distances[0] > 0.05, "{distances:?}");
    assert!(
        distances[0] > distances[1] && distances[1] > distances[2],
        "{distances:?}"
    );
    assert!(distances[2] < 1e-5, "{distances:?}");
}

#[test]
fn the_specifications_two_by_two_regmean_case_comes_out() {
    // W1=[[1,2],[3,4]], G1=[[2,1],[1,2]], W2=[[0,1],[1,0]], G2=[[1,0],[0,3]].
    let toy = Toy::new();
    let mut tensors = BTreeMap::new();
    for (expert, values) in [("v", [1.0, 2.0, 3.0, 4.0]), ("l", [0.0, 1.0, 1.0, 0.0])] {
        let key = format!("transformer.blocks.0.attn.{expert}.proj.weight");
        tensors.insert(key, raw(Dtype::F64, &[2, 2], &values));
    }
    let model = toy.path("model.safetensors");
    fixture::write(&model, &tensors);
    let grams = toy.path("pair.safetensors");
    let gram = |values: [f32; 4]| raw(Dtype::F64, &[2, 2], &values);
    // The second one packed: 1, 0, 3 is the lower triangle of [[1, 0], [0, 3]].
    let packed = raw(Dtype::F64, &[3], &[1.0, 0.0, 3.0]);
    fixture::write(
        &grams,
        &BTreeMap::from([
            (
                "transformer.blocks.0.attn.v.proj".to_owned(),
                gram([2.0, 1.0, 1.0, 2.0]),
            ),
            ("transformer.blocks.0.attn.l.proj".to_owned(), packed),
        ]),
    );
    let mut recipe = recipe(&toy, "regmean", &model, Dtype::F64);
    let text = grams.to_str().expect("UTF-8").to_owned();
    recipe.parameters.set("grams", Parameter::Text(text));
    for (shrink, expected) in [
        (1.0, [0.857_143, 1.428_571, 3.142_857, 1.571_429]),
        (0.5, [0.762_712, 1.423_729, 2.728_814, 1.627_119]),
        (0.0, [0.666_667, 1.4, 2.333_333, 1.6]),
    ] {
        recipe.parameters.set("shrink", Parameter::Number(shrink));
        let merged = run(&toy, &recipe, &RunOptions::default()).expect("merges");
        let values = merged["transformer.blocks.0.attn.proj.weight"].values();
        assert_eq!(
            fixture::first_difference(&values, &expected, 0.0, 1e-6),
            None,
            "{shrink}"
        );
    }
}

#[test]
fn a_result_that_overflows_is_refused_by_name_unless_allowed() {
    let toy = Toy::new();
    let model = toy.specific("model.safetensors", Dtype::F32, |_| [1e38, 1.0, 1.0, 1.0]);
    let mut recipe = recipe(&toy, "interpolate", &model, Dtype::F32);
    recipe.out_dtype = OutputDType::F16;
    let error = run(&toy, &recipe, &RunOptions::default()).expect_err("1e38 is beyond f16");
    assert!(
        error.to_string().contains("transformer.blocks.0."),
        "{error}"
    );
    assert!(!toy.path("merged.safetensors").exists());
    let allow = RunOptions {
        allow_non_finite: true,
        ..RunOptions::default()
    };
    let merged = run(&toy, &recipe, &allow).expect("allowed");
    assert_eq!(
        merged["transformer.blocks.0.norm1.weight"].values()[0],
        f64::INFINITY
    );
}

#[test]
fn each_output_dtype_is_rounded_once() {
    // The f32 result, rounded; rounding each product first would differ in the last bit.
    let toy = Toy::new();
    let model = toy.specific("model.safetensors", Dtype::F32, |expert| match expert {
        "v" => [1.0, 0.1, 0.3, 0.7],
        "l" => [1.003_906_3, 0.2, 0.9, 0.5],
        _ => [1.0, 0.4, 0.8, 0.6],
    });
    let mut recipe = recipe(&toy, "interpolate", &model, Dtype::F32);
    let single = run(&toy, &recipe, &RunOptions::default()).expect("merges");
    for (out, dtype) in [
        (OutputDType::Bf16, Dtype::BF16),
        (OutputDType::F16, Dtype::F16),
    ] {
        recipe.out_dtype = out;
        let merged = run(&toy, &recipe, &RunOptions::default()).expect("merges");
        for (name, tensor) in merged {
            let values: Vec<f32> = single[&name].values().iter().map(|&v| v as f32).collect();
            assert_eq!(tensor, raw(dtype, &tensor.shape, &values), "{name}");
        }
    }
}

#[test]
fn an_order_of_experts_in_the_recipe_changes_nothing() {
    let toy = Toy::new();
    let model = toy.specific("model.safetensors", Dtype::F32, |expert| match expert {
        "v" => [0.1, 0.2, 0.3, 0.4],
        "l" => [1.1, -0.7, 0.9, 0.33],
        _ => [0.77, 3.0, -1.5, 0.01],
    });
    for method in of_experts() {
        let mut recipe = recipe(&toy, method, &model, Dtype::F32);
        let merged: Vec<_> = ["vision, language", "language, vision"]
            .into_iter()
            .map(|order| {
                recipe.experts = Some(two_experts(order));
                run(&toy, &recipe, &RunOptions::default()).expect("merges")
            })
            .collect();
        assert_eq!(merged[0], merged[1], "{method}");
    }
}

#[test]
fn one_thread_and_many_give_the_same_bytes() {
    let toy = Toy::new();
    let model = fixture::path("ckpt/all_moe.safetensors");
    let recipe = MergeRecipe {
        models: vec![ModelRef::new(model)],
        ..recipe(&toy, "interpolate", Path::new(""), Dtype::F32)
    };
    let (plan, _) = MergePlan::resolve(&recipe).expect("resolves");
    let files = [1, 2, 5].map(|n_threads| {
        let target = toy.path(&format!("merged-{n_threads}.safetensors"));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build();
        pool.expect("a pool").install(|| {
            let write = WriteOptions::new(&target);
            execute(
                &plan,
                &write,
                &RunOptions::default(),
                &merge::progress::Silent,
            )
            .expect("merges");
        });
        std::fs::read(target).expect("written")
    });
    assert!(files[0] == files[1] && files[1] == files[2]);
}

/// A recipe that merges `n` copies of a file (and the base, if there must be one).
fn of_checkpoints(toy: &Toy, method: &str, model: &Path, dtype: Dtype) -> MergeRecipe {
    let mut recipe = recipe(toy, method, model, dtype);
    let described = merge::methods::by_name(method, &Parameters::default(), false);
    let needs = described.expect("a method").needs();
    // Two names of one file would be one model.
    let copy = |index: usize| {
        let path = toy.path(&format!("copy-{index}.safetensors"));
        std::fs::copy(model, &path).expect("copied");
        ModelRef::new(path)
    };
    recipe.experts = None;
    recipe.base_model = (needs.base == Base::Required).then(|| ModelRef::new(model));
    recipe.models = (0..needs.max_inputs.min(2)).map(copy).collect();
    if let Some(name) = needs.paired {
        let file = model.to_str().expect("UTF-8").to_owned();
        recipe.parameters.set(name, Parameter::Text(file));
    }
    recipe
}

#[test]
fn equal_checkpoints_merge_to_themselves_whatever_the_method_and_dtype() {
    for method in merge::methods::NAMES {
        if ["interpolate", "arithmetic"].contains(&method) {
            continue;
        }
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16, Dtype::F64] {
            let toy = Toy::new();
            // Positive, for `fisher` takes it as information, too.
            let model = toy.specific("model.safetensors", dtype, |_| SEED.map(f32::abs));
            let recipe = of_checkpoints(&toy, method, &model, dtype);
            let merged = run(&toy, &recipe, &RunOptions::default()).expect(method);
            assert_eq!(merged.len(), 10, "{method}");
            for (name, tensor) in merged {
                assert_eq!(tensor.dtype, dtype, "{method} {name}");
                let expected = SEED.map(|value| f64::from(value.abs()));
                let difference = fixture::first_difference(&tensor.values(), &expected, 1e-6, 0.0);
                assert_eq!(difference, None, "{method} {name} {dtype}");
            }
        }
    }
}

#[test]
fn walks_between_two_checkpoints_begin_at_one_and_end_at_the_other() {
    let toy = Toy::new();
    let first = toy.specific("first.safetensors", Dtype::F32, |_| SEED);
    let second = toy.specific("second.safetensors", Dtype::F32, |_| [0.5, 3.0, -1.0, 2.0]);
    let at_ends = |method: &str, start: &str, end: &str| {
        [(start, &first), (end, &second)].map(|(parameters, expected)| {
            let yaml = format!(
                "merge_method: {method}\nmodels:\n- {{model: {}, parameters: {parameters}}}\n- {{model: {}, \
                 parameters: {parameters}}}",
                first.display(),
                second.display()
            );
            let mut recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
            if method == "slerp" || method == "nearswap" {
                recipe.parameters = std::mem::take(&mut recipe.models[0].parameters);
                recipe.models[1].parameters = Parameters::default();
            } else {
                let share = |own: f64| {
                    let mut parameters = Parameters::default();
                    parameters.set("weight", Parameter::Number(own));
                    parameters
                };
                let is_end = expected == &second;
                recipe.models[0].parameters = share(f64::from(u8::from(!is_end)));
                recipe.models[1].parameters = share(f64::from(u8::from(is_end)));
            }
            let merged = run(&toy, &recipe, &RunOptions::default()).expect(method);
            for (key, expected) in fixture::tensors(expected) {
                let (found, expected) = (merged[&key].values(), expected.values());
                let difference = fixture::first_difference(&found, &expected, 1e-6, 0.0);
                assert_eq!(difference, None, "{method} {key}");
            }
        })
    };
    at_ends("slerp", "{t: 0}", "{t: 1}");
    at_ends("nearswap", "{t: 0}", "{t: 100}");
    at_ends("nuslerp", "{}", "{}");
    at_ends("linear", "{}", "{}");
}
