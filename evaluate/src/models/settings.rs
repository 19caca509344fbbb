//! Facts about a model that its checkpoint lacks and the caller gives.

use std::fmt::Debug;

use merge::Checkpoint;
pub use merge::layouts::ShallowAttention;
use merge::layouts::{ClipActivation, ModelRecord};

use super::towers::sizes;
use super::{Setting, Streams};
use crate::Result;
use crate::images::ImageInput;

/// The choice of routers outside of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterWay {
    /// Each token goes to the experts that score highest, whatever else is in the batch.
    Unlimited,
    /// Without noise, but with as little room for each expert as in the published program: tokens are dropped.
    Capacity,
    /// As the published program does: with noise, and with so little room for each expert that tokens are dropped.
    AsPublished,
}

/// Facts that a checkpoint lacks and the caller gives. A family that does not know one of these refuses it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overrides {
    /// Attention heads.
    pub n_heads: Option<usize>,
    /// First fusion block.
    pub fusion_start: Option<usize>,
    /// The attention between text and image before it.
    pub shallow_attention: Option<ShallowAttention>,
    /// Text positions that the bias table has room for; its rows alone do not tell.
    pub text_table_len: Option<usize>,
    /// Attention heads of the image tower, where a family has towers.
    pub image_heads: Option<usize>,
    /// Attention heads of the text tower.
    pub text_heads: Option<usize>,
    /// The function between the two layers of an FFN, where a family has several.
    pub activation: Option<ClipActivation>,
    /// The divisor of similarities, of a model that does not learn it.
    pub temperature: Option<f64>,
    /// The number subtracted from each channel of a picture, after it is scaled to `[0, 1]`.
    pub image_mean: Option<[f32; 3]>,
    /// The divisor of each channel after that.
    pub image_deviation: Option<[f32; 3]>,
    /// The way of reading texts, where a family has several.
    pub streams: Option<Streams>,
    /// Tokens of a text that is read together with an image, where a family fixes them.
    pub pair_len: Option<usize>,
    /// Whether the model does what the published program does where that is a slip.
    pub as_published: Option<bool>,
    /// The choice of routers outside of training; as the published program has it with its slips.
    pub routing: Option<RouterWay>,
    /// Blocks between the encoder and the head of hidden patches, of a model that starts without that head.
    pub decoder_depth: Option<usize>,
    /// Whether the head of masked words, of a model that starts without it, has the word embedding for its last layer.
    pub tied_words: Option<bool>,
}

impl Overrides {
    /// The settings that are given.
    pub fn given(&self) -> impl Iterator<Item = Setting> {
        let given = [
            (Setting::Heads, self.n_heads.is_some()),
            (Setting::FusionStart, self.fusion_start.is_some()),
            (Setting::ShallowAttention, self.shallow_attention.is_some()),
            (Setting::TextTableLen, self.text_table_len.is_some()),
            (Setting::ImageHeads, self.image_heads.is_some()),
            (Setting::TextHeads, self.text_heads.is_some()),
            (Setting::Activation, self.activation.is_some()),
            (Setting::Temperature, self.temperature.is_some()),
            (Setting::ImageMean, self.image_mean.is_some()),
            (Setting::ImageDeviation, self.image_deviation.is_some()),
            (Setting::Streams, self.streams.is_some()),
            (Setting::PairLen, self.pair_len.is_some()),
            (Setting::AsPublished, self.as_published.is_some()),
            (Setting::Routing, self.routing.is_some()),
            (Setting::DecoderDepth, self.decoder_depth.is_some()),
            (Setting::TiedWords, self.tied_words.is_some()),
        ];
        let given = given.into_iter().filter(|(_, is_given)| *is_given);
        given.map(|(setting, _)| setting)
    }
}

/// A fact that is given, or that the file's record holds; both must say the same.
pub(super) fn agreed<T: Copy + PartialEq + Debug>(
    checkpoint: &Checkpoint,
    what: &str,
    given: Option<T>,
    recorded: Option<T>,
) -> Result<Option<T>> {
    match (given, recorded) {
        (Some(given), Some(recorded)) if given != recorded => {
            let fault = format!(
                "`{what}` is {recorded:?} by the file's own record, but {given:?} was asked for"
            );
            Err(sizes::bad(checkpoint, &fault))
        }
        _ => Ok(given.or(recorded)),
    }
}

/// Pictures are normalized as the user or the file's record says, or else as the family does.
pub(super) fn normalize(
    image: &mut ImageInput,
    checkpoint: &Checkpoint,
    overrides: &Overrides,
    record: &ModelRecord,
) -> Result<()> {
    let (given, recorded) = (overrides.image_mean, record.image_mean);
    image.mean = agreed(checkpoint, "image_mean", given, recorded)?.unwrap_or(image.mean);
    let (given, recorded) = (overrides.image_deviation, record.image_deviation);
    let deviation = agreed(checkpoint, "image_deviation", given, recorded)?;
    image.deviation = deviation.unwrap_or(image.deviation);
    let mut numbers = image.mean.iter().chain(&image.deviation);
    if !(numbers.all(|x| x.is_finite()) && image.deviation.iter().all(|x| *x > 0.0)) {
        let fault = format!(
            "pictures are to be normalized by the mean {:?} and the deviation {:?}, which must be finite, and the \
             deviation above 0",
            image.mean, image.deviation
        );
        return Err(sizes::bad(checkpoint, &fault));
    }
    Ok(())
}
