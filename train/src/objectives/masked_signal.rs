//! Masked signal modeling: pixels of hidden patches and masked words, each guessed from all that is left of both.

use candle_core::{DType, Tensor};
use evaluate::batch::Pair;
use evaluate::crossing;
use evaluate::models::Head;
use evaluate::nn::Guessed;
use serde::{Deserialize, Serialize};

use super::masked_language::{Guesses, guess};
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::batch::{Batch, MaskedSignals};
use crate::{Error, Result};

/// The number added to the variance of a patch before its root divides the patch.
const EPSILON: f64 = 1e-6;

/// The choice of patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMode {
    /// All patches alike.
    #[default]
    Random,
    /// In rectangles, as BEiT does, and at random what these leave.
    Blockwise,
}

/// The replacement of a chosen word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WordMode {
    /// The mask for 80 %, a random word for 10 %, the word itself for 10 %.
    #[default]
    Bert,
    /// The mask.
    MaskOnly,
}

/// The passes in which the model guesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalPasses {
    /// One pass, in which patches are hidden and words are masked.
    #[default]
    Joint,
    /// One with hidden patches and the whole text for pixels, one with the whole image and masked words for words.
    Separate,
}

/// The places of hidden patches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HidingStyle {
    /// A learned token stands in their places.
    #[default]
    Inplace,
    /// The encoder does not see them; the decoder, which the model must have then, gets that token.
    Drop,
}

/// Settings of masking and guessing signals. The program of EVE's pre-training is not published, so each of these is
/// inferred.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SignalSettings {
    /// Share of the patches that are hidden, rounded down (0.75).
    pub image_ratio: f64,
    /// Share of the words that are masked, special tokens and padding not counted; at least one (0.5).
    pub text_ratio: f64,
    /// `random` or `blockwise`: how patches are chosen (`random`).
    pub patches: PatchMode,
    /// `bert` or `mask_only`: the replacement of a masked word (`bert`).
    pub words: WordMode,
    /// `joint` or `separate` passes for pixels and words (`joint`).
    pub passes: SignalPasses,
    /// `inplace` or `drop`: where hidden patches are (`inplace`).
    pub style: HidingStyle,
    /// Whether the pixels of each patch are standardized by their own mean and deviation (true).
    pub norm_target: bool,
    /// Factor of the loss of pixels (1).
    pub image_weight: f64,
    /// Factor of the loss of words (1).
    pub text_weight: f64,
}

impl Default for SignalSettings {
    fn default() -> Self {
        Self {
            image_ratio: 0.75,
            text_ratio: 0.5,
            patches: PatchMode::Random,
            words: WordMode::Bert,
            passes: SignalPasses::Joint,
            style: HidingStyle::Inplace,
            norm_target: true,
            image_weight: 1.0,
            text_weight: 1.0,
        }
    }
}

