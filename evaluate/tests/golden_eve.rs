//! EVE's model against numbers that the published program printed: fixtures/eve.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::Weights;
use evaluate::forward::{self, Given, Outcome, Recorder};
use evaluate::models::eve::gate::CHOICES;
use evaluate::models::eve::{Ask, Mixture, Modality};
use evaluate::models::{self, Opened, Overrides, RouterWay};
use evaluate::nn::{Capacity, GivenNoise, Noise, Routing, gumbel};
use fixtures::{Case, Dtype, Raw, Set, integers, list, number, text};
use merge::convert::EveStart;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::layouts::EveTask;
use merge::progress::Silent;

use crate::golden::models::values;

fixtures::golden_tests! {
    package: "evaluate", set: "eve",
    golden_eve_every_state_and_choice_is_that_of_the_published_program: "forward" => states,
    golden_eve_heads_of_tasks_are_those_of_the_published_program: "task_forward" => tasks,
    golden_eve_two_images_attend_to_each_other_as_published: "biattn_parts" => pairs,
    golden_eve_hidden_patches_are_those_of_the_published_program: "mask_hooks" => hidden_patches,
    golden_eve_a_loaded_file_runs_as_published: "load_forward" => loaded,
    golden_eve_routers_choose_as_published: "moe_gate" => gates,
    golden_eve_mixtures_answer_as_published: "moe_layer" => layers,
    golden_eve_experts_have_the_published_room: "moe_capacity" => capacities,
    golden_eve_noise_is_gumbels: "gumbel" => noise,
    golden_eve_experts_in_another_order_give_the_same_states: "permute_experts" => permuted,
}

pub type Tensors = BTreeMap<String, Raw>;

/// How a model of the set is run.
#[derive(Clone, Copy, Default)]
pub struct Way {
    pub routing: Option<RouterWay>,
    pub as_published: bool,
    pub pair_len: Option<usize>,
}

fn size(set: &Set, name: &str) -> usize {
    set.config()[name].as_u64().expect("a size") as usize
}

/// A model of the set.
pub fn open(set: &Set, tensors: &Tensors, way: Way) -> Opened {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    fixtures::write(&path, tensors);
    open_file(set, &path, way, tensors)
}

fn open_file(set: &Set, path: &Path, way: Way, tensors: &Tensors) -> Opened {
    let file = merge::io::open(path, &OpenOptions::default()).expect("it opens");
    let is_relative = tensors
        .keys()
        .any(|key| key.ends_with("relative_position_bias_table"));
    let overrides = overrides(set, way, is_relative);
    models::open(Arc::new(file), &overrides, &Device::Cpu, DType::F32).expect("a model")
}

fn overrides(set: &Set, way: Way, is_relative: bool) -> Overrides {
    Overrides {
        n_heads: Some(size(set, "num_heads")),
        text_table_len: is_relative.then(|| size(set, "texts_max_tokens")),
        pair_len: Some(
            way.pair_len
                .unwrap_or_else(|| size(set, "pairs_max_tokens")),
        ),
        as_published: Some(way.as_published),
        routing: way.routing,
        ..Overrides::default()
    }
}

/// How routers choose in a case.
pub fn routing_of(case: &Case) -> RouterWay {
    match case.param("capacity") {
        Some("upstream") => RouterWay::AsPublished,
        _ => RouterWay::Unlimited,
    }
}

/// Runs passes on tensors, of which those that the model does not take are left out.
pub fn run(opened: &Opened, tensors: &Tensors, passes: &[&str]) -> Outcome {
    let named = opened.model.named_passes().expect("passes");
    let known = named.inputs();
    let mut tensors = tensors.clone();
    tensors.retain(|name, _| known.iter().any(|input| input.is_called(name)));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("inputs.safetensors");
    fixtures::write(&path, &tensors);
    let file = merge::io::open(&path, &OpenOptions::default()).expect("it opens");
    let given = Given::open(&file, named.inputs(), &Device::Cpu, DType::F32).expect("inputs");
    let passes: Vec<String> = passes.iter().map(|&pass| pass.to_owned()).collect();
    forward::run(opened.model.as_ref(), &given, &passes, true).expect("it runs")
}

