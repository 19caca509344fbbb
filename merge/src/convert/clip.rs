//! CLIPs under the keys of transformers or of open_clip, with the configuration that the other library reads.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::beside::{Beside, Companion};
use crate::layouts::{
    self, Clip, ClipActivation, ClipConfig, ClipFacts, ClipSpelling, Dimensions, ModelRecord,
    PooledText, Stack,
};
use crate::{Checkpoint, ConversionFault, Layout, Result};

/// The library whose keys a CLIP gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClipTarget {
    /// transformers'.
    HuggingFace,
    /// open_clip's.
    OpenClip,
}

impl ClipTarget {
    /// The library's name for a file of weights, without its ending.
    const fn stem(self) -> &'static str {
        match self {
            Self::HuggingFace => "model",
            Self::OpenClip => "open_clip_model",
        }
    }
}

/// Mean and deviation of pictures as CLIP has them, and as SigLIP has them.
const COLORS: [[[f32; 3]; 2]; 2] = [
    [
        [0.481_454_66, 0.457_827_5, 0.408_210_73],
        [0.268_629_54, 0.261_302_6, 0.275_777_1],
    ],
    [[0.5; 3], [0.5; 3]],
];

/// The checkpoint under the keys of a library; with its facts, for the configuration.
///
/// # Errors
/// [`ConversionFault::NoSuchConversion`] for other families, [`ConversionFault::NoCounterpart`] for what the library has
/// no place for, and [`crate::Error::UnknownKey`].
pub(super) fn respelled(
    source: Arc<Checkpoint>,
    layout: &dyn Layout,
    to: ClipTarget,
) -> Result<Arc<Checkpoint>> {
    let Some(clip) = Clip::read(&source)? else {
        let wanted = match to {
            ClipTarget::HuggingFace => "spelled as transformers spells a CLIP",
            ClipTarget::OpenClip => "spelled as open_clip spells a CLIP",
        };
        return Err(ConversionFault::NoSuchConversion {
            path: source.path().into(),
            layout: layout.name(),
            wanted,
        }
        .into());
    };
    for (key, _) in source.tensors() {
        layout.role(key)?;
        let is_bias = layouts::without_module(key) == "logit_bias";
        if is_bias && to == ClipTarget::HuggingFace && !clip.is_siglip() {
            return Err(ConversionFault::NoCounterpart {
                path: source.path().into(),
                key: key.to_owned(),
                target: "transformers' CLIP",
                why: "only its SigLIP adds a bias to similarities",
            }
            .into());
        }
    }
    let spelling = match to {
        ClipTarget::HuggingFace => ClipSpelling::HUGGING_FACE,
        ClipTarget::OpenClip => ClipSpelling::open_clip(clip.is_siglip()),
    };
    layouts::clip::respelled(source, spelling)
}

/// The configuration of the library beside the weights of a CLIP in a folder, its sizes being `sizes`. An unknown fact,
/// or one that the library cannot state, is a note.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn beside(
    source: &Checkpoint,
    sizes: &Dimensions,
    facts: &ModelRecord,
    to: ClipTarget,
) -> Result<Beside> {
    let mut beside = Beside {
        weights: Some(to.stem()),
        ..Beside::default()
    };
    let Some(clip) = Clip::read(source)? else {
        return Ok(beside);
    };
    let config = known(source, &clip, facts)?;
    let model = Model {
        sizes,
        config,
        is_siglip: clip.is_siglip(),
    };
    let files = match to {
        ClipTarget::HuggingFace => model.hugging_face(),
        ClipTarget::OpenClip => model.open_clip(),
    };
    match files {
        Ok(files) => beside.files = files,
        Err(what) => beside.notes.push(format!(
            "{}: no configuration is written beside the weights: {what}",
            source.path().display()
        )),
    }
    Ok(beside)
}

/// The given facts, those of the file's record, and those of the configuration beside it.
fn known(source: &Checkpoint, clip: &Clip, given: &ModelRecord) -> Result<ClipConfig> {
    let record = ModelRecord::of(source)?;
    let config = clip.config(source)?;
    let facts = given.clip.or(record.clip).unwrap_or(config.facts);
    Ok(ClipConfig {
        facts,
        image_heads: (given.image_heads)
            .or(record.image_heads)
            .or(config.image_heads),
        text_heads: (given.text_heads)
            .or(record.text_heads)
            .or(config.text_heads),
        image_mean: (given.image_mean)
            .or(record.image_mean)
            .or(config.image_mean),
        image_deviation: (given.image_deviation)
            .or(record.image_deviation)
            .or(config.image_deviation),
    })
}

/// A model that a configuration is written of.
struct Model<'a> {
    sizes: &'a Dimensions,
    config: ClipConfig,
    is_siglip: bool,
}

