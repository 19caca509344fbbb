//! Texts in one stream or in three without their padding: what [`passes`](super::passes) computes, of the rows
//! that anything depends on. The work that depends on the text alone is a part of its own, for pairs of a text with many
//! images.

use candle_core::Tensor;

use super::Flm;
use super::masks::{self, Masks};
use super::passes::{Looked, States, Three, beside};
use crate::Result;
use crate::batch::Texts;
use crate::models::towers::bert_layer::Layer;
use crate::models::towers::bert_packed::PackedSight;
use crate::nn::{Buffers, Mask, PackedPairs, Packing, Pass};

/// One stream on its way through layers.
pub(super) struct Stream<'a> {
    pass: Pass<'a>,
    pub rows: Packing,
    /// The pairs of rows of one text.
    own: PackedPairs,
    buffers: &'a Buffers,
}

impl<'a> Stream<'a> {
    /// A text in one stream.
    pub fn of_one(
        texts: &Texts,
        mask: &Mask,
        pass: Pass<'a>,
        buffers: &'a Buffers,
    ) -> Result<Self> {
        Self::new(masks::rows_of_one(texts, mask)?, mask, pass, buffers)
    }

    fn new(rows: Packing, mask: &Mask, pass: Pass<'a>, buffers: &'a Buffers) -> Result<Self> {
        Ok(Self {
            own: PackedPairs::own(&rows, &rows, mask)?,
            rows,
            pass,
            buffers,
        })
    }

    /// Through a layer, which looks at an image if its keys and values are given.
    fn through(
        &self,
        layer: &Layer,
        x: &Tensor,
        image: Option<(&Tensor, &PackedPairs)>,
    ) -> candle_core::Result<Tensor> {
        let sight = PackedSight {
            own: Some(&self.own),
            other: image,
        };
        layer.forward_packed(x, sight, &self.pass, self.buffers)
    }

    fn states(&self, x: Tensor) -> States {
        States::packed(x, &self.rows)
    }
}

/// The passes of three streams, and the token types of the reverse stream and of queries.
#[derive(Clone, Copy)]
pub(super) struct Ways<'a> {
    pub passes: [Pass<'a>; 3],
    pub kinds: &'a [Tensor; 2],
}

/// Three streams on their way through layers.
pub(super) struct Streams<'a> {
    pub forward: Stream<'a>,
    pub reverse: Stream<'a>,
    pub queries: Packing,
    /// The rows of the first two streams that queries look at.
    seen: Packing,
    /// The pairs of queries with rows of both streams.
    both: PackedPairs,
    ways: Ways<'a>,
    buffers: &'a Buffers,
}

impl<'a> Streams<'a> {
    pub fn new(
        texts: &Texts,
        n_queries: usize,
        masks: &Masks,
        ways: Ways<'a>,
        buffers: &'a Buffers,
    ) -> Result<Self> {
        let t = texts.ids.dim(1)?;
        let [seen, reverse] = masks::rows_of_three(texts, n_queries, masks)?;
        let queries = Packing::new(seen.iter().copied(), n_queries);
        let (seen, reverse) = (Packing::new(seen, t), Packing::new(reverse, t));
        let [px, pr, _] = ways.passes;
        Ok(Self {
            both: PackedPairs::of_two(&queries, &seen, &masks.queries)?,
            forward: Stream::new(seen.clone(), &masks.forward, px, buffers)?,
            reverse: Stream::new(reverse, &masks.reverse, pr, buffers)?,
            queries,
            seen,
            ways,
            buffers,
        })
    }

    /// Whether any row of padding is left out.
    pub fn leaves_out(&self) -> bool {
        self.forward.rows.leaves_out() || self.reverse.rows.leaves_out()
    }

    /// Queries after they have looked at both streams.
    fn ask(
        &self,
        layer: &Layer,
        f: &Tensor,
        x: &Tensor,
        xr: &Tensor,
    ) -> candle_core::Result<Tensor> {
        let streams = [(x, &self.forward.rows), (xr, &self.reverse.rows)];
        let states = self.seen.side_by_side(streams)?; // (1, 2 r, d)
        let [_, _, pass] = &self.ways.passes;
        let kv = layer.keys_values(&states, None, pass)?;
        let sight = PackedSight {
            own: None,
            other: Some((&kv, &self.both)),
        };
        layer.forward_packed(f, sight, pass, self.buffers)
    }

    /// States of forward and reverse stream and of queries.
    fn states(&self, [x, xr, f]: [Tensor; 3]) -> [States; 3] {
        let queries = States::packed(f, &self.queries);
        [self.forward.states(x), self.reverse.states(xr), queries]
    }
}

impl Flm {
    /// Whether padding may be left out, of texts that look at this image.
    pub(super) fn packs(&self, states: Option<&Tensor>, pass: &Pass<'_>) -> bool {
        let layers = [
            &self.text,
            &self.cross,
            &self.fusion_bottom,
            &self.fusion_top,
        ];
        let is_graph = self.embeddings.is_trained()
            || self.text_transform.weight().track_op()
            || states.is_some_and(Tensor::track_op);
        pass.may_pack()
            && (pass.tape().is_some() || !is_graph)
            && (layers.into_iter().flatten()).all(|layer| layer.packs(pass))
    }