/// Compares outputs by name: numbers within the set's tolerance, whole numbers exactly.
fn compare(case: &Case, found: &BTreeMap<String, Tensor>, expected: &Tensors, tolerance: &str) {
    assert!(!expected.is_empty(), "something to compare");
    let manifest = case.set().json("manifest.json");
    let tolerance = &manifest["tolerances"][tolerance];
    let [rtol, atol] = ["rtol", "atol"].map(|name| number(&tolerance[name]));
    for (name, raw) in expected {
        let of_pass = found.get(name);
        if name.ends_with(".noise") && of_pass.is_none() {
            assert!(raw.values().iter().all(|value| *value == 0.0), "{name}");
            continue;
        }
        let tensor = of_pass.unwrap_or_else(|| panic!("no output {name}"));
        assert_eq!(tensor.dims(), raw.shape, "{name}");
        let [rtol, atol] = match raw.dtype {
            Dtype::F32 => [rtol, atol],
            _ => [0.0, 0.0],
        };
        let differs = fixtures::first_difference(&values(tensor), &raw.values(), rtol, atol);
        assert_eq!(differs, None, "{name}");
    }
}

/// The rows of a batch that a case takes, and a number of tokens of its texts.
fn cut(case: &Case, mut tensors: Tensors) -> Tensors {
    let rows: Option<Vec<i64>> = match &case["params"]["rows"] {
        rows if rows.is_array() => Some(integers(rows)),
        _ => None,
    };
    let n_tokens = case.count("text_tokens");
    for (name, raw) in &mut tensors {
        let (rows_of, columns) = (raw.shape[0], raw.shape.get(1).copied().unwrap_or(1));
        let row_bytes = raw.bytes.len() / rows_of.max(1);
        if let Some(rows) = &rows {
            let taken = rows.iter().map(|&row| row as usize * row_bytes);
            raw.bytes = taken
                .flat_map(|at| raw.bytes[at..at + row_bytes].to_vec())
                .collect();
            raw.shape[0] = rows.len();
        }
        if let (Some(n), true) = (n_tokens, name == "ids" || name == "atts") {
            let bytes = row_bytes / columns;
            let rows = raw.bytes.chunks_exact(row_bytes);
            raw.bytes = rows.flat_map(|row| row[..n * bytes].to_vec()).collect();
            raw.shape[1] = n;
        }
    }
    tensors
}

/// Zeros in place of the noise of every router in passes.
fn silence(case: &Case, passes: &[&str], inputs: &Tensors) -> Tensors {
    let set = case.set();
    let n_experts = size(set, "num_experts");
    let (b, n_image) = (inputs["ids"].shape[0], size(set, "image_tokens"));
    let layers = integers(&set.config()["moe_layers"]);
    let mut tables = Tensors::new();
    for pass in passes {
        let tokens = match *pass {
            "image" => n_image,
            "text" => inputs["ids"].shape[1],
            "text_long" => inputs["text_long_ids"].shape[1],
            _ => n_image + inputs["ids"].shape[1],
        };
        for layer in &layers {
            let shape = vec![b * tokens, n_experts];
            let raw = Raw {
                dtype: Dtype::F32,
                bytes: vec![0; 4 * shape[0] * shape[1]],
                shape,
            };
            tables.insert(format!("{pass}.block{layer}.moe.noise"), raw);
        }
    }
    tables
}

fn states(case: &Case) {
    let set = case.set();
    let mut weights = case.tensors("weights");
    let expected = case.tensors("expected");
    let mut inputs = set.tensors("forward/inputs.safetensors");
    let mut way = Way::default();
    if let Some(said) = case["override"].as_str() {
        // A longer table of positions, and other texts.
        let (_, key) = said.split_once(": ").expect("a file and a key");
        weights.insert(key.to_owned(), expected[key].clone());
        for name in ["ids", "atts", "text_long_ids", "text_long_atts"] {
            inputs.insert(name.to_owned(), expected[name].clone());
        }
        way.pair_len = Some(expected["ids"].shape[1]);
        let (b, image) = (
            expected["ids"].shape[0],
            inputs.get_mut("image").expect("images"),
        );
        image.bytes.truncate(image.bytes.len() / image.shape[0] * b);
        image.shape[0] = b;
    }
    let inputs = cut(case, inputs);
    let is_slip = case.count("text_tokens").is_some() || case.id().ends_with("single_moe");
    way.as_published = is_slip;
    let passes: Vec<&str> = list(&case["params"]["passes"]).iter().map(text).collect();
    let ways: Vec<(&str, RouterWay)> = match case.param("capacity") {
        Some(said) if said.starts_with("prefix of the key") => vec![
            ("plain.", RouterWay::Unlimited),
            ("capacity.", RouterWay::AsPublished),
        ],
        _ => vec![("", routing_of(case))],
    };
    for (prefix, routing) in ways {
        let opened = open(
            set,
            &weights,
            Way {
                routing: Some(routing),
                ..way
            },
        );
        let mut given = inputs.clone();
        match (case.param("noise"), routing) {
            (Some("fed"), _) => {
                let noise = expected
                    .iter()
                    .filter(|(name, _)| name.ends_with(".moe.noise"));
                given.extend(noise.map(|(name, raw)| (name.clone(), raw.clone())));
            }
            (_, RouterWay::AsPublished) => given.extend(silence(case, &passes, &inputs)),
            _ => {}
        }
        let found = run(&opened, &given, &passes).tensors;
        let wanted = expected.iter().filter_map(|(name, raw)| {
            let name = name.strip_prefix(prefix)?;
            let is_input = inputs.contains_key(name) || weights.contains_key(name);
            (!is_input).then(|| (name.to_owned(), raw.clone()))
        });
        compare(case, &found, &wanted.collect(), "forward");
    }
}

