//! Facts about a CLIP that the configuration beside it has and its weights lack.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Companions;
use crate::io::Container;
use crate::layouts::{ModelRecord, RecordFamily};
use crate::{Checkpoint, Result};

use super::spelling::{ClipNames, ClipSpelling};
use super::table::{OF_ARCHIVES, PATCHES, TOKENS};

/// The function between the two layers of an FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipActivation {
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// GELU by the error function.
    Gelu,
    /// GELU by the hyperbolic tangent.
    GeluTanh,
}

/// The row of a text that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PooledText {
    /// That of the largest token, the first one of several.
    Largest,
    /// That of the first of these tokens; the first row where there is none.
    Token(u32),
    /// The last row.
    Last,
    /// The first row.
    First,
}

/// The library whose program makes tokens and pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipLibrary {
    /// transformers.
    HuggingFace,
    /// open_clip.
    OpenClip,
}

/// The way in which a picture gets the size of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipResize {
    /// The shorter side to the model's, then the center.
    Shortest,
    /// Both sides to the model's.
    Squash,
}

/// Facts about a CLIP that the configuration beside it has and its weights lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipFacts {
    /// Activation of the image tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_activation: Option<ClipActivation>,
    /// Activation of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_activation: Option<ClipActivation>,
    /// The number that norms of the image tower add to the variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_epsilon: Option<f64>,
    /// The same of the text tower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_epsilon: Option<f64>,
    /// Whether a token of a text sees those before it alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_causal: Option<bool>,
    /// The row of a text that stands for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooled: Option<PooledText>,
    /// The token after the last one of a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<u32>,
    /// The way in which pictures get their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resize: Option<ClipResize>,
    /// The library whose rules for texts and pictures count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<ClipLibrary>,
}

impl ClipFacts {
    /// The parts that two models compute in different ways, in words; `None` if there are none. Rules for texts and
    /// pictures may differ from file to file.
    #[must_use]
    pub(in crate::layouts) fn computes_otherwise(&self, other: &Self) -> Option<[String; 2]> {
        let computed = |facts: &Self| {
            let activations = [facts.image_activation, facts.text_activation];
            let epsilons = [facts.image_epsilon, facts.text_epsilon];
            (activations, epsilons, facts.is_causal)
        };
        let (own, others) = (computed(self), computed(other));
        (own != others).then(|| [format!("{own:?}"), format!("{others:?}")])
    }
}

/// A configuration: facts, heads of both towers, mean and deviation of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClipConfig {
    /// The facts of CLIPs alone.
    pub facts: ClipFacts,
    /// Heads of each block of the image tower.
    pub image_heads: Option<usize>,
    /// Heads of each block of the text tower.
    pub text_heads: Option<usize>,
    /// The number subtracted from each channel of a picture.
    pub image_mean: Option<[f32; 3]>,
    /// The divisor of each channel after that.
    pub image_deviation: Option<[f32; 3]>,
}

/// The token that texts of published CLIPs end with.
const END: u32 = 49407;

/// Width of an attention head in the archives that OpenAI published.
const HEAD_WIDTH: usize = 64;

impl ClipConfig {
    /// The facts about a checkpoint beside its weights: by the form of OpenAI's archives, else by the configuration
    /// beside it.
    ///
    /// # Errors
    /// When a configuration cannot be read or is no JSON.
    pub(super) fn of(checkpoint: &Checkpoint, spelling: ClipSpelling) -> Result<Self> {
        match Self::of_archive(checkpoint, spelling) {
            Some(config) => Ok(config),
            None => Self::beside(checkpoint, spelling.is_open_clip()),
        }
    }

