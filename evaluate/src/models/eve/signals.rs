//! States that hidden patches and masked words are guessed from.
//!
//! The program of EVE's pre-training is not published. The code here is inferred: docs/training.md says which parts.

use candle_core::{DType, Tensor};

use super::block::Sequence;
use super::{Embedded, Eve, Modality};
use crate::Result;
use crate::batch::Pair;
use crate::crossing;
use crate::models::{Fused, Model};
use crate::nn::{Bias, Mask, Pass};

/// The places of the patches of images, some of which are left out.
struct Places {
    /// Of each kept token in the whole sequence, the class token first: `(b, 1 + k)`.
    kept: Tensor,
    /// Of each hidden patch, the class token counted: `(b, m)`.
    hidden: Tensor,
    /// For each token of the whole sequence its place among kept and then hidden ones: `(b, n)`.
    back: Tensor,
}

impl Places {
    /// Of `masked: (b, p)`; as many patches of each image are masked.
    fn of(masked: &Tensor) -> candle_core::Result<Self> {
        let (b, n) = (masked.dim(0)?, masked.dim(1)? + 1);
        let values: Vec<u8> = crossing::to_memory(&masked.to_dtype(DType::U8)?)?;
        let rows: Vec<Vec<u8>> = values.chunks_exact(n - 1).map(<[u8]>::to_vec).collect();
        let (mut kept, mut hidden, mut back) = (Vec::new(), Vec::new(), Vec::new());
        let n_hidden = |row: &[u8]| row.iter().filter(|masked| **masked != 0).count();
        let m = rows.first().map_or(0, |row| n_hidden(row));
        for row in &rows {
            if n_hidden(row) != m {
                let found = n_hidden(row);
                candle_core::bail!("{found} patches of an image are hidden and {m} of another");
            }
            let (mut next_kept, mut next_hidden) = (0, (n - m) as u32);
            for place in 0..n {
                let is_hidden = place > 0 && row[place - 1] != 0;
                let (list, next) = match is_hidden {
                    true => (&mut hidden, &mut next_hidden),
                    false => (&mut kept, &mut next_kept),
                };
                list.push(place as u32);
                back.push(*next);
                *next += 1;
            }
        }
        let device = masked.device();
        Ok(Self {
            kept: crossing::to_device(kept, (b, n - m), device)?,
            hidden: crossing::to_device(hidden, (b, m), device)?,
            back: crossing::to_device(back, (b, n), device)?,
        })
    }
}

/// Rows `places: (b, k)` of each sequence: `x: (b, n, d) -> (b, k, d)`.
fn rows(x: &Tensor, places: &Tensor) -> candle_core::Result<Tensor> {
    let ((b, k), d) = (places.dims2()?, x.dim(2)?);
    let places = places.unsqueeze(2)?.expand((b, k, d))?.contiguous()?;
    x.contiguous()?.gather(&places, 1)
}

/// The padding of images of these tokens, `(b, n, d)`, followed by their texts.
fn padding(image: &Tensor, pair: &Pair<'_>) -> Result<Mask> {
    let (b, n, _) = image.dims3()?;
    let of_image = Tensor::ones((b, n), DType::U8, image.device())?;
    Ok(Mask::new(&of_image)?.followed_by(&pair.texts.mask)?)
}

impl Eve {
    /// Image tokens and text tokens for guessing: texts as the encoder leaves them; images after the decoder, if there
    /// is one, with all patches.
    pub(super) fn signals(&self, pair: &Pair<'_>, pass: &Pass<'_>) -> Result<Fused> {
        let whole = self.config.n_patches() + 1;
        let Some(masked) = pair.masked.filter(|_| pair.leaves_out) else {
            let (states, of) = self.fused(pair, pass)?;
            let image = self.decoded(states.clone(), of.mask.as_ref(), pass)?;
            let t = states.dim(1)? - whole;
            return Ok(Fused {
                text: states.narrow(1, whole, t)?,
                image: image.narrow(1, 0, whole)?,
            });
        };
        if self.heads.pixels()?.decoder.is_none() {
            return Err(self.cannot(
                "guess patches that are left out without a decoder: give `model.decoder_depth` of at least 1, or hide \
                 them in place",
            ));
        }
        let places = Places::of(masked)?;
        let of = self.kept_together(pair, &places, pass)?;
        let states = self.run(&of, true, pass)?;
        let k = places.kept.dim(1)?;
        let t = states.dim(1)? - k;
        let text = states.narrow(1, k, t)?;
        let image = self.with_hidden(&states.narrow(1, 0, k)?, &places)?;
        let of = padding(&image, pair)?;
        let image = self.decoded(Tensor::cat(&[&image, &text], 1)?, Some(&of), pass)?;
        Ok(Fused {
            text,
            image: image.narrow(1, 0, whole)?,
        })
    }

    /// Kept patches with their positions, then text tokens.
    fn kept_together(&self, pair: &Pair<'_>, places: &Places, pass: &Pass<'_>) -> Result<Embedded> {
        self.check_pair_len(pair.texts)?;
        // Positions are added before patches are taken, so that each keeps its own; both routers know how long the image
        // is.
        let image = rows(&self.embed_image(&pair.images.pixels, None)?, &places.kept)?;
        let n = image.dim(1)?;
        self.joined(image, pair.texts, Modality::Both(n), pass)
    }

    /// Image tokens in their order, with the mask token and its position for each hidden patch: `(b, n, d)`.
    fn with_hidden(&self, kept: &Tensor, places: &Places) -> Result<Tensor> {
        let Some(token) = &self.mask_token else {
            return Err(self.cannot("hide patches without `backbone.mask_embed_vision`"));
        };
        let Some([positions, _]) = &self.positions else {
            return Err(self.cannot("leave hidden patches out with relative positions"));
        };
        let (b, m) = places.hidden.dims2()?;
        let positions = positions.index_select(&places.hidden.flatten_all()?, 0)?;
        let hidden = positions.reshape((b, m, ()))?.broadcast_add(token)?;
        Ok(rows(&Tensor::cat(&[kept, &hidden], 1)?, &places.back)?)
    }

    /// After the blocks of the decoder and their norm, `(b, n, d)`; as it is without a decoder. Nothing is left out at
    /// random there.
    fn decoded(&self, x: Tensor, mask: Option<&Mask>, pass: &Pass<'_>) -> Result<Tensor> {
        let Some((blocks, norm)) = &self.heads.pixels()?.decoder else {
            return Ok(x);
        };
        let routing = self.config.usual_routing();
        let pass = match pass.tape() {
            Some(tape) => Pass::new().recorded(tape),
            None => Pass::new(),
        };
        let sequence = Sequence {
            modality: Modality::Both(self.config.n_patches() + 1),
            division: x.dim(1)?,
            n_image: self.config.n_patches() + 1,
            attended: Bias { pairs: None, mask },
            routing: &routing,
        };
        let mut x = x;
        for block in blocks {
            x = block.forward(&x, &sequence, &pass)?;
        }
        Ok(norm.forward(&x)?)
    }
}