fn tasks(case: &Case) {
    let (set, task) = (case.set(), case.param("task").expect("a task"));
    let way = Way {
        routing: Some(routing_of(case)),
        ..Way::default()
    };
    let opened = open(set, &case.tensors("weights"), way);
    let expected = case.tensors("expected");
    let mut given = case.tensors("inputs");
    let of_task = expected.iter().filter(|(name, _)| {
        let rest = name.strip_prefix(task);
        rest.is_some_and(|rest| rest.starts_with('.'))
    });
    let (noise, outputs): (Vec<_>, Vec<_>) =
        of_task.partition(|(name, _)| name.contains(".noise."));
    let noise = noise.into_iter().map(|(name, raw)| {
        let name = name.split_once('.').expect("a task").1;
        (name.to_owned(), raw.clone())
    });
    given.extend(noise);
    let pass = task.strip_suffix("_biattn").unwrap_or(task);
    let found = run(&opened, &given, &[pass]).tensors;
    let outputs = outputs
        .into_iter()
        .map(|(name, raw)| (name.clone(), raw.clone()));
    compare(case, &found, &outputs.collect(), "forward");
}

fn pairs(case: &Case) {
    let opened = open(case.set(), &case.tensors("weights"), Way::default());
    let found = run(&opened, &case.tensors("inputs"), &["nlvr2"]).tensors;
    let expected = case.tensors("expected").into_iter();
    let expected = expected.map(|(name, raw)| (format!("nlvr2_biattn.{name}"), raw));
    compare(case, &found, &expected.collect(), "forward");
}

fn hidden_patches(case: &Case) {
    let expected = case.tensors("expected");
    let mut weights = case.tensors("weights");
    let token = "mask_embed_vision";
    weights.insert(format!("backbone.{token}"), expected[token].clone());
    let mut given = case.tensors("inputs");
    let of_masks = ["image_mask", "ids_keep"];
    given.extend(of_masks.map(|name| (name.to_owned(), expected[name].clone())));
    let passes: Vec<&str> = list(&case["params"]["passes"]).iter().map(text).collect();
    let way = Way {
        as_published: true,
        routing: Some(RouterWay::Unlimited),
        ..Way::default()
    };
    let found = run(&open(case.set(), &weights, way), &given, &passes).tensors;
    let outputs = expected
        .into_iter()
        .filter(|(name, _)| name != token && !of_masks.contains(&name.as_str()));
    compare(case, &found, &outputs.collect(), "forward");
}

fn loaded(case: &Case) {
    let set = case.set();
    let source = merge::io::open(&case.file("input"), &OpenOptions::default());
    let start = EveStart {
        image_size: Some(size(set, "image_size")),
        with_fresh_heads: case["params"]["load_head"] != true,
        ..EveStart::of(EveTask::Retrieval)
    };
    let (plan, _) = start
        .plan(Arc::new(source.expect("it opens")))
        .expect("a plan");
    let file = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let overrides = overrides(set, Way::default(), false);
    let opened = models::open(Arc::new(file), &overrides, &Device::Cpu, DType::F32);
    let given = case.tensors("inputs");
    let passes = ["image", "text", "vl", "retrieval"];
    let mut found = run(&opened.expect("a model"), &given, &passes).tensors;
    for name in ["eval_image", "eval_text"] {
        let feature = found[&format!("retrieval.{name}")].clone();
        found.insert(name.to_owned(), feature);
    }
    compare(case, &found, &case.tensors("expected"), "forward");
}

/// Noise of one router.
struct Table(Vec<f32>);

