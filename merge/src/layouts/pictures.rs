//! The way in which a classifier resizes pictures, by timm's configuration.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The filter of a picture on its way to the model's size.
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

/// The way in which a picture gets the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PictureCrop {
    /// The shorter side resized, then the center.
    Center,
    /// Both sides resized, then the center.
    Squash,
}

/// The size, the crop and the filter of a classifier's pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PictureFacts {
    /// The model's side, as a share of the side that a picture is resized to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop_share: Option<f64>,
    /// The way in which a picture gets its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crop: Option<PictureCrop>,
    /// The filter of its samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<PictureFilter>,
}

/// The share to which a picture is cropped where a configuration leaves it out.
const CROP_SHARE: f64 = 0.875;

impl PictureFacts {
    /// The facts in timm's configuration, with the library's defaults for missing entries; `None` for values that are
    /// not known here.
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
