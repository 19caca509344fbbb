//! Files of the repository's fixtures, and the tiny models in them.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};
use evaluate::Weights;
use evaluate::models::{Dvae, Model, Multiway, Overrides, ShallowAttention};
use evaluate::nn::{Buffers, Gradient, Gradients, Tape};
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::random::Draws;
use merge::{Checkpoint, MergePlan, MergeRecipe};
use train::collective::Alone;
use train::objectives::{Objective, Randomness};
use train::recipe::{CheckedRecipe, TrainRecipe};
use train::run::Backward;

pub use fixtures::{json, path};

/// Every architecture of the fixture, with its weights.
pub const ARCHITECTURES: [&str; 4] = ["ufo", "all_moe", "merged", "joint"];

/// A step of one process that learns from a whole batch and omits nothing.
pub fn plain<'a>(
    model: &'a dyn Model,
    objectives: &'a [(Box<dyn Objective>, f64)],
    buffers: &'a Buffers,
) -> Backward<'a> {
    Backward {
        model,
        objectives,
        collective: &Alone,
        randomness: NOTHING_OMITTED,
        drops: None,
        routing: None,
        balance: 0.0,
        experts: None,
        recomputes: false,
        buffers,
        scale: 1.0,
        n_parts: 1,
    }
}

/// Draws of the first step, of which none is used.
pub const NOTHING_OMITTED: Randomness = Randomness {
    seed: 0,
    step: 0,
    drop_path: 0.0,
    dropout: 0.0,
    mix: None,
};

/// An open checkpoint.
pub fn open(name: &str) -> Arc<Checkpoint> {
    let opened = merge::io::open(&path(name), &OpenOptions::default());
    Arc::new(opened.expect("the checkpoint opens"))
}

/// Every tensor of a file.
pub fn tensors(name: &str) -> HashMap<String, Tensor> {
    let tensors = fixtures::tensors(&path(name)).into_iter();
    tensors.map(|(name, raw)| (name, raw.tensor())).collect()
}

/// The values of a tensor.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_dtype(DType::F64).and_then(|t| t.flatten_all());
    flat.and_then(|t| t.to_vec1()).expect("values")
}

/// Facts that the tiny checkpoints do not tell: their bias tables are not of the published length.
pub fn overrides() -> Overrides {
    let len = json("config.json")["max_text_len_of_initckpt"].as_u64();
    Overrides {
        text_table_len: len.map(|len| len as usize),
        ..Overrides::default()
    }
}

/// A random tokenizer of images, which knows 50 tokens.
pub fn image_tokenizer() -> Arc<Dvae> {
    let weights = Dvae::weights(open("dvae/model.safetensors"), &Device::Cpu, DType::F32);
    Arc::new(Dvae::load(&weights.expect("names")).expect("an encoder"))
}

/// Pictures of 3 by 3 tokens for it.
pub fn target_images(n: usize) -> Tensor {
    let mut values = vec![0.0; n * 3 * 24 * 24];
    Draws::new(3, "target images").add_normal(0.3, 0, &mut values);
    Tensor::from_vec(values, (n, 3, 24, 24), &Device::Cpu).expect("pictures")
}

fn merged() -> Arc<Checkpoint> {
    let yaml = format!(
        "merge_method: interpolate\nmodels: [{{ model: \"{}\" }}]\nparameters: {{ ratio: 0.5 }}\n",
        path("ckpt/all_moe.safetensors").display()
    );
    let recipe = MergeRecipe::parse(&yaml, &path("recipe.yaml")).expect("a recipe");
    let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
    let run = RunOptions {
        hash: None,
        ..RunOptions::default()
    };
    Arc::new(in_memory(&plan, &run, &merge::progress::Silent).expect("merged"))
}

/// A model of the fixture whose weights are variables.
pub fn trainable(name: &str) -> (Multiway, Weights) {
    let mut overrides = overrides();
    let checkpoint = match name {
        "joint" => {
            overrides.shallow_attention = Some(ShallowAttention::Joint);
            open("ckpt/ufo.safetensors")
        }
        "merged" => merged(),
        other => open(&format!("ckpt/{other}.safetensors")),
    };
    let prepared = Multiway::prepare(checkpoint, &overrides, &Device::Cpu, DType::F32);
    let (config, weights) = prepared.expect("the model is known");
    // The one head that the fixtures lack.
    let weights = (weights.with_fresh(&["mim_score"], 1))
        .with_fresh_classes("mim_score", image_tokenizer().vocabulary())
        .trainable();
    let model = Multiway::load(&weights, config).expect("the model loads");
    (model, weights)
}

/// A short run on the real pictures.
pub fn recipe(checkpoint: &str, objectives: &str, settings: &[&str]) -> CheckedRecipe {
    let yaml = format!(
        "init: {{ checkpoint: \"{}\" }}\n\
         model: {{ text_table_len: 16 }}\n\
         data:\n\
         \x20 folder: \"{}\"\n\
         \x20 train: [{{ dataset: coco, split: train }}]\n\
         \x20 tokenizer: \"{}\"\n\
         objectives: {objectives}\n\
         optim: {{ lr: 1e-3, warmup: 2 }}\n\
         length: {{ steps: 6 }}\n\
         batch_size: 4\n\
         augmentation: square\n",
        path(checkpoint).display(),
        path("arrow").display(),
        path("real/vocab.txt").display(),
    );
    let settings: Vec<String> = settings.iter().map(|&s| s.to_owned()).collect();
    TrainRecipe::parse(&yaml, Path::new("recipe.yaml"), &settings).expect("a recipe")
}

/// Gradients of a loss by name of variable, by its graph or by the tape that its passes were recorded on.
pub fn gradients_by_name(
    loss: &Tensor,
    tape: Option<Tape>,
    variables: BTreeMap<String, Var>,
) -> BTreeMap<String, Vec<f64>> {
    let mut gradients = Gradients::of(variables.values());
    match tape {
        Some(tape) => tape.backward(loss, &mut gradients).expect("backward"),
        None => {
            let found = loss.backward().expect("backward");
            gradients.absorb(&found).expect("absorbed");
        }
    }
    let mut by_name = BTreeMap::new();
    for (name, variable) in variables {
        match gradients.get(&variable) {
            Some(Gradient::Host(gradient)) => {
                by_name.insert(name, gradient.iter().map(|&g| f64::from(g)).collect());
            }
            Some(Gradient::Device(gradient)) => {
                by_name.insert(name, values(gradient));
            }
            None => {}
        }
    }
    by_name
}

/// The length of a vector.
pub fn l2(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}