/// A fact that is unknown, or that a library cannot state.
type Unsaid = &'static str;

impl Model<'_> {
    fn facts(&self) -> &ClipFacts {
        &self.config.facts
    }

    fn stack(&self, name: &str) -> std::result::Result<&Stack, Unsaid> {
        let stack = self.sizes.stack(name);
        stack.ok_or("a tower is missing")
    }

    fn colors(&self) -> [[f32; 3]; 2] {
        let [mean, deviation] = COLORS[usize::from(self.is_siglip)];
        [
            self.config.image_mean.unwrap_or(mean),
            self.config.image_deviation.unwrap_or(deviation),
        ]
    }

    fn hugging_face(&self) -> std::result::Result<Vec<Companion>, Unsaid> {
        let (is_siglip, sizes) = (self.is_siglip, self.sizes);
        let end = self.end();
        let of_tower = |name: &str, heads: Option<usize>, activation, epsilon: Option<f64>| {
            let stack = self.stack(name)?;
            Ok::<_, Unsaid>(json!({
                "hidden_size": stack.width,
                "intermediate_size": stack.ffn_width,
                "num_hidden_layers": stack.n_blocks,
                "num_attention_heads": heads.ok_or("the heads are not known")?,
                "hidden_act": hidden_act(activation)?,
                "layer_norm_eps": epsilon.ok_or("the epsilon of norms is not known")?,
            }))
        };
        let facts = self.facts();
        let mut image = of_tower(
            "image",
            self.config.image_heads,
            facts.image_activation,
            facts.image_epsilon,
        )?;
        let mut text = of_tower(
            "text",
            self.config.text_heads,
            facts.text_activation,
            facts.text_epsilon,
        )?;
        let kind = if is_siglip { "siglip" } else { "clip" };
        image["model_type"] = json!(format!("{kind}_vision_model"));
        image["num_channels"] = json!(3);
        image["image_size"] = json!(sizes.image_size.ok_or("the image size is not known")?);
        image["patch_size"] = json!(sizes.patch_size);
        text["model_type"] = json!(format!("{kind}_text_model"));
        text["vocab_size"] = json!(sizes.vocabulary);
        text["max_position_embeddings"] = json!(sizes.text_len);
        if facts.is_causal != Some(!is_siglip) {
            return Err("transformers has no such model: who sees whom in its texts");
        }
        let mut config = json!({ "model_type": kind });
        match (is_siglip, facts.pooled) {
            (true, Some(PooledText::Last)) => {
                config["architectures"] = json!(["SiglipModel"]);
                text["projection_size"] = json!(sizes.joint_width);
            }
            (false, Some(PooledText::Largest)) => text["eos_token_id"] = json!(2),
            (false, Some(PooledText::Token(id))) => text["eos_token_id"] = json!(id),
            _ => return Err("transformers has no such model: which row stands for a text"),
        }
        let [mean, deviation] = self.colors();
        let side = sizes.image_size;
        let mut pictures = json!({
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": mean,
            "image_std": deviation,
            "resample": 3,
            "rescale_factor": 1.0 / 255.0,
        });
        if is_siglip {
            pictures["image_processor_type"] = json!("SiglipImageProcessor");
            pictures["size"] = json!({ "height": side, "width": side });
        } else {
            config["architectures"] = json!(["CLIPModel"]);
            config["projection_dim"] = json!(sizes.joint_width);
            image["projection_dim"] = json!(sizes.joint_width);
            text["projection_dim"] = json!(sizes.joint_width);
            text["bos_token_id"] = json!(end.saturating_sub(1));
            text["pad_token_id"] = json!(end);
            pictures["image_processor_type"] = json!("CLIPImageProcessor");
            pictures["do_center_crop"] = json!(true);
            pictures["do_convert_rgb"] = json!(true);
            pictures["crop_size"] = json!({ "height": side, "width": side });
            pictures["size"] = json!({ "shortest_edge": side });
        }
        (config["vision_config"], config["text_config"]) = (image, text);
        Ok(vec![
            file("config.json", &config),
            file("preprocessor_config.json", &pictures),
        ])
    }

    /// The token that published texts end with: the last one.
    fn end(&self) -> usize {
        self.sizes.vocabulary.unwrap_or(0).saturating_sub(1)
    }

    fn open_clip(&self) -> std::result::Result<Vec<Companion>, Unsaid> {
        let (sizes, facts) = (self.sizes, self.facts());
        let (image, text) = (self.stack("image")?, self.stack("text")?);
        let heads = (self.config.text_heads).ok_or("the heads of the text tower are not known")?;
        let side = sizes.image_size.ok_or("the image size is not known")?;
        let ratio = |stack: &Stack| {
            let ffn = stack.ffn_width.ok_or("the width of an FFN is not known")?;
            Ok::<_, Unsaid>(ffn as f64 / stack.width.max(1) as f64)
        };
        let mut text_cfg = json!({
            "context_length": sizes.text_len,
            "vocab_size": sizes.vocabulary,
            "width": text.width,
            "heads": heads,
            "layers": text.n_blocks,
            "mlp_ratio": ratio(text)?,
        });
        let activation =
            |of: Option<ClipActivation>| of.ok_or("the activation of a tower is not known");
        let (of_image, of_text) = (
            activation(facts.image_activation),
            activation(facts.text_activation)?,
        );
        set_norm(&mut text_cfg, facts.text_epsilon);
        set_activation(&mut text_cfg, of_text);
        if facts.is_causal == Some(false) {
            text_cfg["no_causal_mask"] = json!(true);
        }
        match facts.pooled {
            Some(PooledText::Largest) => {}
            Some(PooledText::Token(id)) if id as usize == self.end() => {}
            Some(PooledText::Token(id)) => {
                text_cfg["pool_type"] = json!("eos");
                text_cfg["eos_id"] = json!(id);
            }
            Some(PooledText::Last) => text_cfg["pool_type"] = json!("last"),
            Some(PooledText::First) => text_cfg["pool_type"] = json!("first"),
            None => return Err("which row stands for a text is not known"),
        }
        let mut model = json!({ "embed_dim": sizes.joint_width });
        if self.is_siglip {
            let name = timm_name(image.width, sizes.patch_size, side)
                .ok_or("timm has no SigLIP of these sizes")?;
            model["init_logit_bias"] = json!(-10);
            model["custom_text"] = json!(true);
            text_cfg["proj_bias"] = json!(true);
            model["vision_cfg"] = json!({
                "image_size": side,
                "timm_model_name": name,
                "timm_model_pretrained": false,
                "timm_pool": "map",
                "timm_proj": "none",
            });
        } else {
            let of_image = of_image?;
            let is_quick = [of_image, of_text].map(|of| of == ClipActivation::QuickGelu);
            if is_quick[0] != is_quick[1] {
                return Err("open_clip has QuickGELU in both towers or in none");
            }
            model["quick_gelu"] = json!(is_quick[0]);
            let heads =
                (self.config.image_heads).ok_or("the heads of the image tower are not known")?;
            let mut vision = json!({
                "image_size": side,
                "layers": image.n_blocks,
                "width": image.width,
                "head_width": image.width / heads.max(1),
                "patch_size": sizes.patch_size,
                "mlp_ratio": ratio(image)?,
            });
            set_norm(&mut vision, facts.image_epsilon);
            set_activation(&mut vision, of_image);
            model["vision_cfg"] = vision;
        }
        model["text_cfg"] = text_cfg;
        let [mean, deviation] = self.colors();
        let resize = if self.is_siglip { "squash" } else { "shortest" };
        let config = json!({
            "model_cfg": model,
            "preprocess_cfg": {
                "mean": mean,
                "std": deviation,
                "interpolation": "bicubic",
                "resize_mode": resize,
                "size": [side, side],
            },
        });
        Ok(vec![file("open_clip_config.json", &config)])
    }
}

