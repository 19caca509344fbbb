//! Captions, word by word.

use candle_core::Tensor;

use super::Flm;
use crate::Result;
use crate::batch::Images;
use crate::models::{Captioner, Head, Model, Seen};
use crate::nn::Pass;

impl Captioner for Flm {
    fn see(&self, images: &Images, pass: &Pass<'_>) -> Result<Seen> {
        let looked = self.look(images, 0, pass)?;
        Ok(Seen {
            images: looked.kv,
            words: vec![None; self.text.len() + self.cross.len()],
            n_words: 0,
        })
    }

    /// Words are read left to right, and none of them sees the first token, `<s>`: so it is not computed, and
    /// the first word stands at the place after it. Padding among words would not move their places
    /// on; here it does.
    fn next(&self, seen: &mut Seen, ids: &Tensor) -> Result<Tensor> {
        let x = self.embeddings.one(ids, seen.n_words + 1)?; // (b, 1, w)
        let x = self.one_more(x, &seen.images, &mut seen.words)?; // (b, 1, d)
        seen.n_words += 1;
        self.score(Head::CausalLanguage, &x.squeeze(1)?)
    }
}
