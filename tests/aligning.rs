//! Transformers whose hidden units, heads and residual streams stand in another order: a permuted copy computes the
//! same, and merges as if it were in order.

use std::collections::BTreeMap;

use fixtures::{Raw, path};
use merge::random::{Draws, Sequence};
use safetensors::tensor::Dtype;
use tempfile::TempDir;

use crate::program::{ok, run};

/// Outputs of a permuted copy: sums are taken in another order.
const TOLERANCE: f64 = 1e-5;

pub(crate) type Tensors = BTreeMap<String, Raw>;

/// A drawn order of `n` things.
fn drawn(draws: &mut Sequence, n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for at in (1..n).rev() {
        order.swap(at, draws.below(at + 1));
    }
    order
}

/// The places of things of `len` numbers each.
fn spread(order: &[usize], len: usize) -> Vec<usize> {
    order
        .iter()
        .flat_map(|at| at * len..(at + 1) * len)
        .collect()
}

/// `times` stretches, one after the other, each in the same order.
fn stretches(order: &[usize], times: usize) -> Vec<usize> {
    (0..times)
        .flat_map(|time| order.iter().map(move |at| time * order.len() + at))
        .collect()
}

/// A tensor with one of its axes in another order.
fn moved(tensor: &mut Raw, axis: usize, order: &[usize]) {
    assert_eq!(tensor.shape[axis], order.len());
    let inner = tensor.shape[axis + 1..].iter().product::<usize>() * 4;
    let block = inner * order.len();
    tensor.bytes = (tensor.bytes.chunks_exact(block))
        .flat_map(|outer| {
            order
                .iter()
                .flat_map(|at| outer[at * inner..(at + 1) * inner].to_vec())
        })
        .collect();
}

/// Orders that are drawn once for each name.
pub(crate) struct Orders {
    draws: Sequence,
    known: BTreeMap<String, Vec<usize>>,
}

impl Orders {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            draws: Draws::new(seed, "orders").sequence(),
            known: BTreeMap::new(),
        }
    }

    fn of(&mut self, name: String, n: usize) -> Vec<usize> {
        let draws = &mut self.draws;
        self.known
            .entry(name)
            .or_insert_with(|| drawn(draws, n))
            .clone()
    }
}

/// A CLIP with everything in another order that may be, of these numbers of heads in the image tower and the text tower.
pub(crate) fn permuted_clip(tensors: &mut Tensors, n_heads: [usize; 2], orders: &mut Orders) {
    let keys: Vec<String> = tensors.keys().cloned().collect();
    for key in keys {
        let tensor = tensors.get_mut(&key).expect("there");
        let tower = match key.starts_with("vision_model.") || key.starts_with("visual_projection") {
            true => "image",
            false => "text",
        };
        let n_heads = n_heads[usize::from(tower == "text")];
        let width = |orders: &mut Orders, n| orders.of(tower.to_owned(), n);
        let shape = tensor.shape.clone();
        if let Some((_, rest)) = key.split_once("encoder.layers.") {
            let (block, part) = rest.split_once('.').expect("a part");
            let heads = |orders: &mut Orders, n: usize| {
                let order = orders.of(format!("{tower} {block} heads"), n_heads);
                spread(&order, n / n_heads)
            };
            let units = |orders: &mut Orders, n| orders.of(format!("{tower} {block} units"), n);
            match part {
                "self_attn.out_proj.weight" => {
                    let order = heads(orders, shape[1]);
                    moved(tensor, 1, &order);
                    moved(tensor, 0, &width(orders, shape[0]));
                }
                "mlp.fc2.weight" => {
                    moved(tensor, 1, &units(orders, shape[1]));
                    moved(tensor, 0, &width(orders, shape[0]));
                }
                "self_attn.out_proj.bias" | "mlp.fc2.bias" => {
                    moved(tensor, 0, &width(orders, shape[0]))
                }
                _ if part.starts_with("self_attn.") => {
                    let order = heads(orders, shape[0]);
                    moved(tensor, 0, &order);
                    if shape.len() == 2 {
                        moved(tensor, 1, &width(orders, shape[1]));
                    }
                }
                _ if part.starts_with("mlp.fc1") => {
                    moved(tensor, 0, &units(orders, shape[0]));
                    if shape.len() == 2 {
                        moved(tensor, 1, &width(orders, shape[1]));
                    }
                }
                _ => moved(tensor, 0, &width(orders, shape[0])),
            }
        } else if key.contains("class_embedding")
            || key.contains("patch_embedding")
            || key.contains("layrnorm")
            || key.contains("post_layernorm")
            || key.contains("final_layer_norm")
        {
            moved(tensor, 0, &width(orders, shape[0]));
        } else if key.contains("embedding")
            || key.ends_with("projection.weight")
            || key == "text_model.head.weight"
        {
            moved(tensor, 1, &width(orders, shape[1]));
        } else if key.starts_with("vision_model.head.attention.in_proj_weight") {
            // Keys and values read the stream, the query comes from the probe.
            let n = shape[1];
            let order = width(orders, n);
            let mut rest = tensor.clone();
            rest.bytes.drain(..n * n * 4);
            rest.shape[0] = 2 * n;
            moved(&mut rest, 1, &order);
            tensor.bytes.truncate(n * n * 4);
            tensor.bytes.extend(rest.bytes);
        }
    }
}

