//! Facts about a classifier that timm's configuration beside it has and its weights lack.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::beside::Companions;
use crate::io::Container;
use crate::layouts::clip::colors;
use crate::layouts::{ClipActivation, ModelRecord, PictureFacts, RecordFamily};
use crate::{Checkpoint, Result};

/// The pooling of a picture's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitPool {
    /// The class token.
    Token,
    /// The mean of the patches.
    Mean,
}

/// Facts about a classifier that the configuration beside it has and its weights lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitFacts {
    /// The function between the two layers of an FFN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<ClipActivation>,
    /// The number that every norm adds to the variance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// The pooling of a picture's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<VitPool>,
}

impl VitFacts {
    /// The parts that two models compute in different ways, in words; `None` if there are none.
    pub(in crate::layouts) fn computes_otherwise(&self, other: &Self) -> Option<[String; 2]> {
        let computed = |facts: &Self| (facts.activation, facts.epsilon, facts.pool);
        let (own, others) = (computed(self), computed(other));
        (own != others).then(|| [format!("{own:?}"), format!("{others:?}")])
    }
}

/// A configuration: facts, heads, mean and deviation of pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct VitConfig {
    /// The facts of these classifiers alone.
    pub facts: VitFacts,
    /// The way in which pictures get their size.
    pub pictures: PictureFacts,
    /// Attention heads of each block.
    pub heads: Option<usize>,
    /// The number subtracted from each channel of a picture.
    pub image_mean: Option<[f32; 3]>,
    /// The divisor of each channel after that.
    pub image_deviation: Option<[f32; 3]>,
    /// Side of the image in pixels, where the number of positions has two readings.
    pub image_size: Option<usize>,
}

/// Mean and deviation of pictures where a configuration leaves them out: ImageNet's.
const COLORS: [[f32; 3]; 2] = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]];

impl VitConfig {
    /// The facts in config.json beside a checkpoint; nothing where there is none of timm's.
    ///
    /// # Errors
    /// When the file cannot be read or is no JSON.
    pub(super) fn beside(checkpoint: &Checkpoint) -> Result<Self> {
        let config = of_timm_beside(checkpoint)?;
        Ok(config.map_or_else(Self::default, |config| Self::of_timm(&config)))
    }

    /// The facts in timm's config.json, by its own entries and by the library's settings for the name of the
    /// architecture, with the library's defaults for missing entries on pictures.
    #[must_use]
    pub fn of_timm(config: &Value) -> Self {
        let Some(name) = config["architecture"].as_str() else {
            return Self::default();
        };
        let name = name.split('.').next().unwrap_or(name);
        let (args, pictures) = (&config["model_args"], &config["pretrained_cfg"]);
        // Older files have the entries of pictures at the top.
        let pictures = if pictures.is_object() {
            pictures
        } else {
            config
        };
        let built = Architecture::of(name);
        let pool = [&config["global_pool"], &args["global_pool"]];
        let pool = pool.into_iter().find_map(Value::as_str);
        let channels = |value: &Value, default| match value {
            Value::Null => Some(default),
            value => colors(value),
        };
        Self {
            facts: VitFacts {
                activation: match &args["act_layer"] {
                    Value::Null => built.activation,
                    name => name.as_str().and_then(activation),
                },
                epsilon: built.epsilon,
                pool: match pool {
                    Some("token") => Some(VitPool::Token),
                    Some("avg") => Some(VitPool::Mean),
                    Some(_) => None,
                    None => built.pool,
                },
            },
            pictures: PictureFacts::of_timm(pictures),
            heads: match &args["num_heads"] {
                Value::Null => built.heads,
                heads => heads.as_u64().and_then(|heads| usize::try_from(heads).ok()),
            },
            image_mean: channels(&pictures["mean"], COLORS[0]),
            image_deviation: channels(&pictures["std"], COLORS[1]),
            image_size: pictures["input_size"][2]
                .as_u64()
                .and_then(|side| usize::try_from(side).ok()),
        }
    }

    /// The same as a record.
    pub(super) fn record(self) -> ModelRecord {
        ModelRecord {
            family: Some(RecordFamily::Vit),
            heads: self.heads,
            image_mean: self.image_mean,
            image_deviation: self.image_deviation,
            pictures: Some(self.pictures).filter(|facts| *facts != PictureFacts::default()),
            vit: Some(self.facts).filter(|facts| *facts != VitFacts::default()),
            ..ModelRecord::default()
        }
    }
}

