//! Small mixtures of experts in every spelling, with experts and units in another order, and recipes over them.

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::Raw;
use merge::execute::{RunOptions, in_memory};
use merge::mixtures::MixtureSpelling;
use merge::progress::Silent;
use merge::random::Draws;
use merge::{Checkpoint, Error, MergePlan, MergeRecipe};
use safetensors::Dtype;

pub type Tensors = BTreeMap<String, Raw>;

pub const EXPERTS: usize = 4;
pub const UNITS: usize = 10;
pub const WIDTH: usize = 6;
pub const LAYERS: [usize; 2] = [1, 2];
/// No expert stays, and two steps do not lead back.
pub const ORDER: [usize; EXPERTS] = [2, 0, 3, 1];

pub fn raw(seed: u64, name: &str, shape: &[usize]) -> Raw {
    let mut values = vec![0.0; shape.iter().product()];
    Draws::new(seed, name).add_normal(1.0, 0, &mut values);
    Raw {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
    }
}

pub fn host(layer: usize) -> String {
    format!("model.layers.{layer}.mlp")
}

/// A model with a dense layer and two mixtures, as DeepSeek-MoE is spelled.
pub fn deepseek(seed: u64) -> Tensors {
    let mut model = mixtral_like(seed);
    for layer in LAYERS {
        for (name, shape) in [
            ("gate.e_score_correction_bias", &[EXPERTS][..]),
            ("shared_experts.gate_proj.weight", &[UNITS, WIDTH]),
            ("shared_experts.up_proj.weight", &[UNITS, WIDTH]),
            ("shared_experts.down_proj.weight", &[WIDTH, UNITS]),
        ] {
            let key = format!("{}.{name}", host(layer));
            model.insert(key.clone(), raw(seed, &key, shape));
        }
    }
    model
}

/// The same without what Mixtral has no name for.
pub fn mixtral_like(seed: u64) -> Tensors {
    let network = [
        ("gate_proj.weight", [UNITS, WIDTH]),
        ("up_proj.weight", [UNITS, WIDTH]),
        ("down_proj.weight", [WIDTH, UNITS]),
    ];
    let mut shapes = vec![("model.embed.weight".to_owned(), [7, WIDTH])];
    for (name, shape) in network {
        shapes.push((format!("{}.{name}", host(0)), shape));
        for layer in LAYERS {
            for expert in 0..EXPERTS {
                shapes.push((format!("{}.experts.{expert}.{name}", host(layer)), shape));
            }
        }
    }
    for layer in LAYERS {
        shapes.push((format!("{}.gate.weight", host(layer)), [EXPERTS, WIDTH]));
    }
    let tensors = shapes.into_iter();
    tensors
        .map(|(key, shape)| (key.clone(), raw(seed, &key, &shape)))
        .collect()
}

/// The model with its experts in another order.
pub fn shuffled(model: &Tensors) -> Tensors {
    reordered(model, ORDER)
}

/// The model with the experts of its mixtures in an order.
pub fn reordered(model: &Tensors, order: [usize; EXPERTS]) -> Tensors {
    let mut out = model.clone();
    for layer in LAYERS {
        let host = host(layer);
        for (to, from) in order.into_iter().enumerate() {
            let (to, from) = (
                format!("{host}.experts.{to}."),
                format!("{host}.experts.{from}."),
            );
            for (key, tensor) in model {
                if let Some(rest) = key.strip_prefix(&from) {
                    out.insert(format!("{to}{rest}"), tensor.clone());
                }
            }
        }
        for rows in ["gate.weight", "gate.e_score_correction_bias"] {
            if let Some(tensor) = out.get_mut(&format!("{host}.{rows}")) {
                *tensor = rows_in(tensor, &order);
            }
        }
    }
    out
}

/// Rows of a matrix, or elements of a vector, in another order.
pub fn rows_in(tensor: &Raw, order: &[usize]) -> Raw {
    let size = tensor.bytes.len() / tensor.shape[0];
    let rows = order
        .iter()
        .map(|&row| &tensor.bytes[row * size..(row + 1) * size]);
    Raw {
        bytes: rows.flatten().copied().collect(),
        ..tensor.clone()
    }
}

pub fn transposed(tensor: &Raw) -> Raw {
    let [rows, columns] = [tensor.shape[0], tensor.shape[1]];
    let element = |row: usize, column: usize| {
        let at = 4 * (row * columns + column);
        tensor.bytes[at..at + 4].iter().copied()
    };
    let bytes = (0..columns).flat_map(|column| (0..rows).flat_map(move |row| element(row, column)));
    Raw {
        bytes: bytes.collect(),
        shape: vec![columns, rows],
        dtype: tensor.dtype,
    }
}

/// The model with the hidden units of every network in an order of its own.
pub fn units_shuffled(model: &Tensors) -> Tensors {
    let mut out = model.clone();
    for (key, down) in model {
        let Some(prefix) = key.strip_suffix("down_proj.weight") else {
            continue;
        };
        let mut order: Vec<usize> = (0..UNITS).collect();
        Draws::new(9, prefix).sequence().shuffle(&mut order);
        for layer in ["gate_proj", "up_proj"] {
            let key = format!("{prefix}{layer}.weight");
            let moved = rows_in(&model[&key], &order);
            out.insert(key, moved);
        }
        out.insert(key.clone(), transposed(&rows_in(&transposed(down), &order)));
    }
    out
}