/// A multiway model, likewise; experts of a block share its heads.
pub(crate) fn permuted_multiway(
    tensors: &mut Tensors,
    (n_heads, n_blocks): (usize, usize),
    orders: &mut Orders,
) {
    let keys: Vec<String> = tensors.keys().cloned().collect();
    for key in keys {
        let tensor = tensors.get_mut(&key).expect("there");
        let shape = tensor.shape.clone();
        let width = |orders: &mut Orders, n| orders.of("width".to_owned(), n);
        let last = shape.len().saturating_sub(1);
        let heads_of =
            |orders: &mut Orders, block: &str| orders.of(format!("{block} heads"), n_heads);
        if let Some(rest) = key.strip_prefix("transformer.blocks.") {
            let (block, part) = rest.split_once('.').expect("a part");
            let heads =
                |orders: &mut Orders, n: usize| spread(&heads_of(orders, block), n / n_heads);
            let units = |orders: &mut Orders, n| {
                let expert = part.split('.').nth(1).filter(|of| !of.starts_with("fc"));
                let expert = expert.unwrap_or("");
                orders.of(format!("{block} {expert} units"), n)
            };
            if part.ends_with("qkv.weight") {
                let order = stretches(&heads(orders, shape[0] / 3), 3);
                moved(tensor, 0, &order);
                moved(tensor, 1, &width(orders, shape[1]));
            } else if part.ends_with("q_bias") || part.ends_with("v_bias") {
                let order = heads(orders, shape[0]);
                moved(tensor, 0, &order);
            } else if part.ends_with("proj.weight") {
                let order = heads(orders, shape[1]);
                moved(tensor, 1, &order);
                moved(tensor, 0, &width(orders, shape[0]));
            } else if part.ends_with("fc1.weight") {
                moved(tensor, 0, &units(orders, shape[0]));
                moved(tensor, 1, &width(orders, shape[1]));
            } else if part.ends_with("fc1.bias") {
                moved(tensor, 0, &units(orders, shape[0]));
            } else if part.ends_with("fc2.weight") {
                moved(tensor, 1, &units(orders, shape[1]));
                moved(tensor, 0, &width(orders, shape[0]));
            } else {
                moved(tensor, 0, &width(orders, shape[0]));
            }
        } else if key.ends_with("relative_position_bias_table") {
            let order: Vec<usize> = (0..n_blocks)
                .flat_map(|block| {
                    let order = heads_of(orders, &block.to_string());
                    order.into_iter().map(move |head| block * n_heads + head)
                })
                .collect();
            moved(tensor, 1, &order);
        } else if key.starts_with("transformer.patch_embed") || key.starts_with("transformer.norm")
        {
            moved(tensor, 0, &width(orders, shape[0]));
        } else if key.starts_with("text_embeddings.") && !key.ends_with("position_ids")
            || [
                "pooler.dense.weight",
                "mlm_score.transform.dense.weight",
                "img_cls_classifier.weight",
            ]
            .contains(&key.as_str())
            || key == "token_type_embeddings.weight"
            || key.starts_with("ifm_")
            || key.ends_with("_token")
        {
            moved(tensor, last, &width(orders, shape[last]));
        }
    }
}

