//! Masked image modeling (MIM).

use candle_core::Tensor;
use evaluate::models::Dvae;
use evaluate::nn::cross_entropy;

use super::{Loss, Needs, Objective, Step};
use crate::{Error, Result};

/// Guessing the visual tokens of masked patches, with the text in sight; the tokens are those of a
/// discrete autoencoder.
///
/// Bao et al. 2021, "BEiT", <https://arxiv.org/abs/2106.08254>, section 2; Ramesh et al. 2021,
/// "DALL-E", <https://arxiv.org/abs/2102.12092>.
pub struct MaskedImage {
    tokenizer: Dvae,
}

impl MaskedImage {
    /// With the tokenizer of images.
    #[must_use]
    pub fn new(tokenizer: Dvae) -> Self {
        Self { tokenizer }
    }
}

impl Objective for MaskedImage {
    fn name(&self) -> &'static str {
        "mim"
    }

    fn needs(&self) -> Needs {
        Needs {
            image: true,
            text: true,
            masked_patches: true,
            ..Needs::default()
        }
    }

    fn heads(&self) -> &'static [&'static str] {
        &["mim_score", "transformer.mask_token"]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (text, patches) = (step.text()?, step.masked_patches()?);
        let tokens = self.tokenizer.encode(&patches.target_image)?;
        let tokens: Vec<u32> = tokens.flatten_all()?.to_vec1()?; // (b p)
        let masked: Vec<u8> = patches.masked.flatten_all()?.to_vec1()?;
        if tokens.len() != masked.len() {
            return Err(Error::OtherPatches {
                tokens: tokens.len(),
                patches: masked.len(),
            });
        }
        let hidden = masked.iter().enumerate().filter(|(_, masked)| **masked > 0);
        let (places, labels): (Vec<u32>, Vec<u32>) =
            hidden.map(|(at, _)| (at as u32, tokens[at])).unzip();
        let omission = step.omission("mim");
        let pass = step.pass(&omission);
        let masked = Some(&patches.masked);
        let joint =
            (step.model).joint(&text.ids, &text.mask, step.image()?, masked, 0, &pass)?;
        let n = labels.len();
        let mut n_all = [n as f64];
        step.collective.sum_f64(&mut n_all)?;
        let share = step.collective.size() as f64 / n_all[0].max(1.0);
        // Without the class token.
        let features = joint.image.narrow(1, 1, joint.image.dim(1)? - 1)?;
        let features = features.contiguous()?.flatten_to(1)?; // (b p, d)
        if n == 0 {
            return Ok(Loss {
                value: (features.narrow(0, 0, 1)?.sum_all()? * 0.0)?,
                reported: 0.0,
                measures: vec![("mim_accuracy", 0.0, 0.0)],
            });
        }
        let places = Tensor::new(places, features.device())?;
        let head = step.model.heads().masked_image()?;
        let logits = head.forward(&features.index_select(&places, 0)?)?;
        let n_right = super::n_right(&logits, &labels)?;
        let value = (cross_entropy(&logits, &labels)? * (n as f64 * share))?;
        Loss::mean(value, vec![("mim_accuracy", n_right, n as f64)])
    }
}