    /// [`Flm::one`], if anything is left out.
    pub(super) fn one_packed(
        &self,
        texts: &Texts,
        looked: &Looked,
        mask: &Mask,
        pass: &Pass<'_>,
    ) -> Result<Option<States>> {
        let buffers = Buffers::default();
        let stream = Stream::of_one(texts, mask, *pass, &buffers)?;
        if !stream.rows.leaves_out() {
            return Ok(None);
        }
        let x = self.one_alone(texts, &stream)?;
        let x = self.one_looking(x, looked, &stream)?;
        Ok(Some(stream.states(x)))
    }

    /// A text in one stream before it looks at an image: `(1, r, d)`.
    pub(super) fn one_alone(&self, texts: &Texts, stream: &Stream<'_>) -> Result<Tensor> {
        let pass = &stream.pass;
        let mut x = (self.embeddings).forward_packed(&texts.ids, &stream.rows, pass)?;
        for layer in &self.text {
            x = stream.through(layer, &x, None)?;
        }
        Ok(self.transform(&x, &self.token_types.row(0)?, &texts.mask, pass)?)
    }

    /// A text in one stream as it looks at an image: `(1, r, d) -> (1, r, d)`.
    pub(super) fn one_looking(
        &self,
        mut x: Tensor,
        looked: &Looked,
        stream: &Stream<'_>,
    ) -> Result<Tensor> {
        let image = PackedPairs::of_other(&stream.rows, &looked.states)?;
        for (layer, kv) in self.cross.iter().zip(&looked.kv) {
            x = stream.through(layer, &x, Some((kv, &image)))?;
        }
        Ok(x)
    }

    /// [`Flm::three`], if anything is left out.
    pub(super) fn three_packed(
        &self,
        texts: &Texts,
        queries: &Tensor,
        looked: &Looked,
        masks: &Masks,
        ways: Ways<'_>,
    ) -> Result<Option<Three>> {
        let buffers = Buffers::default();
        let streams = Streams::new(texts, queries.dim(1)?, masks, ways, &buffers)?;
        if !streams.leaves_out() {
            return Ok(None);
        }
        let bottom = self.three_alone(texts, queries, &streams)?;
        let states = self.three_transformed(bottom.each_ref(), texts, &streams)?;
        let top = self.three_looking(states, looked, &streams)?;
        let [bottom, top] = [bottom, top].map(|states| streams.states(states));
        Ok(Some(Three { bottom, top }))
    }

    /// Three streams after the text layers.
    pub(super) fn three_alone(
        &self,
        texts: &Texts,
        queries: &Tensor,
        streams: &Streams<'_>,
    ) -> Result<[Tensor; 3]> {
        let Streams {
            forward, reverse, ..
        } = streams;
        let [px, pr, pf] = &streams.ways.passes;
        let embed = |ids, rows, pass| self.embeddings.forward_packed(ids, rows, pass);
        let mut x = embed(&texts.ids, &forward.rows, px)?;
        let mut xr = embed(&texts.ids, &reverse.rows, pr)?;
        let mut f = embed(queries, &streams.queries, pf)?;
        for (i, layer) in self.text.iter().enumerate() {
            x = forward.through(layer, &x, None)?;
            xr = reverse.through(layer, &xr, None)?;
            if let Some(fusion) = beside(&self.fusion_bottom, self.text.len(), i) {
                f = streams.ask(fusion, &f, &x, &xr)?;
            }
        }
        Ok([x, xr, f])
    }

    /// Between the text layers and the cross-modal ones.
    pub(super) fn three_transformed(
        &self,
        [x, xr, f]: [&Tensor; 3],
        texts: &Texts,
        streams: &Streams<'_>,
    ) -> Result<[Tensor; 3]> {
        let (Ways { passes, kinds }, real) = (streams.ways, &texts.mask);
        let [px, pr, pf] = &passes;
        Ok([
            self.transform(x, &self.token_types.row(0)?, real, px)?,
            self.transform(xr, &kinds[0], real, pr)?,
            self.transform(f, &kinds[1], real, pf)?,
        ])
    }

    /// Three streams as they look at an image.
    pub(super) fn three_looking(
        &self,
        [mut x, mut xr, mut f]: [Tensor; 3],
        looked: &Looked,
        streams: &Streams<'_>,
    ) -> Result<[Tensor; 3]> {
        let Streams {
            forward, reverse, ..
        } = streams;
        let images = [&forward.rows, &reverse.rows];
        let images = images.map(|rows| PackedPairs::of_other(rows, &looked.states));
        let [image, image_of_reverse] = images;
        let (image, image_of_reverse) = (image?, image_of_reverse?);
        for (i, (layer, kv)) in self.cross.iter().zip(&looked.kv).enumerate() {
            x = forward.through(layer, &x, Some((kv, &image)))?;
            xr = reverse.through(layer, &xr, Some((kv, &image_of_reverse)))?;
            if let Some(fusion) = beside(&self.fusion_top, self.cross.len(), i) {
                f = streams.ask(fusion, &f, &x, &xr)?;
            }
        }
        Ok([x, xr, f])
    }
}