/// Merges two files half and half, with a setting; what `merge` says.
pub(crate) fn merged(
    folder: &TempDir,
    [one, other]: [&str; 2],
    setting: &str,
) -> crate::program::Said {
    let recipe = format!(
        "merge_method: linear\nmodels: [{one}, {other}]\nparameters: {{ weight: 0.5 }}\n{setting}\n"
    );
    std::fs::write(folder.path().join("m.yaml"), recipe).expect("written");
    run(
        "-q merge {}/m.yaml --out {}/merged.safetensors --force --json",
        folder,
    )
}

pub(crate) fn assert_same(folder: &TempDir, expected: &Tensors) {
    let found = fixtures::tensors(&folder.path().join("merged.safetensors"));
    for (key, expected) in expected {
        // Buffers are left out of merges.
        let Some(found) = found.get(key) else {
            assert!(
                key.contains("position") || key.starts_with("mask_"),
                "{key}"
            );
            continue;
        };
        assert_eq!(found.values(), expected.values(), "{key}");
    }
}

/// Outputs of two files for the same inputs, those that do not depend on the order of the stream.
fn compare_outputs(
    folder: &TempDir,
    [one, other]: [&str; 2],
    inputs: &str,
    rest: &str,
    names: &[&str],
) {
    let outputs = [one, other].map(|model| {
        let line = format!(
            "-q forward {model} --inputs {inputs} --out {{}}/out.safetensors --force {rest}"
        );
        ok(run(&line, folder));
        fixtures::tensors(&folder.path().join("out.safetensors"))
    });
    for name in names {
        let [expected, found] = outputs.each_ref().map(|of| {
            let of = of
                .get(*name)
                .unwrap_or_else(|| panic!("no {name} in {:?}", of.keys()));
            of.values()
        });
        let most = expected
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= TOLERANCE * most,
                "{name}: {found} {expected}"
            );
        }
    }
}

#[test]
fn a_permuted_clip_computes_the_same_and_is_found_again() {
    for (name, heads) in [("hf_clip", 4), ("hf_siglip", 4)] {
        let folder = TempDir::new().expect("a folder");
        let source = path(&format!("clip/{name}"));
        let copy = folder.path().join(name);
        std::fs::create_dir(&copy).expect("made");
        std::fs::copy(source.join("config.json"), copy.join("config.json")).expect("copied");
        let original = fixtures::tensors(&source.join("model.safetensors"));
        let mut tensors = original.clone();
        permuted_clip(&mut tensors, [heads; 2], &mut Orders::new(3));
        fixtures::write(&copy.join("model.safetensors"), &tensors);
        let both = [source.display().to_string(), copy.display().to_string()];
        let both = [both[0].as_str(), both[1].as_str()];
        if name == "hf_clip" {
            let inputs = path("clip/forward/clip_inputs.safetensors")
                .display()
                .to_string();
            compare_outputs(
                &folder,
                both,
                &inputs,
                "",
                &["image_embeds", "text_embeds", "logits_per_image"],
            );
        } else {
            let inputs = path("clip/forward/siglip_inputs.safetensors")
                .display()
                .to_string();
            compare_outputs(&folder, both, &inputs, "", &["image_embeds", "text_embeds"]);
        }
        let said = ok(merged(&folder, both, "align: weights"));
        assert!(
            said.stdout.contains("residual stream of"),
            "{}",
            said.stdout
        );
        assert_same(&folder, &original);
        // Without it the mean is another model, and so it is with one part alone.
        for setting in ["", "align: { of: [units, heads] }"] {
            ok(merged(&folder, both, setting));
            let found = fixtures::tensors(&folder.path().join("merged.safetensors"));
            let key = "text_model.encoder.layers.0.self_attn.out_proj.weight";
            assert_ne!(found[key].values(), original[key].values());
        }
    }
}