impl SignalSettings {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::BadSetting`] with the key.
    pub fn check(&self) -> Result<()> {
        let bad = |key: &str, reason: String| Error::BadSetting {
            key: format!("objectives.signal.{key}"),
            reason,
        };
        for (key, share) in [
            ("image_ratio", self.image_ratio),
            ("text_ratio", self.text_ratio),
        ] {
            if !(share > 0.0 && share < 1.0) {
                return Err(bad(key, format!("{share} is no share between 0 and 1")));
            }
        }
        let weights = [
            ("image_weight", self.image_weight),
            ("text_weight", self.text_weight),
        ];
        for (key, weight) in weights {
            if !(weight >= 0.0 && weight.is_finite()) {
                return Err(bad(key, format!("{weight} is no factor; give 0 or more")));
            }
        }
        match weights.iter().all(|(_, weight)| *weight == 0.0) {
            true => Err(bad(
                "image_weight",
                "nothing is learned, for both weights are 0".into(),
            )),
            false => Ok(()),
        }
    }
}

/// Guessing hidden patches by the mean squared error of their pixels, and masked words by cross entropy.
///
/// Chen et al. 2024, "EVE", <https://arxiv.org/abs/2308.11971>, whose program for this is not published; He et al. 2021,
/// "Masked autoencoders", <https://arxiv.org/abs/2111.06377>, for targets.
#[derive(Clone, Copy, Debug, Default)]
pub struct MaskedSignal {
    settings: SignalSettings,
}

impl MaskedSignal {
    /// With these settings.
    ///
    /// # Errors
    /// As [`SignalSettings::check`].
    pub fn new(settings: SignalSettings) -> Result<Self> {
        settings.check()?;
        Ok(Self { settings })
    }

    /// The mean over hidden patches of the mean squared error of their pixels. `states: (b, n, d)`, class token first.
    fn pixels(&self, states: &Tensor, signals: &MaskedSignals, step: &Step<'_>) -> Result<Tensor> {
        let n_pixels = step.model.n_classes(Head::MaskedImage)?;
        let image = step.image()?.pixels.to_dtype(DType::F32)?;
        let targets = patches(&image, n_pixels)?; // (b, p, pixels)
        let masked: Vec<u8> = crossing::to_memory(&signals.patches)?;
        if targets.dim(1)? * step.batch.n != masked.len() {
            return Err(Error::OtherPatches {
                tokens: targets.dim(1)?,
                patches: masked.len() / step.batch.n.max(1),
            });
        }
        let hidden = masked.iter().enumerate().filter(|(_, masked)| **masked > 0);
        let hidden: Vec<u32> = hidden.map(|(at, _)| at as u32).collect();
        let n_hidden = hidden.len();
        let hidden = crossing::to_device(hidden, n_hidden, image.device())?;
        let rows = |x: &Tensor| x.contiguous()?.flatten_to(1)?.index_select(&hidden, 0);
        let targets = match self.settings.norm_target {
            true => standardized(&rows(&targets)?)?,
            false => rows(&targets)?,
        };
        let states = states.narrow(1, 1, states.dim(1)? - 1)?;
        let found = step.model.score(Head::MaskedImage, &rows(&states)?)?;
        Ok((found.to_dtype(DType::F32)? - targets)?.sqr()?.mean_all()?)
    }

    /// The loss of masked words, from `states: (b, t, d)`.
    fn words(&self, states: &Tensor, signals: &MaskedSignals, step: &Step<'_>) -> Result<Loss> {
        let guesses = Guesses {
            hidden: states.contiguous()?.flatten_to(1)?,
            places: &signals.words.places,
            labels: &signals.words.labels,
            measure: "masked_signal_word_accuracy",
        };
        guess(guesses, step, |rows, labels| {
            let logits = step.model.score(Head::MaskedLanguage, rows)?;
            Ok(Guessed::by(&logits, labels)?)
        })
    }
}

/// The pixels of each patch, red, green and blue of each in turn: `(b, 3, s, s) -> (b, p, 3 q q)`, where `n` is `3 q q`.
fn patches(image: &Tensor, n: usize) -> candle_core::Result<Tensor> {
    let (b, c, height, _) = image.dims4()?;
    let q = (n / c).isqrt().max(1);
    let side = height / q;
    let grid = image.reshape((b, c, side, q, side, q))?;
    let grid = grid.permute((0, 2, 4, 3, 5, 1))?.contiguous()?; // (b, side, side, q, q, c)
    grid.reshape((b, side * side, q * q * c))
}

/// Rows with their own mean taken from them and divided by their own deviation.
fn standardized(rows: &Tensor) -> candle_core::Result<Tensor> {
    let centered = rows.broadcast_sub(&rows.mean_keepdim(1)?)?;
    let variance = centered.sqr()?.mean_keepdim(1)?;
    centered.broadcast_div(&(variance + EPSILON)?.sqrt()?)
}

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "masked_signal",
    needs: Needs {
        image: true,
        text: true,
        masked_signals: true,
        ..Needs::NOTHING
    },
    heads: &[Head::MaskedImage, Head::MaskedLanguage],
    after: &[],
    reads: &["signal", "model.decoder_depth", "model.tied_words"],
    open: |opening| {
        let settings = opening.signal.unwrap_or_default();
        Ok(Box::new(MaskedSignal::new(settings)?))
    },
};

impl Objective for MaskedSignal {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn n_passes(&self, _: &Batch) -> usize {
        match self.settings.passes {
            SignalPasses::Joint => 1,
            SignalPasses::Separate => 2,
        }
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (image, whole, signals) = (step.image()?, step.text()?, step.masked_signals()?);
        let text = whole.with_ids(&signals.words.ids);
        let model = step.model.fusion()?;
        let hidden = |pair: Pair<'_>, name: &str| {
            let ways = step.ways(name);
            let pair = pair.masked(&signals.patches);
            let pair = match self.settings.style {
                HidingStyle::Inplace => pair,
                HidingStyle::Drop => pair.leaving_out(),
            };
            model.reconstructed(&pair, &step.pass(&ways))
        };
        let (of_image, of_text) = match self.settings.passes {
            SignalPasses::Joint => {
                let states = hidden(Pair::new(&text, image), "masked_signal")?;
                (states.image, states.text)
            }
            SignalPasses::Separate => {
                let states = hidden(Pair::new(whole, image), "masked_signal.image")?;
                let ways = step.ways("masked_signal.text");
                let pair = Pair::new(&text, image);
                let words = model.guessed_from(&pair, &step.pass(&ways))?;
                (states.image, words)
            }
        };
        let pixels = self.pixels(&of_image, signals, step)?;
        let words = self.words(&of_text, signals, step)?;
        let reported = |loss: &Tensor| Ok::<_, Error>(f64::from(crossing::number::<f32>(loss)?));
        let n = step.batch.n as f64;
        let mut measures = vec![
            ("masked_signal_pixel_loss", n * reported(&pixels)?, n),
            ("masked_signal_word_loss", n * words.reported, n),
        ];
        measures.extend(words.measures);
        let pixels = (pixels * self.settings.image_weight)?;
        let words = (words.value.to_dtype(DType::F32)? * self.settings.text_weight)?;
        Loss::mean((pixels + words)?, measures)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn patches_hold_their_own_pixels_color_by_color() {
        // Two by two patches of two by two pixels.
        let image = Tensor::arange(0f32, 48.0, &Device::Cpu).expect("numbers");
        let image = image.reshape((1, 3, 4, 4)).expect("an image");
        let patches = patches(&image, 12).expect("patches");
        assert_eq!(patches.dims(), [1, 4, 12]);
        let rows: Vec<Vec<f32>> = (patches.squeeze(0).and_then(|p| p.to_vec2())).expect("rows");
        let second = [2., 18., 34., 3., 19., 35., 6., 22., 38., 7., 23., 39.];
        assert_eq!(rows[1], second);
        let last = [10., 26., 42., 11., 27., 43., 14., 30., 46., 15., 31., 47.];
        assert_eq!(rows[3], last);
    }

    #[test]
    fn a_patch_is_standardized_by_its_own_mean_and_deviation() {
        let rows = Tensor::new(&[[1f32, 3.0, 5.0, 7.0], [2.0; 4]], &Device::Cpu).expect("rows");
        let rows: Vec<Vec<f32>> = standardized(&rows)
            .and_then(|rows| rows.to_vec2())
            .expect("rows");
        // The mean is 4, the variance 5.
        for (found, exact) in rows[0].iter().zip([-3.0, -1.0, 1.0, 3.0]) {
            assert!((f64::from(*found) - exact / 5f64.sqrt()).abs() < 1e-6);
        }
        assert_eq!(rows[1], [0.0; 4]);
    }

    #[test]
    fn settings_without_effect_are_refused() {
        let of = |change: fn(&mut SignalSettings)| {
            let mut settings = SignalSettings::default();
            change(&mut settings);
            settings.check().is_ok()
        };
        assert!(of(|_| ()));
        assert!(!of(|of| of.image_ratio = 1.0));
        assert!(!of(|of| of.text_ratio = 0.0));
        assert!(!of(|of| of.text_weight = -1.0));
        assert!(of(|of| of.text_weight = 0.0));
        assert!(!of(|of| (of.image_weight, of.text_weight) = (0.0, 0.0)));
    }
}