    /// The facts of OpenAI's archives, which their buffers mark: QuickGELU, and a head for each 64 of the width.
    pub(super) fn of_archive(checkpoint: &Checkpoint, spelling: ClipSpelling) -> Option<Self> {
        let is_archive = spelling.names == ClipNames::OpenClip
            && !spelling.is_custom_text
            && OF_ARCHIVES.iter().all(|buffer| {
                let key = format!("{}{buffer}", spelling.wrapper());
                (checkpoint.get(&key)).is_some_and(|info| info.n_elements() == 1)
            });
        let heads = |name: &str, axis: usize| {
            let mut keys = checkpoint.tensors();
            let found = keys.find(|(key, _)| spelling.apart_names(key).iter().any(|of| of == name));
            let width = found.and_then(|(_, info)| info.shape.get(axis).copied())?;
            width
                .is_multiple_of(HEAD_WIDTH)
                .then_some(width / HEAD_WIDTH)
        };
        is_archive.then(|| Self {
            facts: ClipFacts {
                image_activation: Some(ClipActivation::QuickGelu),
                text_activation: Some(ClipActivation::QuickGelu),
                image_epsilon: Some(1e-5),
                text_epsilon: Some(1e-5),
                is_causal: Some(true),
                pooled: Some(PooledText::Largest),
                padding: Some(0),
                resize: Some(ClipResize::Shortest),
                library: Some(ClipLibrary::OpenClip),
            },
            image_heads: heads(PATCHES, 0),
            text_heads: heads(TOKENS, 1),
            ..Self::default()
        })
    }

    /// The same as a record.
    pub(super) fn record(self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Clip),
            image_heads: self.image_heads,
            text_heads: self.text_heads,
            image_mean: self.image_mean,
            image_deviation: self.image_deviation,
            clip: Some(self.facts).filter(|facts| *facts != ClipFacts::default()),
            ..ModelRecord::default()
        }
    }

    /// The configuration beside a checkpoint: open_clip's where the keys are spelled so and it is there, else Hugging
    /// Face's; nothing where there is none.
    ///
    /// # Errors
    /// When a file cannot be read or is no JSON.
    fn beside(checkpoint: &Checkpoint, is_open_clip: bool) -> Result<Self> {
        if checkpoint.info().container == Container::Memory {
            return Ok(Self::default());
        }
        let folder = checkpoint.path();
        let mut companions = Companions::of_model(folder)?;
        if companions.0.is_empty()
            && let Some(folder) = folder.parent().filter(|folder| folder.is_dir())
        {
            // open_clip's files have names of their own.
            companions = Companions::of_model(folder)?;
        }
        let open_clip = companions.settings("open_clip_config.json")?;
        let hugging_face = companions.settings("config.json")?;
        let pictures = companions.settings("preprocessor_config.json")?;
        Ok(match (open_clip, hugging_face) {
            (Some(config), other) if is_open_clip || other.is_none() => Self::of_open_clip(&config),
            (_, Some(config)) => Self::of_hugging_face(&config, pictures.as_ref()),
            (_, None) => Self::default(),
        })
    }

    /// The facts in transformers' config.json and preprocessor_config.json, with the library's defaults for missing
    /// entries.
    #[must_use]
    pub fn of_hugging_face(config: &Value, pictures: Option<&Value>) -> Self {
        let is_siglip = match config["model_type"].as_str() {
            Some("clip") => false,
            Some("siglip" | "siglip2") => true,
            _ => return Self::default(),
        };
        let (image, text) = (&config["vision_config"], &config["text_config"]);
        let (activation, epsilon) = match is_siglip {
            true => (ClipActivation::GeluTanh, 1e-6),
            false => (ClipActivation::QuickGelu, 1e-5),
        };
        let heads = |of: &Value, default| count(&of["num_attention_heads"]).or(Some(default));
        let activation = |of: &Value| match of["hidden_act"].as_str() {
            None => Some(activation),
            Some(name) => named(name),
        };
        let epsilon = |of: &Value| of["layer_norm_eps"].as_f64().or(Some(epsilon));
        let end = text["eos_token_id"].as_u64();
        let colors = |name: &str| pictures.and_then(|pictures| colors(&pictures[name]));
        Self {
            facts: ClipFacts {
                image_activation: activation(image),
                text_activation: activation(text),
                image_epsilon: epsilon(image),
                text_epsilon: epsilon(text),
                is_causal: Some(!is_siglip),
                pooled: Some(match (is_siglip, end) {
                    (true, _) => PooledText::Last,
                    // The value of old configurations, which is no end token.
                    (false, Some(2)) => PooledText::Largest,
                    (false, end) => PooledText::Token(end.map_or(END, |end| end as u32)),
                }),
                padding: Some(match (is_siglip, end) {
                    (true, _) => 1,
                    (false, Some(2) | None) => END,
                    (false, Some(end)) => end as u32,
                }),
                resize: Some(match is_siglip {
                    true => ClipResize::Squash,
                    false => ClipResize::Shortest,
                }),
                library: Some(ClipLibrary::HuggingFace),
            },
            image_heads: heads(image, 12),
            text_heads: heads(text, if is_siglip { 12 } else { 8 }),
            image_mean: colors("image_mean"),
            image_deviation: colors("image_std"),
        }
    }

    /// The facts in open_clip_config.json, with the library's defaults for missing entries.
    #[must_use]
    pub fn of_open_clip(config: &Value) -> Self {
        let model = match config["model_cfg"].is_object() {
            true => &config["model_cfg"],
            // A configuration of the library itself.
            false => config,
        };
        let (image, text) = (&model["vision_cfg"], &model["text_cfg"]);
        let pictures = &config["preprocess_cfg"];
        let is_quick = model["quick_gelu"].as_bool().unwrap_or(false);
        let activation = |of: &Value| {
            Some(match (is_quick, of["act_kwargs"]["approximate"].as_str()) {
                (true, _) => ClipActivation::QuickGelu,
                (false, Some("tanh")) => ClipActivation::GeluTanh,
                (false, _) => ClipActivation::Gelu,
            })
        };
        let epsilon = |of: &Value| of["norm_kwargs"]["eps"].as_f64().or(Some(1e-5));
        let (image_activation, image_epsilon, image_heads) = match image["timm_model_name"].as_str()
        {
            Some(name) => timm(name),
            None => {
                let width = count(&image["width"]).unwrap_or(768);
                let head = count(&image["head_width"]).unwrap_or(64).max(1);
                (activation(image), epsilon(image), Some(width / head))
            }
        };
        let pooled = match text["pool_type"].as_str() {
            None | Some("argmax") => Some(PooledText::Largest),
            Some("last") => Some(PooledText::Last),
            Some("first") => Some(PooledText::First),
            Some("eos") => (text["eos_id"].as_u64()).map(|id| PooledText::Token(id as u32)),
            Some(_) => None,
        };
        let resize = match pictures["resize_mode"].as_str() {
            None | Some("shortest") => Some(ClipResize::Shortest),
            Some("squash") => Some(ClipResize::Squash),
            Some(_) => None,
        };
        Self {
            facts: ClipFacts {
                image_activation,
                text_activation: activation(text),
                image_epsilon,
                text_epsilon: epsilon(text),
                is_causal: Some(!text["no_causal_mask"].as_bool().unwrap_or(false)),
                pooled,
                padding: Some(text["pad_id"].as_u64().map_or(0, |id| id as u32)),
                resize,
                library: Some(ClipLibrary::OpenClip),
            },
            image_heads,
            text_heads: count(&text["heads"]).or(Some(8)),
            image_mean: colors(&pictures["mean"]),
            image_deviation: colors(&pictures["std"]),
        }
    }
}