/// As Mixtral is spelled.
pub fn as_mixtral(model: &Tensors) -> Tensors {
    let is_of_mixture = |key: &str| key.contains(".experts.") || key.ends_with("mlp.gate.weight");
    let names = [
        ("mlp", "block_sparse_moe"),
        ("gate_proj", "w1"),
        ("up_proj", "w3"),
        ("down_proj", "w2"),
    ];
    let renamed = |key: &str| match is_of_mixture(key) {
        true => names
            .iter()
            .fold(key.to_owned(), |key, (from, to)| key.replace(from, to)),
        false => key.to_owned(),
    };
    model
        .iter()
        .map(|(key, tensor)| (renamed(key), tensor.clone()))
        .collect()
}

/// All experts in one tensor, as transformers 5 has them, or with rows and columns exchanged as before.
pub fn as_fused(model: &Tensors, is_transposed: bool) -> Tensors {
    let mut out = model.clone();
    out.retain(|key, _| !key.contains(".experts."));
    for layer in LAYERS {
        let of = |expert: usize, name: &str| {
            &model[&format!("{}.experts.{expert}.{name}.weight", host(layer))]
        };
        let turn = |tensor: Raw| {
            if is_transposed {
                transposed(&tensor)
            } else {
                tensor
            }
        };
        let mut add = |name: &str, each: &dyn Fn(usize) -> Raw| {
            let all: Vec<Raw> = (0..EXPERTS).map(|expert| turn(each(expert))).collect();
            let fused = Raw {
                dtype: Dtype::F32,
                shape: [&[EXPERTS][..], &all[0].shape].concat(),
                bytes: all.iter().flat_map(|tensor| tensor.bytes.clone()).collect(),
            };
            out.insert(format!("{}.experts.{name}", host(layer)), fused);
        };
        add("gate_up_proj", &|expert| Raw {
            dtype: Dtype::F32,
            shape: vec![2 * UNITS, WIDTH],
            bytes: [
                &of(expert, "gate_proj").bytes[..],
                &of(expert, "up_proj").bytes,
            ]
            .concat(),
        });
        add("down_proj", &|expert| of(expert, "down_proj").clone());
    }
    out
}

/// All experts in one tensor, as Granite-MoE has them.
pub fn as_granite(model: &Tensors) -> Tensors {
    let names = [
        (
            "mlp.experts.gate_up_proj",
            "block_sparse_moe.input_linear.weight",
        ),
        (
            "mlp.experts.down_proj",
            "block_sparse_moe.output_linear.weight",
        ),
        ("mlp.gate.weight", "block_sparse_moe.router.layer.weight"),
    ];
    let renamed = |key: &str| {
        names
            .iter()
            .fold(key.to_owned(), |key, (from, to)| key.replace(from, to))
    };
    let fused = as_fused(model, false);
    fused
        .into_iter()
        .map(|(key, tensor)| (renamed(&key), tensor))
        .collect()
}

/// Every spelling of a model that all have.
pub fn spellings(model: &Tensors) -> Vec<(MixtureSpelling, Tensors)> {
    vec![
        (MixtureSpelling::SingleExperts, model.clone()),
        (MixtureSpelling::Mixtral, as_mixtral(model)),
        (MixtureSpelling::FusedExperts, as_fused(model, false)),
        (MixtureSpelling::FusedTransposed, as_fused(model, true)),
        (MixtureSpelling::Granite, as_granite(model)),
    ]
}

pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    pub fn write(&self, name: &str, model: &Tensors) {
        fixtures::write(&self.0.path().join(format!("{name}.safetensors")), model);
    }

    /// The result of a recipe, `<name>` a file.
    pub fn plan(&self, yaml: &str) -> Result<MergePlan, Error> {
        let folder = self.0.path().display().to_string();
        let yaml = yaml
            .replace('<', &format!("{folder}/"))
            .replace('>', ".safetensors");
        let recipe = MergeRecipe::parse(&yaml, Path::new("test"))?;
        Ok(MergePlan::resolve(&recipe)?.0)
    }

    pub fn merged(&self, yaml: &str) -> Result<Checkpoint, Error> {
        in_memory(&self.plan(yaml)?, &RunOptions::default(), &Silent)
    }

    pub fn fault(&self, yaml: &str) -> String {
        let fault = self.merged(yaml).err().expect("refused");
        format!("{fault} ({})", fault.hint().unwrap_or_default())
    }
}

pub fn assert_same(found: &Checkpoint, expected: &Tensors) {
    let names: Vec<&str> = found.tensors().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        expected.keys().map(String::as_str).collect::<Vec<_>>()
    );
    for (name, tensor) in expected {
        assert_eq!(
            found.require(name).expect("there").shape,
            tensor.shape,
            "{name}"
        );
        assert!(
            found.read_all(name).expect("it reads") == tensor.bytes,
            "{name}"
        );
    }
}
