//! Texts in one stream or in three without their padding: what [`passes`](super::passes) computes, of the rows
//! that anything depends on.

use candle_core::Tensor;

use super::Flm;
use super::masks::{self, Masks};
use super::passes::{Looked, States, Three, beside};
use crate::Result;
use crate::batch::Texts;
use crate::models::towers::bert_layer::{Layer, PackedSight};
use crate::nn::{Buffers, Mask, PackedPairs, Packing, Pass};

/// The rows of three streams.
struct Rows {
    forward: Packing,
    reverse: Packing,
    queries: Packing,
    /// Those of the first two streams that queries look at.
    seen: Packing,
}

/// One stream on its way through layers.
struct Stream<'a> {
    pass: Pass<'a>,
    rows: &'a Packing,
    /// What rows see of their own text.
    own: PackedPairs,
    /// What they see of the image.
    image: PackedPairs,
    buffers: &'a Buffers,
}

impl<'a> Stream<'a> {
    fn new(
        rows: &'a Packing,
        mask: &Mask,
        looked: &Looked,
        pass: Pass<'a>,
        buffers: &'a Buffers,
    ) -> Result<Self> {
        Ok(Self {
            own: PackedPairs::own(rows, rows, mask)?,
            image: PackedPairs::of_other(rows, looked.states.dim(1)?),
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
        kv: Option<&Tensor>,
    ) -> candle_core::Result<Tensor> {
        let sight = PackedSight {
            own: Some(&self.own),
            other: kv.map(|kv| (kv, &self.image)),
        };
        layer.forward_packed(x, sight, &self.pass, self.buffers)
    }

    fn states(&self, x: Tensor) -> States {
        States::packed(x, self.rows)
    }
}

impl Flm {
    /// Whether padding may be left out.
    pub(super) fn packs(&self, looked: &Looked, pass: &Pass<'_>) -> bool {
        let layers = [
            &self.text,
            &self.cross,
            &self.fusion_bottom,
            &self.fusion_top,
        ];
        let mut others = [self.text_transform.weight(), &looked.states].into_iter();
        let is_graph = self.embeddings.is_trained() || others.any(Tensor::track_op);
        pass.may_pack()
            && (pass.tape().is_some() || !is_graph)
            && layers.into_iter().flatten().all(|layer| layer.packs(pass))
    }

    /// [`Flm::one`], if anything is left out.
    pub(super) fn one_packed(
        &self,
        texts: &Texts,
        looked: &Looked,
        mask: &Mask,
        pass: &Pass<'_>,
    ) -> Result<Option<States>> {
        let rows = masks::rows_of_one(texts, mask)?;
        if !rows.leaves_out() {
            return Ok(None);
        }
        let buffers = Buffers::default();
        let stream = Stream::new(&rows, mask, looked, *pass, &buffers)?;
        let mut x = self.embeddings.forward_packed(&texts.ids, &rows, pass)?;
        for layer in &self.text {
            x = stream.through(layer, &x, None)?;
        }
        x = self.transform(&x, &self.token_types.row(0)?, &texts.mask, pass)?;
        for (layer, kv) in self.cross.iter().zip(&looked.kv) {
            x = stream.through(layer, &x, Some(kv))?;
        }
        Ok(Some(stream.states(x)))
    }

    /// [`Flm::three`], if anything is left out. `kinds` are the token types of the reverse stream and of queries.
    pub(super) fn three_packed(
        &self,
        texts: &Texts,
        queries: &Tensor,
        looked: &Looked,
        masks: &Masks,
        kinds: [&Tensor; 2],
        passes: [Pass<'_>; 3],
    ) -> Result<Option<Three>> {
        let rows = Rows::of(texts, queries.dim(1)?, masks)?;
        if ![&rows.forward, &rows.reverse]
            .into_iter()
            .any(Packing::leaves_out)
        {
            return Ok(None);
        }
        let [px, pr, pf] = passes;
        let buffers = Buffers::default();
        let forward = Stream::new(&rows.forward, &masks.forward, looked, px, &buffers)?;
        let reverse = Stream::new(&rows.reverse, &masks.reverse, looked, pr, &buffers)?;
        let both = PackedPairs::of_two(&rows.queries, &rows.seen, &masks.queries)?;
        let ask = |layer: &Layer, f: &Tensor, x: &Tensor, xr: &Tensor| {
            let streams = [(x, &rows.forward), (xr, &rows.reverse)];
            let states = rows.seen.side_by_side(streams)?; // (1, 2 r, d)
            let kv = layer.keys_values(&states, None, &pf)?;
            let sight = PackedSight {
                own: None,
                other: Some((&kv, &both)),
            };
            layer.forward_packed(f, sight, &pf, &buffers)
        };
        let of_queries = |f: Tensor| States::packed(f, &rows.queries);
        let mut x = (self.embeddings).forward_packed(&texts.ids, &rows.forward, &px)?;
        let mut xr = (self.embeddings).forward_packed(&texts.ids, &rows.reverse, &pr)?;
        let mut f = (self.embeddings).forward_packed(queries, &rows.queries, &pf)?;
        for (i, layer) in self.text.iter().enumerate() {
            x = forward.through(layer, &x, None)?;
            xr = reverse.through(layer, &xr, None)?;
            if let Some(fusion) = beside(&self.fusion_bottom, self.text.len(), i) {
                f = ask(fusion, &f, &x, &xr)?;
            }
        }
        let bottom = [
            forward.states(x.clone()),
            reverse.states(xr.clone()),
            of_queries(f.clone()),
        ];
        let real = &texts.mask;
        x = self.transform(&x, &self.token_types.row(0)?, real, &px)?;
        xr = self.transform(&xr, kinds[0], real, &pr)?;
        f = self.transform(&f, kinds[1], real, &pf)?;
        for (i, (layer, kv)) in self.cross.iter().zip(&looked.kv).enumerate() {
            x = forward.through(layer, &x, Some(kv))?;
            xr = reverse.through(layer, &xr, Some(kv))?;
            if let Some(fusion) = beside(&self.fusion_top, self.cross.len(), i) {
                f = ask(fusion, &f, &x, &xr)?;
            }
        }
        let top = [forward.states(x), reverse.states(xr), of_queries(f)];
        Ok(Some(Three { bottom, top }))
    }
}

impl Rows {
    fn of(texts: &Texts, n_queries: usize, masks: &Masks) -> Result<Self> {
        let t = texts.ids.dim(1)?;
        let [seen, reverse] = masks::rows_of_three(texts, n_queries, masks)?;
        let queries = Packing::new(seen.iter().copied(), n_queries);
        let seen = Packing::new(seen, t);
        Ok(Self {
            forward: seen.clone(),
            reverse: Packing::new(reverse, t),
            queries,
            seen,
        })
    }
}
