//! The way in which a classifier resizes pictures, by timm's configuration.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How a picture is sampled on its way to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureFilter {
    /// A triangle.
    Bilinear,
    /// Cubic convolution.
    Bicubic,
    /// A windowed sinc.
    Lanczos,
}

/// How a picture is brought to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureCrop {
    /// The shorter side resized, then the center.
    Center,
    /// Both sides resized, then the center.
    Squash,
}

/// How pictures are brought to a model's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PictureFacts {
    /// The model's side, as a share of the side that a picture is resized to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop_share: Option<f64>,
    /// How a picture gets its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<PictureCrop>,
    /// How it is sampled on the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<PictureFilter>,
}

/// What a picture is cropped to where a configuration leaves it out.
const CROP_SHARE: f64 = 0.875;

impl PictureFacts {
    /// What the entries of timm's configuration say. What it leaves out is as the library has it; what is not known here
    /// is `None`.
    pub(super) fn of_timm(config: &Value) -> Self {
        let text = |value: &Value, default: &'static str| match value {
            Value::Null => Some(default.to_owned()),
            value => value.as_str().map(str::to_owned),
        };
        Self {
            crop_share: match &config["crop_pct"] {
                Value::Null => Some(CROP_SHARE),
                share => share.as_f64().filter(|share| (1e-3..=1.0).contains(share)),
            },
            crop: match text(&config["crop_mode"], "center").as_deref() {
                Some("center") => Some(PictureCrop::Center),
                Some("squash") => Some(PictureCrop::Squash),
                _ => None,
            },
            filter: match text(&config["interpolation"], "bicubic").as_deref() {
                Some("bicubic") => Some(PictureFilter::Bicubic),
                Some("bilinear") => Some(PictureFilter::Bilinear),
                Some("lanczos") => Some(PictureFilter::Lanczos),
                _ => None,
            },
        }
    }
}
