//! Reading texts with their images: in one stream, or in three.

use candle_core::Tensor;

use super::masks::{self, Masks};
use super::packed::Ways;
use super::{Flm, IMAGE_TRANSFORM, TEXT_TRANSFORM};
use crate::Result;
use crate::batch::{Images, Texts};
use crate::models::towers::bert_layer::{Layer, Other, Sight};
use crate::models::{Completed, Model, Reading};
use crate::nn::{Mask, Packing, Pass};

/// Images as texts look at them.
#[derive(Clone, Debug)]
pub(super) struct Looked {
    /// After the image encoder, `(b, p, w)`.
    pub encoded: Tensor,
    /// The states that layers look at, `(b, p, d)`.
    pub states: Tensor,
    /// Its keys and values for each cross-modal layer, `(b, p, 2 d)`.
    pub kv: Vec<Tensor>,
}

impl Looked {
    /// As texts of this pass look at them: with a tape, each image once for each of its texts.
    fn of_pass(&self, texts: &Texts, pass: &Pass<'_>) -> Result<Self> {
        match pass.tape() {
            Some(_) => Ok(self.for_texts(texts.ids.dim(0)?)?),
            None => Ok(self.clone()),
        }
    }

    /// The same for `n` texts: one image alone serves all of them.
    fn for_texts(&self, n: usize) -> candle_core::Result<Self> {
        if n == 1 || self.states.dim(0)? != 1 {
            return Ok(self.clone());
        }
        let repeated = |x: &Tensor| x.expand((n, x.dim(1)?, x.dim(2)?))?.contiguous();
        Ok(Self {
            kv: self
                .kv
                .iter()
                .map(repeated)
                .collect::<candle_core::Result<_>>()?,
            ..self.clone()
        })
    }
}

/// Texts after layers.
#[derive(Clone, Debug)]
pub(super) struct States {
    /// All rows, `(b, t, d)`, or packed ones, `(1, r, d)`.
    x: Tensor,
    packing: Option<Packing>,
}

impl States {
    pub fn packed(x: Tensor, packing: &Packing) -> Self {
        let packing = Some(packing.clone());
        Self { x, packing }
    }

    fn whole(x: Tensor) -> Self {
        Self { x, packing: None }
    }

    /// `(b, t, d)`, zeros in place of rows that were left out.
    pub fn padded(&self) -> candle_core::Result<Tensor> {
        match &self.packing {
            Some(packing) => packing.pad(&self.x),
            None => Ok(self.x.clone()),
        }
    }

    /// The first row of each text: `(b, 1, d)`.
    pub fn first(&self) -> candle_core::Result<Tensor> {
        match &self.packing {
            Some(packing) => packing.firsts(&self.x)?.squeeze(0)?.unsqueeze(1),
            None => self.x.narrow(1, 0, 1),
        }
    }
}

/// The states of three streams: forward, reverse, queries.
#[derive(Clone, Debug)]
pub(super) struct Three {
    /// After the text layers.
    pub bottom: [States; 3],
    /// After all layers.
    pub top: [States; 3],
}

impl Three {
    /// The states after all layers.
    pub fn completed(&self) -> candle_core::Result<Completed> {
        let [forward, reverse, queries] = &self.top;
        Ok(Completed {
            forward: forward.padded()?,
            reverse: reverse.padded()?,
            queries: queries.padded()?,
        })
    }
}

impl Flm {
    /// Images once, for every text that looks at them. `nth` is 1 for the second image of a text.
    pub(super) fn look(&self, images: &Images, nth: usize, pass: &Pass<'_>) -> Result<Looked> {
        if nth + 2 > self.config.n_token_types {
            return Err(self.cannot(
                "tell the second image of a text from the first unless `token_type_embeddings` has \
                 a third row",
            ));
        }
        let encoded = self.image.tokens(&images.pixels, &pass.within("vit"))?;
        pass.show(|| IMAGE_TRANSFORM.to_owned(), &encoded, None)?;
        let states = self.image_transform.forward(&encoded)?; // (b, p, d)
        pass.show_output(format_args!("image.transform"), || Ok(states.clone()))?;
        let states = states.broadcast_add(&self.token_types.row(1 + nth)?)?;
        let kv = |layer: &Layer| layer.keys_values(&states, None, pass);
        Ok(Looked {
            encoded,
            kv: self
                .cross
                .iter()
                .map(kv)
                .collect::<candle_core::Result<_>>()?,
            states,
        })
    }

    /// Texts in one stream.
    pub(super) fn one(
        &self,
        texts: &Texts,
        looked: &Looked,
        reading: Reading<'_>,
        pass: &Pass<'_>,
    ) -> Result<States> {
        let (mask, pass) = (masks::of_reading(texts, reading)?, pass.within("x"));
        let looked = &looked.of_pass(texts, &pass)?;
        if self.packs(Some(&looked.states), &pass)
            && let Some(states) = self.one_packed(texts, looked, &mask, &pass)?
        {
            return Ok(states);
        }
        let looked = looked.for_texts(texts.ids.dim(0)?)?;
        let sight = Sight {
            own: Some(&mask),
            other: None,
            real: Some(&texts.mask),
        };
        let mut x = self.embeddings.forward(&texts.ids, &pass)?;
        for layer in &self.text {
            x = layer.forward(&x, sight, &pass)?;
        }
        x = self.transform(&x, &self.token_types.row(0)?, &texts.mask, &pass)?;
        for (layer, kv) in self.cross.iter().zip(&looked.kv) {
            x = layer.forward(&x, seeing(sight, kv), &pass)?;
        }
        Ok(States::whole(x))
    }