#[test]
fn a_permuted_multiway_model_computes_the_same_and_is_found_again() {
    let config = fixtures::json("config.json");
    let number = |key: &str| config[key].as_u64().expect("a number") as usize;
    let (heads, blocks) = (number("num_heads"), number("num_layers"));
    for name in ["ufo", "all_moe"] {
        let folder = TempDir::new().expect("a folder");
        let source = path(&format!("ckpt/{name}.safetensors"));
        let original = fixtures::tensors(&source);
        let mut tensors = original.clone();
        tensors.retain(|_, tensor| tensor.dtype == Dtype::F32);
        permuted_multiway(&mut tensors, (heads, blocks), &mut Orders::new(4));
        let mut copy = original.clone();
        copy.extend(tensors);
        let file = folder.path().join("copy.safetensors");
        fixtures::write(&file, &copy);
        let both = [source.display().to_string(), file.display().to_string()];
        let both = [both[0].as_str(), both[1].as_str()];
        let inputs = path("forward/inputs.safetensors").display().to_string();
        compare_logits(&folder, both, &inputs);
        let said = ok(merged(&folder, both, "align: weights"));
        assert!(said.stdout.contains("heads of block 3"), "{}", said.stdout);
        assert_same(&folder, &original);
    }
}

/// All outputs of the multiway model that have no axis of the stream's width.
fn compare_logits(folder: &TempDir, [one, other]: [&str; 2], inputs: &str) {
    let width = fixtures::json("config.json")["hidden_size"]
        .as_u64()
        .expect("a width") as usize;
    let outputs = [one, other].map(|model| {
        let line = format!(
            "-q forward {model} --inputs {inputs} --out {{}}/out.safetensors --force --text-table-len 16"
        );
        ok(run(&line, folder));
        fixtures::tensors(&folder.path().join("out.safetensors"))
    });
    let mut n_compared = 0;
    for (name, expected) in &outputs[0] {
        if expected.shape.last() == Some(&width) {
            continue;
        }
        n_compared += 1;
        let (expected, found) = (expected.values(), outputs[1][name].values());
        let most = expected
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= TOLERANCE * most,
                "{name}: {found} {expected}"
            );
        }
    }
    assert!(n_compared > 2, "{:?}", outputs[0].keys());
}

/// A tiny decoder with four heads of queries that share two of keys.
fn decoder(seed: u64) -> Tensors {
    let (width, units, len) = (16, 24, 4);
    let shapes: Vec<(String, Vec<usize>)> = (0..2)
        .flat_map(|block| {
            let own = move |rest: &str| format!("model.layers.{block}.{rest}.weight");
            [
                (own("self_attn.q_proj"), vec![4 * len, width]),
                (own("self_attn.k_proj"), vec![2 * len, width]),
                (own("self_attn.v_proj"), vec![2 * len, width]),
                (own("self_attn.o_proj"), vec![width, 4 * len]),
                (own("self_attn.q_norm"), vec![len]),
                (own("mlp.gate_proj"), vec![units, width]),
                (own("mlp.up_proj"), vec![units, width]),
                (own("mlp.down_proj"), vec![width, units]),
                (own("input_layernorm"), vec![width]),
                (own("post_attention_layernorm"), vec![width]),
            ]
        })
        .chain([
            ("model.embed_tokens.weight".to_owned(), vec![50, width]),
            ("model.norm.weight".to_owned(), vec![width]),
            ("lm_head.weight".to_owned(), vec![50, width]),
        ])
        .collect();
    let tensor = |(key, shape): (String, Vec<usize>)| {
        let mut values = vec![0.0f32; shape.iter().product()];
        Draws::new(seed, &key).add_normal(0.3, 0, &mut values);
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let dtype = Dtype::F32;
        (
            key,
            Raw {
                dtype,
                shape,
                bytes,
            },
        )
    };
    shapes.into_iter().map(tensor).collect()
}