fn set_norm(config: &mut Value, epsilon: Option<f64>) {
    if let Some(epsilon) = epsilon.filter(|epsilon| *epsilon != 1e-5) {
        config["norm_kwargs"] = json!({ "eps": epsilon });
    }
}

fn set_activation(config: &mut Value, activation: ClipActivation) {
    if activation == ClipActivation::GeluTanh {
        config["act_kwargs"] = json!({ "approximate": "tanh" });
    }
}

fn hidden_act(activation: Option<ClipActivation>) -> std::result::Result<&'static str, Unsaid> {
    match activation {
        Some(ClipActivation::QuickGelu) => Ok("quick_gelu"),
        Some(ClipActivation::Gelu) => Ok("gelu"),
        Some(ClipActivation::GeluTanh) => Ok("gelu_pytorch_tanh"),
        None => Err("the activation of a tower is not known"),
    }
}

/// timm's name for the image tower of a SigLIP.
fn timm_name(width: usize, patch: Option<usize>, side: usize) -> Option<String> {
    let size = match width {
        768 => "base",
        1024 => "large",
        1152 => "so400m",
        1536 => "giantopt",
        _ => return None,
    };
    Some(format!("vit_{size}_patch{}_siglip_{side}", patch?))
}

fn file(name: &str, value: &Value) -> Companion {
    let why = "from the sizes and the configuration of the source";
    Companion::json(name, value, why)
}