    /// Texts in three streams, queries of these ids: `(b, queries)`.
    pub(super) fn three(
        &self,
        texts: &Texts,
        queries: &Tensor,
        looked: &Looked,
        masks: &Masks,
        pass: &Pass<'_>,
    ) -> Result<Three> {
        let (kinds, looked) = (self.kinds()?, &looked.of_pass(texts, pass)?);
        let [px, pr, pf] = ["x", "xr", "f"].map(|stream| pass.within(stream));
        if self.packs(Some(&looked.states), pass) {
            let (passes, kinds) = ([px, pr, pf], &kinds);
            let ways = Ways { passes, kinds };
            if let Some(three) = self.three_packed(texts, queries, looked, masks, ways)? {
                return Ok(three);
            }
        }
        let looked = looked.for_texts(texts.ids.dim(0)?)?;
        let real = &texts.mask;
        let of = |own| Sight {
            own: Some(own),
            other: None,
            real: Some(real),
        };
        let (forward, reverse) = (of(&masks.forward), of(&masks.reverse));
        let reconstructor = Reconstructor {
            mask: &masks.queries,
            real: real.narrow(0, queries.dim(1)?)?,
            real_twice: real.followed_by(real)?,
            pass: pf,
        };
        let mut x = self.embeddings.forward(&texts.ids, &px)?;
        let mut xr = self.embeddings.forward(&texts.ids, &pr)?;
        let mut f = self.embeddings.forward(queries, &pf)?;
        for (i, layer) in self.text.iter().enumerate() {
            x = layer.forward(&x, forward, &px)?;
            xr = layer.forward(&xr, reverse, &pr)?;
            if let Some(fusion) = beside(&self.fusion_bottom, self.text.len(), i) {
                f = reconstructor.ask(fusion, &f, [&x, &xr])?;
            }
        }
        let bottom = [&x, &xr, &f].map(|x| States::whole(x.clone()));
        x = self.transform(&x, &self.token_types.row(0)?, real, &px)?;
        xr = self.transform(&xr, &kinds[0], real, &pr)?;
        f = self.transform(&f, &kinds[1], &reconstructor.real, &pf)?;
        for (i, (layer, kv)) in self.cross.iter().zip(&looked.kv).enumerate() {
            x = layer.forward(&x, seeing(forward, kv), &px)?;
            xr = layer.forward(&xr, seeing(reverse, kv), &pr)?;
            if let Some(fusion) = beside(&self.fusion_top, self.cross.len(), i) {
                f = reconstructor.ask(fusion, &f, [&x, &xr])?;
            }
        }
        Ok(Three {
            bottom,
            top: [x, xr, f].map(States::whole),
        })
    }

    /// The token types of the reverse stream and of queries.
    pub(super) fn kinds(&self) -> Result<[Tensor; 2]> {
        match &self.stream_types {
            Some(types) => Ok([types.row(0)?, types.row(1)?]),
            None => Err(self.cannot("read texts in three streams without a reconstructor")),
        }
    }

    /// Between the text layers and the cross-modal ones: `(b, t, w) -> (b, t, d)`.
    pub(super) fn transform(
        &self,
        x: &Tensor,
        kind: &Tensor,
        real: &Mask,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        pass.show(|| TEXT_TRANSFORM.to_owned(), x, Some(real))?;
        let x = self.text_transform.forward(x)?;
        pass.show_output(format_args!("transform"), || Ok(x.clone()))?;
        x.broadcast_add(kind)
    }

    /// One more word of each text, where nothing is learned: `x: (b, 1, w)` before the first layer. `words`
    /// are the keys and values of those before it, for each layer.
    pub(super) fn one_more(
        &self,
        mut x: Tensor,
        images: &[Tensor],
        words: &mut [Option<Tensor>],
    ) -> candle_core::Result<Tensor> {
        let (text, cross) = words.split_at_mut(self.text.len());
        for (layer, words) in self.text.iter().zip(text) {
            x = layer.forward_next(&x, words, Sight::default())?;
        }
        x = (self.text_transform.forward(&x)?).broadcast_add(&self.token_types.row(0)?)?;
        for ((layer, words), kv) in self.cross.iter().zip(cross).zip(images) {
            x = layer.forward_next(&x, words, seeing(Sight::default(), kv))?;
        }
        Ok(x)
    }
}

/// The layer of the reconstructor beside layer `i` of `n`: they stand beside the last ones.
pub(super) fn beside(fusion: &[Layer], n: usize, i: usize) -> Option<&Layer> {
    fusion.get((i + fusion.len()).checked_sub(n)?)
}

/// The same sight, and an image that is wholly seen.
fn seeing<'a>(sight: Sight<'a>, kv: &'a Tensor) -> Sight<'a> {
    Sight {
        other: Some(Other { kv, mask: None }),
        ..sight
    }
}

/// The inputs that the layers of the reconstructor share.
struct Reconstructor<'a> {
    /// The mask of queries over both streams, `(b, queries, 2 t)`.
    mask: &'a Mask,
    /// The queries of real tokens.
    real: Mask,
    /// The states of real tokens in both streams.
    real_twice: Mask,
    pass: Pass<'a>,
}

impl Reconstructor<'_> {
    /// `f: (b, queries, d)` after it has looked at both streams, `(b, t, d)` each.
    fn ask(&self, layer: &Layer, f: &Tensor, streams: [&Tensor; 2]) -> candle_core::Result<Tensor> {
        let both = Tensor::cat(&streams, 1)?; // (b, 2 t, d)
        let kv = layer.keys_values(&both, Some(&self.real_twice), &self.pass)?;
        let sight = Sight {
            own: None,
            other: Some(Other {
                kv: &kv,
                mask: Some(self.mask),
            }),
            real: Some(&self.real),
        };
        layer.forward(f, sight, &self.pass)
    }
}