impl GivenNoise for Table {
    fn noise(&self, _: &str, _: usize, _: usize) -> candle_core::Result<Option<Vec<f32>>> {
        Ok(Some(self.0.clone()))
    }
}

/// A mixture of tensors that are called `moe.…`.
fn mixture(tensors: &Tensors) -> Mixture {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("moe.safetensors");
    fixtures::write(&path, tensors);
    let file = Arc::new(merge::io::open(&path, &OpenOptions::default()).expect("it opens"));
    let layout = merge::layouts::Generic::read(&file);
    let weights = Weights::new(file, &layout, str::to_owned, &Device::Cpu, DType::F32);
    let (router, inner) = (
        &tensors["moe.gate.wg.weight"].shape,
        tensors["moe.experts.experts.0.fc1.weight"].shape[0],
    );
    let sizes = [router[1], inner, router[0]];
    Mixture::load(&weights.expect("names"), "moe", sizes).expect("it loads")
}

/// The outputs of a mixture for given numbers, under the names of the set.
fn computed(
    mixture: &Mixture,
    x: &Tensor,
    noise: &Raw,
    capacity: Capacity,
    modality: Modality,
) -> BTreeMap<String, Tensor> {
    let noise: Vec<f32> = noise.values().iter().map(|&value| value as f32).collect();
    let routing = Routing {
        noise: Noise::Given(Arc::new(Table(noise))),
        capacity,
    };
    let ask = Ask {
        routing: &routing,
        modality,
        mask: None,
        block: 0,
    };
    let out = Recorder::new(true);
    mixture.forward(x, &ask, &out.pass("m")).expect("it runs");
    let tensors = out.into_tensors().into_iter();
    let named = tensors.filter_map(|(name, tensor)| {
        Some((name.strip_prefix("m.block0.moe.")?.to_owned(), tensor))
    });
    named.collect()
}

fn floats(shape: &[usize], values: impl Iterator<Item = f32>) -> Raw {
    Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values.flat_map(f32::to_le_bytes).collect(),
    }
}

/// A router that passes its input on as scores: the identity.
fn gates(case: &Case) {
    let prefix = text(&case["key_prefix"]).trim_end_matches('.');
    let expected = case.tensors_of("expected", prefix);
    let (rows, n) = (expected["logits"].shape[0], expected["logits"].shape[1]);
    let identity = (0..n * n).map(|at| if at % (n + 1) == 0 { 1.0 } else { 0.0 });
    let mut tensors = Tensors::new();
    tensors.insert("moe.gate.wg.weight".to_owned(), floats(&[n, n], identity));
    for expert in 0..n {
        for (name, shape) in [
            ("fc1.weight", vec![1, n]),
            ("fc1.bias", vec![1]),
            ("fc2.weight", vec![n, 1]),
            ("fc2.bias", vec![n]),
        ] {
            // The expert's own number is all that it answers.
            let value = if name == "fc2.bias" {
                expert as f32 + 1.0
            } else {
                0.0
            };
            let raw = floats(&shape, (0..shape.iter().product()).map(|_| value));
            tensors.insert(format!("moe.experts.experts.{expert}.{name}"), raw);
        }
    }
    let number = |name| case.number(name).expect("a number");
    let capacity = Capacity::Even {
        factor: number("capacity_factor"),
        least: number("min_capacity") as usize,
    };
    let x = expected["logits"]
        .tensor()
        .unsqueeze(0)
        .expect("a sequence");
    let noise = &expected["noise"];
    let found = computed(&mixture(&tensors), &x, noise, capacity, Modality::Text);
    let mut names = expected.clone();
    // The uniform numbers that the noise was made of are no output.
    names.retain(|name, _| !["combine", "dispatch", "uniform_f64"].contains(&name.as_str()));
    compare(case, &found, &names, "gate");
    // The dense tables, of the lists.
    let room = case.count("capacity").expect("a capacity");
    let place = |row: usize, expert: usize, place: usize| (row * n + expert) * room + place;
    let mut combine = vec![0.0; rows * n * room];
    let mut answers = vec![0.0; rows];
    for (chosen, at, kept, weight) in [
        ("first", "pos1", "keep1", "w1"),
        ("second", "pos2", "keep2", "w2"),
    ] {
        let of = |name: &str| values(&found[name]);
        let (chosen, at, kept, weight) = (of(chosen), of(at), of(kept), of(weight));
        for row in 0..rows {
            if kept[row] == 1.0 {
                combine[place(row, chosen[row] as usize, at[row] as usize)] += weight[row];
                answers[row] += weight[row] * (chosen[row] + 1.0);
            }
        }
    }
    let dispatch: Vec<f64> = combine
        .iter()
        .map(|w| f64::from(u8::from(*w > 0.0)))
        .collect();
    assert_eq!(dispatch, expected["dispatch"].values());
    let differs = fixtures::first_difference(&combine, &expected["combine"].values(), 1e-6, 1e-6);
    assert_eq!(differs, None, "combine");
    // And what experts answer arrives at the rows that chose them.
    let out = found["out"].narrow(2, 0, 1).expect("a column");
    let differs = fixtures::first_difference(&values(&out), &answers, 1e-6, 1e-6);
    assert_eq!(differs, None, "out");
    assert_eq!(CHOICES, 2);
}