/// timm's config.json beside a checkpoint; `None` where there is none of timm's.
pub(in crate::layouts) fn of_timm_beside(checkpoint: &Checkpoint) -> Result<Option<Value>> {
    if checkpoint.info().container == Container::Memory {
        return Ok(None);
    }
    let companions = Companions::of_model(checkpoint.path())?;
    let config = companions.settings("config.json")?;
    Ok(config.filter(|config| config["architecture"].is_string()))
}

/// timm's settings for the name of an architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Architecture {
    heads: Option<usize>,
    activation: Option<ClipActivation>,
    epsilon: Option<f64>,
    pool: Option<VitPool>,
}

/// Heads by how names begin: of several that fit, the longest counts.
const HEADS: [(&str, usize); 32] = [
    ("vit_tiny_", 3),
    ("vit_small_", 6),
    ("vit_base_", 12),
    ("vit_base_patch16_gap_", 16),
    ("vit_base_patch16_plus_", 14),
    ("vit_base_patch32_plus_", 14),
    ("vit_large_", 16),
    ("vit_huge_", 16),
    ("vit_giant_", 16),
    ("vit_giant_patch14_reg", 24),
    ("vit_giant_patch14_dinov2", 24),
    ("vit_giantopt_", 16),
    ("vit_gigantic_", 16),
    ("vit_xsmall_", 4),
    ("vit_medium_", 8),
    ("vit_mediumd_", 8),
    ("vit_betwixt_", 10),
    ("vit_wee_", 4),
    ("vit_little_", 5),
    ("vit_so150m_", 14),
    ("vit_so150m2_", 13),
    ("vit_so400m_", 16),
    ("deit_tiny_", 3),
    ("deit_small_", 6),
    ("deit_base_", 12),
    ("deit3_small_", 6),
    ("deit3_medium_", 8),
    ("deit3_base_", 12),
    ("deit3_large_", 16),
    ("deit3_huge_", 16),
    ("eva_large_", 16),
    ("flexivit_small", 6),
];

/// Further beginnings of names with their heads.
const OTHER_HEADS: [(&str, usize); 4] = [
    ("flexivit_base", 12),
    ("flexivit_large", 16),
    ("test_vit", 2),
    ("test_vit2", 2),
];

/// SigLIPs whose activation is GELU by the hyperbolic tangent.
const TANH: [&str; 4] = [
    "vit_base_patch32_siglip_",
    "vit_so400m_patch16_siglip_",
    "vit_giantopt_patch16_siglip_",
    "vit_large_patch16_siglip_gap_512",
];

impl Architecture {
    fn of(name: &str) -> Self {
        let known = HEADS.iter().chain(&OTHER_HEADS);
        let fitting = known.filter(|(start, _)| name.starts_with(start));
        let heads = fitting.max_by_key(|(start, _)| start.len());
        // Blocks of other forms under the same keys.
        let is_other = name.contains("_rpn_");
        let Some((_, heads)) = heads.filter(|_| !is_other) else {
            return Self::default();
        };
        let is_tanh = TANH.iter().any(|start| name.starts_with(start));
        let is_mean = name.contains("_gap_") || name.starts_with("eva_") || name == "test_vit2";
        Self {
            heads: Some(*heads),
            activation: Some(match (name.contains("_quickgelu_"), is_tanh) {
                (true, _) => ClipActivation::QuickGelu,
                (false, true) => ClipActivation::GeluTanh,
                (false, false) => ClipActivation::Gelu,
            }),
            epsilon: Some(if name.contains("_clip_") { 1e-5 } else { 1e-6 }),
            pool: Some(if is_mean {
                VitPool::Mean
            } else {
                VitPool::Token
            }),
        }
    }
}

/// An activation by the name that timm has for it.
fn activation(name: &str) -> Option<ClipActivation> {
    match name {
        "quick_gelu" => Some(ClipActivation::QuickGelu),
        "gelu" => Some(ClipActivation::Gelu),
        "gelu_tanh" => Some(ClipActivation::GeluTanh),
        _ => None,
    }
}
