//! CLIP of candle-transformers, with weights that vlmerge reads or merges.
//!
//! ```sh
//! cargo run --release --workspace --example candle_clip                  # tiny models of fixtures/
//! cargo run --release --workspace --example candle_clip -- ONE.safetensors OTHER.safetensors
//! ```
//!
//! The files are CLIP ViT-B/32 in the layout of Hugging Face. They are averaged in memory, and candle's model is
//! built of the result. Without files, a tiny model is compared with the numbers of transformers first; a test of
//! this crate runs that, too.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig};
use candle_transformers::models::clip::vision_model::ClipVisionConfig;
use candle_transformers::models::clip::{ClipConfig, ClipModel};
use evaluate::Weights;
use merge::execute::{RunOptions, in_memory};
use merge::io::OpenOptions;
use merge::progress::Silent;
use merge::{Checkpoint, MergePlan, MergeRecipe, layouts};

/// Where the tiny models are.
const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/clip");

pub(crate) type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    let given: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (files, config) = match given.is_empty() {
        true => (vec![tiny("hf_clip"), tiny("hf_clip_gelu")], tiny_config()),
        false => (given, ClipConfig::vit_base_patch32()),
    };
    let mut out = std::io::stdout().lock();
    if files[0].starts_with(FIXTURES) {
        let error = difference_from_transformers()?;
        writeln!(out, "largest difference from transformers: {error:e}")?;
    }
    let models: Vec<String> = (files.iter())
        .map(|file| format!("{{ model: {:?} }}", file.display().to_string()))
        .collect();
    let yaml = format!("merge_method: linear\nmodels: [{}]\n", models.join(", "));
    let recipe = MergeRecipe::parse(&yaml, Path::new("recipe.yaml"))?;
    let (plan, _) = MergePlan::resolve(&recipe)?;
    let merged = in_memory(&plan, &RunOptions::default(), &Silent)?;

    let weights = weights(merged)?;
    let model = ClipModel::new(weights.var_builder(), &config)?;
    let (side, device) = (config.image_size, Device::Cpu);
    let pixels = Tensor::zeros((1, 3, side, side), DType::F32, &device)?;
    let end = config.text_config.vocab_size as u32 - 1; // the text's feature is that of its largest id
    let ids = Tensor::new(&[[1u32, 5, end], [1, 7, end]], &device)?;
    let (_, logits) = model.forward(&pixels, &ids)?;
    let unused = weights.report().unused;
    writeln!(out, "logits of the merge: {:?}", logits.to_vec2::<f32>()?)?;
    writeln!(
        out,
        "tensors that no part of the model asked for: {unused:?}"
    )?;
    Ok(())
}

/// The tensors of a checkpoint under their own names.
fn weights(checkpoint: Checkpoint) -> Outcome<Arc<Weights>> {
    let checkpoint = Arc::new(checkpoint);
    let layout = layouts::detect(&checkpoint)?;
    let (device, dtype) = (Device::Cpu, DType::F32);
    let weights = Weights::new(checkpoint, layout.as_ref(), str::to_owned, &device, dtype)?;
    Ok(Arc::new(weights))
}

/// The largest difference of a tiny model's logits from those of transformers 4.57.
pub(crate) fn difference_from_transformers() -> Outcome<f32> {
    let file = merge::io::open(&tiny("hf_clip"), &OpenOptions::default())?;
    let model = ClipModel::new(weights(file)?.var_builder(), &tiny_config())?;
    let folder = Path::new(FIXTURES).join("forward");
    let inputs =
        candle_core::safetensors::load(folder.join("clip_inputs.safetensors"), &Device::Cpu)?;
    let expected =
        candle_core::safetensors::load(folder.join("hf_clip_pad0.safetensors"), &Device::Cpu)?;
    let ids = inputs["input_ids_pad0"].to_dtype(DType::U32)?;
    let (_, logits) = model.forward(&inputs["pixel_values"], &ids)?;
    let error = (logits - &expected["logits_per_image"])?.abs()?.max_all()?;
    Ok(error.to_scalar()?)
}

/// A file of the tiny models.
fn tiny(name: &str) -> PathBuf {
    Path::new(FIXTURES).join(name).join("model.safetensors")
}

/// The sizes of the tiny models.
fn tiny_config() -> ClipConfig {
    ClipConfig {
        text_config: ClipTextConfig {
            vocab_size: 99,
            embed_dim: 32,
            activation: Activation::QuickGelu,
            intermediate_size: 128,
            max_position_embeddings: 16,
            pad_with: None,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            projection_dim: 24,
        },
        vision_config: ClipVisionConfig {
            embed_dim: 32,
            activation: Activation::QuickGelu,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            projection_dim: 24,
            num_channels: 3,
            image_size: 32,
            patch_size: 8,
        },
        logit_scale_init_value: 2.6592,
        image_size: 32,
    }
}