/// An activation by the name that transformers has for it.
fn named(name: &str) -> Option<ClipActivation> {
    match name {
        "quick_gelu" => Some(ClipActivation::QuickGelu),
        "gelu" => Some(ClipActivation::Gelu),
        "gelu_pytorch_tanh" | "gelu_new" => Some(ClipActivation::GeluTanh),
        _ => None,
    }
}

/// Activation, epsilon and heads of an image tower of timm, as far as its name tells: those of the SigLIPs that
/// open_clip knows.
fn timm(name: &str) -> (Option<ClipActivation>, Option<f64>, Option<usize>) {
    const HEADS: [(&str, usize); 4] = [
        ("vit_base_", 12),
        ("vit_large_", 16),
        ("vit_so400m_", 16),
        ("vit_giantopt_", 16),
    ];
    let heads = HEADS.iter().find(|(start, _)| name.starts_with(start));
    let heads = heads.filter(|_| name.contains("_siglip_"));
    let activation = heads.map(|_| ClipActivation::Gelu);
    (activation, Some(1e-6), heads.map(|(_, heads)| *heads))
}

fn count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|value| usize::try_from(value).ok())
}

/// Three numbers, of the channels of a picture.
pub(in crate::layouts) fn colors(value: &Value) -> Option<[f32; 3]> {
    let mut colors = [0.0; 3];
    let values = value.as_array().filter(|values| values.len() == 3)?;
    for (color, value) in colors.iter_mut().zip(values) {
        *color = value.as_f64()? as f32;
    }
    Some(colors)
}