fn permuted_decoder(tensors: &mut Tensors, orders: &mut Orders) {
    let keys: Vec<String> = tensors.keys().cloned().collect();
    for key in keys {
        let tensor = tensors.get_mut(&key).expect("there");
        let shape = tensor.shape.clone();
        let block = key.split('.').nth(2).unwrap_or("").to_owned();
        let keys_of = orders.of(format!("{block} keys"), 2);
        let within = [0, 1].map(|group| orders.of(format!("{block} {group} queries"), 2));
        // Queries stay with their keys.
        let queries: Vec<usize> = (keys_of.iter().enumerate())
            .flat_map(|(to, from)| within[to].iter().map(move |at| 2 * from + at))
            .collect();
        let units = orders.of(format!("{block} units"), 24);
        let width = orders.of("width".to_owned(), 16);
        let part = key.rsplit('.').nth(1).unwrap_or("");
        match part {
            "q_proj" => moved(tensor, 0, &spread(&queries, 4)),
            "k_proj" | "v_proj" => moved(tensor, 0, &spread(&keys_of, 4)),
            "o_proj" => moved(tensor, 1, &spread(&queries, 4)),
            "gate_proj" | "up_proj" => moved(tensor, 0, &units),
            "down_proj" => moved(tensor, 1, &units),
            _ => {}
        }
        match part {
            "q_norm" => {}
            "o_proj" | "down_proj" | "input_layernorm" | "post_attention_layernorm" | "norm" => {
                moved(tensor, 0, &width);
            }
            _ => {
                assert_eq!(shape[1], 16);
                moved(tensor, 1, &width);
            }
        }
    }
}

#[test]
fn heads_that_share_keys_stay_together_in_a_decoder() {
    let folder = TempDir::new().expect("a folder");
    let config = r#"{ "model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2 }"#;
    let original = decoder(1);
    let mut copy = original.clone();
    permuted_decoder(&mut copy, &mut Orders::new(5));
    for (name, tensors) in [("one", &original), ("two", &copy)] {
        let model = folder.path().join(name);
        std::fs::create_dir(&model).expect("made");
        std::fs::write(model.join("config.json"), config).expect("written");
        fixtures::write(&model.join("model.safetensors"), tensors);
    }
    let both = ["one", "two"].map(|name| folder.path().join(name).display().to_string());
    let both = [both[0].as_str(), both[1].as_str()];
    ok(merged(&folder, both, "align: weights"));
    assert_same(&folder, &original);
    // With noise it is found, too: the mean is near.
    let mut noisy = copy.clone();
    for (key, tensor) in &mut noisy {
        let mut values: Vec<f32> = tensor
            .values()
            .into_iter()
            .map(|value| value as f32)
            .collect();
        Draws::new(9, key).add_normal(0.01, 0, &mut values);
        tensor.bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
    }
    fixtures::write(&folder.path().join("two/model.safetensors"), &noisy);
    ok(merged(
        &folder,
        both,
        "align: { by: weights, of: [width, heads, units] }",
    ));
    let found = fixtures::tensors(&folder.path().join("merged.safetensors"));
    for (key, expected) in &original {
        for (found, expected) in found[key].values().iter().zip(expected.values()) {
            assert!((found - expected).abs() < 0.03, "{key}: {found} {expected}");
        }
    }
}

#[test]
fn what_cannot_be_permuted_is_refused_by_name() {
    let folder = TempDir::new().expect("a folder");
    let mut tensors = decoder(1);
    let file = |name: &str, tensors: &Tensors| {
        let file = folder.path().join(name);
        fixtures::write(&file, tensors);
        file.display().to_string()
    };
    let plain = [
        file("a.safetensors", &tensors),
        file("b.safetensors", &decoder(2)),
    ];
    let plain = [plain[0].as_str(), plain[1].as_str()];
    let said = merged(&folder, plain, "align: weights");
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("num_attention_heads"),
        "{}",
        said.stderr
    );
    // Units need no number of heads.
    ok(merged(&folder, plain, "align: { of: [units] }"));
    let extra = tensors["model.norm.weight"].clone();
    tensors.insert("model.adapter.weight".to_owned(), extra);
    let odd = [
        file("c.safetensors", &tensors),
        file("d.safetensors", &tensors),
    ];
    let odd = [odd[0].as_str(), odd[1].as_str()];
    let said = merged(&folder, odd, "align: { of: [width] }");
    assert!(
        said.stderr
            .contains("`model.adapter.weight`: nothing tells its place"),
        "{}",
        said.stderr
    );
    for (setting, why) in [
        ("align: gradients", "unknown variant `gradients`"),
        (
            "align: { by: activations, of: [units] }",
            "needs `activations`",
        ),
        ("align: { of: [] }", "names nothing"),
        ("align: weights\nalign_units: true", "by itself"),
    ] {
        let said = merged(&folder, plain, setting);
        assert_ne!(said.code, Some(0), "{setting}");
        assert!(said.stderr.contains(why), "{setting}: {}", said.stderr);
    }
}
