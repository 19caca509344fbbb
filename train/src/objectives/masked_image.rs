//! Masked image modeling (MIM) on discrete tokens.

use std::sync::Arc;

use candle_core::Tensor;
use evaluate::batch::Pair;
use evaluate::crossing;
use evaluate::models::{Dvae, Head};
use evaluate::nn::Guessed;

use super::masked_language::{Guesses, guess};
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::{Error, Result};

/// Guessing the visual tokens of masked patches; the tokens are those of a discrete autoencoder.
///
/// Bao et al. 2021, "BEiT", <https://arxiv.org/abs/2106.08254>, section 2; Ramesh et al. 2021,
/// "DALL-E", <https://arxiv.org/abs/2102.12092>.
pub struct MaskedImage {
    tokenizer: Arc<Dvae>,
    sees_text: bool,
}

impl MaskedImage {
    /// With the text in sight.
    #[must_use]
    pub fn with_text(tokenizer: Arc<Dvae>) -> Self {
        Self {
            tokenizer,
            sees_text: true,
        }
    }

    /// From the image alone: VLMo's vision stage.
    #[must_use]
    pub fn alone(tokenizer: Arc<Dvae>) -> Self {
        Self {
            tokenizer,
            sees_text: false,
        }
    }

    /// Image tokens after the last norm, without the class token: `(b p, d)`.
    fn patches(&self, step: &Step<'_>, masked: &Tensor) -> Result<Tensor> {
        let ways = step.ways(self.name());
        let (image, pass) = (step.image()?, step.pass(&ways));
        let tokens = match self.sees_text {
            true => {
                let pair = Pair::new(step.text()?, image).masked(masked);
                step.model.fusion()?.fuse(&pair, &pass)?.image
            }
            false => (step.model.dual()?).image_states(image, Some(masked), &pass)?,
        };
        let patches = tokens.narrow(1, 1, tokens.dim(1)? - 1)?;
        Ok(patches.contiguous()?.flatten_to(1)?)
    }
}

/// Masked image modeling with the text in sight.
pub(super) const WITH_TEXT: ObjectiveSpec = ObjectiveSpec {
    name: "mim",
    needs: Needs {
        image: true,
        text: true,
        masked_patches: true,
        ..Needs::NOTHING
    },
    heads: &[Head::MaskedImage],
    after: &[],
    reads: &["image_masking"],
    open: |with| {
        Ok(Box::new(MaskedImage::with_text(
            with.image_tokenizer("mim")?,
        )))
    },
};

/// Masked image modeling from the image alone.
pub(super) const ALONE: ObjectiveSpec = ObjectiveSpec {
    name: "image_mim",
    needs: Needs {
        image: true,
        masked_patches: true,
        ..Needs::NOTHING
    },
    heads: &[Head::MaskedImage],
    after: &[],
    reads: &["image_masking"],
    open: |with| {
        Ok(Box::new(MaskedImage::alone(
            with.image_tokenizer("image_mim")?,
        )))
    },
};

impl Objective for MaskedImage {
    fn spec(&self) -> &'static ObjectiveSpec {
        match self.sees_text {
            true => &WITH_TEXT,
            false => &ALONE,
        }
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let patches = step.masked_patches()?;
        let tokens = self.tokenizer.encode(&patches.target_image)?;
        let tokens: Vec<u32> = crossing::to_memory(&tokens)?; // (b p)
        let masked: Vec<u8> = crossing::to_memory(&patches.masked)?; // (b p)
        if tokens.len() != masked.len() {
            return Err(Error::OtherPatches {
                tokens: tokens.len(),
                patches: masked.len(),
            });
        }
        let hidden =
            (masked.iter().zip(tokens).enumerate()).filter(|(_, (masked, _))| **masked > 0);
        let (places, labels): (Vec<u32>, Vec<u32>) =
            hidden.map(|(at, (_, token))| (at as u32, token)).unzip();
        let guesses = Guesses {
            hidden: self.patches(step, &patches.masked)?,
            places: &places,
            labels: &labels,
            measure: match self.sees_text {
                true => "mim_accuracy",
                false => "image_mim_accuracy",
            },
        };
        guess(guesses, step, |rows, labels| {
            let logits = step.model.score(Head::MaskedImage, rows)?;
            Ok(Guessed::by(&logits, labels)?)
        })
    }
}
