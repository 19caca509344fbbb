//! A CLIP with both towers as a GGUF file.
//!
//! Source: `models/convert_hf_to_gguf.py` of clip.cpp, which calls the first layer of an MLP `ffn_down`.

use serde_json::Value;

use super::view::{Export, Wanted};
use super::{GgufExport, GgufType, Input, NO_TOKENIZER, tokenizer, unfilled};
use crate::gguf::architectures::Architecture;
use crate::gguf::names;
use crate::io::GgufHead;
use crate::layouts::{self, ClipActivation, ClipConfig, PooledText, Stack};
use crate::{DType, ExportFault, Layout, Result};

/// Axes of the kernel that makes rows of patches.
const KERNEL_AXES: usize = 4;

impl GgufExport {
    /// Adds the settings and the tensors of a CLIP; returns notes for users.
    pub(super) fn add_clip(
        &self,
        input: &Input<'_>,
        architecture: &'static Architecture,
        head: &mut GgufHead,
        export: &mut Export,
    ) -> Result<Vec<String>> {
        let layout = layouts::detect(input.source)?;
        let mut notes = Vec::new();
        let tokens = match self.with_tokenizer {
            true => Some(tokenizer::of_clip(input.source.path(), &input.companions)?),
            false => {
                notes.push(NO_TOKENIZER.to_owned());
                None
            }
        };
        write(input, layout.as_ref(), head)?;
        if let Some(tokens) = tokens {
            head.texts("tokenizer.ggml.tokens", &tokens.texts);
        }
        let mut n_unfilled = 0;
        for (key, info) in input.source.tensors() {
            if key.ends_with(".position_ids") {
                export.leave_out(key);
                continue;
            }
            let parsed = names::of_hugging_face(architecture, key);
            let parsed = parsed.filter(|_| info.dtype.is_float());
            let parsed = parsed.ok_or_else(|| ExportFault::UnknownTensor {
                path: input.source.path().into(),
                key: key.to_owned(),
                architecture: architecture.model_type,
            })?;
            let stored = input.source.stored_dtype(key).unwrap_or(info.dtype);
            let wanted = self.kind.dtype(stored);
            let fills = (info.shape.last()).is_some_and(|&width| export.fills(width));
            let is_matrix = info.shape.len() == 2;
            let is_coded = is_matrix && self.kind == GgufType::Q8_0;
            n_unfilled += usize::from(is_coded && !fills);
            let dtype = match info.shape.len() {
                2 => wanted,
                // Programs take kernels in these two types alone.
                KERNEL_AXES if wanted != DType::F32 => DType::F16,
                _ => DType::F32,
            };
            let wanted = Wanted {
                name: as_clip_cpp(parsed.gguf()),
                dtype,
                is_coded: is_coded && fills,
                turned: None,
                plus_one: false,
                others: None,
                is_row: false,
            };
            export.add(key, wanted)?;
        }
        notes.extend(unfilled(n_unfilled));
        Ok(notes)
    }
}

/// The name that clip.cpp has for a tensor.
fn as_clip_cpp(name: String) -> String {
    match name.contains(".ffn_up.") {
        true => name.replace(".ffn_up.", ".ffn_down."),
        false => name.replace(".ffn_down.", ".ffn_up."),
    }
}

/// Writes the settings.
fn write(input: &Input<'_>, layout: &dyn Layout, head: &mut GgufHead) -> Result<()> {
    let path = input.source.path();
    let refused = |key: &str, found: &Value, wanted: &str| ExportFault::Setting {
        path: path.into(),
        key: key.to_owned(),
        found: found.to_string(),
        wanted: wanted.to_owned(),
    };
    let pictures = input.companions.settings("preprocessor_config.json")?;
    // Newer programs write one file for pictures and texts.
    let processor = input.companions.settings("processor_config.json")?;
    let of_pictures = processor.and_then(|mut of| of.get_mut("image_processor").map(Value::take));
    let pictures = pictures.or(of_pictures);
    let config = ClipConfig::of_hugging_face(input.config, pictures.as_ref());
    let facts = config.facts;
    let unknown = || ExportFault::Architecture {
        path: path.into(),
        model_type: layout.name().to_owned(),
    };
    let sizes = layout.dimensions();
    let stack = |name: &str| sizes.stack(name).ok_or_else(unknown);
    let size = |found: Option<usize>| found.map(|n| n as u32).ok_or_else(unknown);
    head.text("general.description", "two-tower CLIP model");
    head.bool("clip.has_text_encoder", true);
    head.bool("clip.has_vision_encoder", true);
    head.u32("clip.text.context_length", size(sizes.text_len)?);
    head.u32("clip.vision.image_size", size(sizes.image_size)?);
    head.u32("clip.vision.patch_size", size(sizes.patch_size)?);
    let mut of_tower = |tower: &str, of: &str, stack: &Stack, heads, epsilon: Option<f64>| {
        let key = |entry: &str| format!("clip.{tower}.{entry}");
        head.u32(&key("embedding_length"), stack.width as u32);
        let width = size(stack.ffn_width)?;
        if width as usize <= stack.width {
            // By the sizes readers tell which layer of an MLP is called `ffn_down`.
            let found = &input.config[of]["intermediate_size"];
            let wanted = format!("more than the {} of the tower", stack.width);
            return Err(refused(&format!("{of}.intermediate_size"), found, &wanted).into());
        }
        head.u32(&key("feed_forward_length"), width);
        head.u32(&key("block_count"), stack.n_blocks as u32);
        head.u32(&key("projection_dim"), size(sizes.joint_width)?);
        head.u32(&key("attention.head_count"), size(heads)?);
        let epsilon = epsilon.ok_or_else(|| {
            let found = &input.config[of]["layer_norm_eps"];
            refused(&format!("{of}.layer_norm_eps"), found, "a number")
        })?;
        head.f32(&key("attention.layer_norm_epsilon"), epsilon as f32);
        Ok::<(), crate::Error>(())
    };
    of_tower(
        "text",
        "text_config",
        stack("text")?,
        config.text_heads,
        facts.text_epsilon,
    )?;
    of_tower(
        "vision",
        "vision_config",
        stack("image")?,
        config.image_heads,
        facts.image_epsilon,
    )?;
    let is_gelu = match (facts.image_activation, facts.text_activation) {
        (Some(ClipActivation::Gelu), Some(ClipActivation::Gelu)) => true,
        (Some(ClipActivation::QuickGelu), Some(ClipActivation::QuickGelu)) => false,
        (of_image, _) => {
            let is_known = |of: &ClipActivation| *of != ClipActivation::GeluTanh;
            let tower = match of_image.as_ref().is_some_and(is_known) {
                true => "text_config",
                false => "vision_config",
            };
            let wanted = "`quick_gelu` or `gelu` in both towers";
            let found = &input.config[tower]["hidden_act"];
            return Err(refused(&format!("{tower}.hidden_act"), found, wanted).into());
        }
    };
    head.bool("clip.use_gelu", is_gelu);
    for (entry, setting, colors) in [
        ("image_mean", "image_mean", config.image_mean),
        ("image_std", "image_std", config.image_deviation),
    ] {
        let colors = colors.ok_or_else(|| ExportFault::Pictures {
            path: path.into(),
            key: setting,
            found: (pictures.as_ref()).map_or(Value::Null, |of| of[setting].clone()),
        })?;
        head.f32s(&format!("clip.vision.{entry}"), &colors);
    }
    // Where config.json names no token, the row of the largest one stands for a text.
    if let Some(PooledText::Token(id)) = facts.pooled {
        head.u32("tokenizer.ggml.eos_token_id", id);
    }
    Ok(())
}