fn layers(case: &Case) {
    let all = case.tensors("expected");
    let weights = all.iter().filter_map(|(name, raw)| {
        let name = name.strip_prefix("weights.")?;
        Some((name.to_owned(), raw.clone()))
    });
    let mixture = mixture(&weights.collect());
    let prefix = text(&case["key_prefix"]).trim_end_matches('.');
    let mut expected = case.tensors_of("expected", prefix);
    let x = expected.remove("x").expect("an input").tensor();
    let factor = match case["params"]["training"] == true {
        true => "capacity_factor",
        false => "eval_capacity_factor",
    };
    let capacity = Capacity::Even {
        factor: case.number(factor).expect("a factor"),
        least: size(case.set(), "min_capacity"),
    };
    let modality = match case.param("mode") {
        Some("vision") => Modality::Image,
        Some("text") => Modality::Text,
        _ => Modality::Both(case.count("image_tokens").expect("image tokens")),
    };
    let noise = expected["noise"].clone();
    let found = computed(&mixture, &x, &noise, capacity, modality);
    compare(case, &found, &expected, "forward");
}

fn capacities(case: &Case) {
    for row in list(&case.json("expected")) {
        let count = |name: &str| row[name].as_u64().expect("a count") as usize;
        let capacity = Capacity::Even {
            factor: number(&row["factor"]),
            least: count("min_capacity"),
        };
        let found = capacity.of(count("rows"), count("experts"), CHOICES);
        assert_eq!(found, count("capacity"), "{row}");
    }
}

fn noise(case: &Case) {
    let expected = case.tensors("expected");
    let found = expected["uniform"].values().into_iter();
    let found: Vec<f64> = found.map(|value| gumbel(value as f32).into()).collect();
    let differs = fixtures::first_difference(&found, &expected["gumbel"].values(), 1e-6, 1e-6);
    assert_eq!(differs, None);
}

/// Permutes as the set says, which must give its own tensors, and runs both models.
fn permuted(case: &Case) {
    let set = case.set();
    let mut weights = case.tensors("input");
    let before = weights.clone();
    let orders = case["params"]["permutation"].as_object().expect("orders");
    for (layer, order) in orders {
        let moe = format!("backbone.encoder.layers.{layer}.mlp_moe.moe.");
        for (new, old) in integers(order).into_iter().enumerate() {
            for name in ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"] {
                let [new, old] =
                    [new as i64, old].map(|k| format!("{moe}experts.experts.{k}.{name}"));
                weights.insert(new, before[&old].clone());
            }
            let router = format!("{moe}gate.wg.weight");
            let bytes = before[&router].bytes.len() / before[&router].shape[0];
            let old = old as usize * bytes;
            let row = before[&router].bytes[old..old + bytes].to_vec();
            let table = weights.get_mut(&router).expect("a router");
            table.bytes[new * bytes..(new + 1) * bytes].copy_from_slice(&row);
        }
    }
    for (name, raw) in case.tensors("expected") {
        assert_eq!(weights[&name], raw, "{name}");
    }
    let inputs = set.tensors("forward/inputs.safetensors");
    for (file, routing) in [
        ("plain", RouterWay::Unlimited),
        ("capacity", RouterWay::AsPublished),
    ] {
        let way = Way {
            routing: Some(routing),
            ..Way::default()
        };
        let mut given = inputs.clone();
        given.extend(silence(case, &["vl"], &inputs));
        let found = run(&open(set, &weights, way), &given, &["vl"]).tensors;
        let mut expected = set.tensors(&format!("forward/{file}.safetensors"));
        expected.retain(|name, _| {
            name.starts_with("vl.") && (name.ends_with(".out") || name == "vl.norm")
        });
        compare(case, &found, &expected, "forward");
    }
}
