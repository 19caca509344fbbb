//! A layer of BERT: attention to its own sequence, to another one, or to both in turn, then the FFN, each
//! with a norm after its residual sum.

use candle_core::{D, Result, Tensor};

use super::bert_fused::{self, Looks};
use super::first_tokens;
use crate::Weights;
use crate::nn::{
    Activation, Bias, Dropping, LayerNorm, Linear, Mask, Pass, Residual, Sees, Tape, attend_packed,
    attend_to, attention_shares, fits_slices, halves, is_on_host, mix, record_projections,
    side_by_side, unpack,
};

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
pub(in crate::models) struct LayerSizes {
    /// Hidden size.
    pub width: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Inner size of the feed-forward network.
    pub ffn_width: usize,
    /// The number that every norm adds to the variance.
    pub epsilon: f64,
}

/// The sequences that the tokens of a layer look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::models) enum LooksAt {
    /// Their own.
    Own,
    /// Another one.
    Other,
    /// Their own, then another one.
    Both,
}

/// The names of a layer for a tap. Its dropout draws under these names, too.
#[derive(Clone, Debug)]
pub(in crate::models) struct Shown {
    /// The name of its output: `layer3`.
    pub layer: String,
    /// Its attention probabilities: `attn3`.
    pub attn: String,
    /// The sequence that it looks at beside its own: `layer3.image`.
    pub other: &'static str,
}

/// The sequences and masks of a layer's tokens.
#[derive(Clone, Copy, Default)]
pub(in crate::models) struct Sight<'a> {
    /// Of their own sequence.
    pub own: Option<&'a Mask>,
    /// Of another sequence.
    pub other: Option<Other<'a>>,
    /// The real tokens of their own sequence, for a tap.
    pub real: Option<&'a Mask>,
}

/// Another sequence.
#[derive(Clone, Copy)]
pub(in crate::models) struct Other<'a> {
    /// Its keys and values as the layer projects them, `(b, m, 2 d)`: [`Layer::keys_values`].
    pub kv: &'a Tensor,
    /// The mask over it; all is seen, if there is none.
    pub mask: Option<&'a Mask>,
}

/// [`Sight`] that outlives a pass, its keys and values apart.
#[derive(Clone, Default)]
pub(super) struct OwnedSight {
    pub own: Option<Mask>,
    pub other: Option<Mask>,
}

/// Attention with a norm after its residual branch.
#[derive(Clone, Debug)]
pub(in crate::models) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) output: Linear,
    pub(super) norm: LayerNorm,
    pub(super) n_heads: usize,
    name: String,
}

/// Attention, then the FFN.
#[derive(Clone, Debug)]
pub(in crate::models) struct Layer {
    pub(super) attention: Option<Attention>,
    pub(super) crossattention: Option<Attention>,
    pub(super) intermediate: Linear,
    pub(super) output: Linear,
    pub(super) norm: LayerNorm,
    pub(super) name: String,
    shown: Shown,
}

/// The dropout sites of an attention, as published.
#[derive(Clone, Debug)]
pub(super) struct DroppedAttention {
    /// Of its shares, `(b, h, n, m)`.
    pub(super) shares: Dropping,
    /// Of its output, `(b, n, d)`.
    pub(super) output: Dropping,
}

/// The dropout sites of a layer, as published.
#[derive(Clone, Debug)]
pub(super) struct Dropped {
    pub(super) own: DroppedAttention,
    pub(super) other: DroppedAttention,
    /// Of the FFN's output, `(b, n, d)`.
    pub(super) ffn: Dropping,
}

impl OwnedSight {
    fn of(sight: Sight<'_>) -> Self {
        Self {
            own: sight.own.cloned(),
            other: sight.other.and_then(|other| other.mask).cloned(),
        }
    }

    /// The keys that rows `x: (b, n, d)` see, beside keys and values `(b, m, 2 d)`.
    fn looks(self, layer: &Layer, x: &Tensor, kv: Option<&Tensor>) -> Result<Looks> {
        let (batch, queries, _) = x.dims3()?;
        let keys = kv.map(|kv| kv.dim(1)).transpose()?;
        let padded = |keys, mask| Sees::Padded {
            batch,
            queries,
            keys,
            mask,
        };
        let has_own = layer.attention.is_some();
        Ok(Looks {
            own: has_own.then(|| padded(queries, self.own)),
            other: keys.map(|keys| padded(keys, self.other)),
        })
    }

    fn with<'a>(&'a self, kv: Option<&'a Tensor>) -> Sight<'a> {
        Sight {
            own: self.own.as_ref(),
            other: kv.map(|kv| Other {
                kv,
                mask: self.other.as_ref(),
            }),
            real: None,
        }
    }
}

impl Attention {
    fn load(weights: &Weights, name: &str, sizes: &LayerSizes) -> crate::Result<Self> {
        let d = sizes.width;
        let linear = |part: &str| Linear::load(weights, &format!("{name}.{part}"), d, d);
        let norm = format!("{name}.output.LayerNorm");
        Ok(Self {
            query: linear("self.query")?,
            key: linear("self.key")?,
            value: linear("self.value")?,
            output: linear("output.dense")?,
            norm: LayerNorm::load(weights, &norm, d, sizes.epsilon)?,
            n_heads: sizes.n_heads,
            name: name.to_owned(),
        })
    }

    fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let linear = [&self.query, &self.key, &self.value, &self.output];
        (linear.into_iter().flat_map(Linear::weights)).chain(self.norm.weights())
    }

    fn show(&self, parts: &[&str], x: &Tensor, real: Option<&Mask>, pass: &Pass<'_>) -> Result<()> {
        let shown = |part: &&str| pass.show(|| format!("{}.{part}", self.name), x, real);
        parts.iter().try_for_each(shown)
    }

    /// Of the first `queries` tokens to all of their sequence: `(b, t, d) -> (b, queries, d)`.
    fn to_own(
        &self,
        x: &Tensor,
        queries: usize,
        sight: Sight<'_>,
        dropped: &DroppedAttention,
        shown: &str,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.show(
            &["self.query", "self.key", "self.value"],
            x,
            sight.real,
            pass,
        )?;
        let bias = masked(sight.own);
        let qkv = self.project(x)?; // (b, t, 3 d)
        let [q, k, v] = unpack(&qkv)?;
        let shares = || attention_shares(&q, &k, bias, self.n_heads);
        pass.show_output(format_args!("{shown}"), shares)?;
        let mixed = match dropped.shares.is_active() {
            true => mix(&dropped.shares.apply(&shares()?)?, &v)?,
            false => attend_packed(&qkv, self.n_heads, queries, bias)?,
        };
        self.finish(
            &first_tokens(x, queries)?,
            &mixed,
            sight.real,
            dropped,
            pass,
        )
    }

    /// To another sequence: `(b, n, d) -> (b, n, d)`.
    fn to_other(
        &self,
        x: &Tensor,
        sight: Sight<'_>,
        other: Other<'_>,
        dropped: &DroppedAttention,
        shown: &str,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.show(&["self.query"], x, sight.real, pass)?;
        let bias = masked(other.mask);
        let q = self.query.forward(x)?; // (b, n, d)
        let [k, v] = halves(other.kv)?;
        let shares = || attention_shares(&q, &k, bias, self.n_heads);
        pass.show_output(format_args!("{shown}"), shares)?;
        let mixed = match dropped.shares.is_active() {
            true => mix(&dropped.shares.apply(&shares()?)?, &v)?,
            false => attend_to(&q, other.kv, bias, self.n_heads)?,
        };
        self.finish(x, &mixed, sight.real, dropped, pass)
    }

    fn finish(
        &self,
        x: &Tensor,
        mixed: &Tensor,
        real: Option<&Mask>,
        dropped: &DroppedAttention,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        self.show(&["output.dense"], mixed, real, pass)?;
        let sum = residual(&self.output, mixed, x, &dropped.output)?;
        self.norm.forward(&sum)
    }

    /// `(b, t, d) -> (b, t, 3 d)`.
    fn project(&self, x: &Tensor) -> Result<Tensor> {
        let linear = [&self.query, &self.key, &self.value];
        match is_plain(x, linear) {
            true => side_by_side(x, linear),
            false => {
                let [q, k, v] = linear.map(|linear| linear.forward(x));
                Tensor::cat(&[q?, k?, v?], D::Minus1)
            }
        }
    }

    /// `(b, m, d) -> (b, m, 2 d)`.
    fn keys_values(&self, context: &Tensor) -> Result<Tensor> {
        let linear = [&self.key, &self.value];
        match is_plain(context, linear) {
            true => side_by_side(context, linear),
            false => {
                let [k, v] = linear.map(|linear| linear.forward(context));
                Tensor::cat(&[k?, v?], D::Minus1)
            }
        }
    }
}

/// Whether layers can run on slices without a graph.
fn is_plain<const N: usize>(x: &Tensor, linear: [&Linear; N]) -> bool {
    let mut weights = linear.into_iter().flat_map(Linear::weights);
    is_on_host(x) && !x.track_op() && !weights.any(Tensor::track_op)
}

fn masked(mask: Option<&Mask>) -> Bias<'_> {
    Bias { pairs: None, mask }
}

/// `x + drop(linear(y))`.
fn residual(linear: &Linear, y: &Tensor, x: &Tensor, dropping: &Dropping) -> Result<Tensor> {
    match dropping.is_active() {
        true => x + dropping.apply(&linear.forward(y)?)?,
        false => linear.forward_add(y, Residual::plain(x)),
    }
}

impl Layer {
    /// Loads `{name}.attention`, `{name}.crossattention`, or both, and the FFN.
    pub fn load(
        weights: &Weights,
        name: &str,
        looks_at: LooksAt,
        sizes: &LayerSizes,
        shown: Shown,
    ) -> crate::Result<Self> {
        let (d, f) = (sizes.width, sizes.ffn_width);
        let part = |part: &str| format!("{name}.{part}");
        let attention = |part_name: &str, is_there: bool| {
            let load = || Attention::load(weights, &part(part_name), sizes);
            is_there.then(load).transpose()
        };
        Ok(Self {
            attention: attention("attention", looks_at != LooksAt::Other)?,
            crossattention: attention("crossattention", looks_at != LooksAt::Own)?,
            intermediate: Linear::load(weights, &part("intermediate.dense"), d, f)?,
            output: Linear::load(weights, &part("output.dense"), f, d)?,
            norm: LayerNorm::load(weights, &part("output.LayerNorm"), d, sizes.epsilon)?,
            name: name.to_owned(),
            shown,
        })
    }

    /// `(b, t, d) -> (b, t, d)`.
    pub fn forward(&self, x: &Tensor, sight: Sight<'_>, pass: &Pass<'_>) -> Result<Tensor> {
        let dropped = self.dropped(pass);
        let y = match pass.tape() {
            Some(tape) if self.is_fusible(x, sight, tape) => {
                let kv = sight.other.map(|other| other.kv);
                let looks = OwnedSight::of(sight).looks(self, x, kv)?;
                bert_fused::record(tape, self, x, kv, looks, dropped)
            }
            Some(tape) => {
                let (layer, owned) = (self.clone(), OwnedSight::of(sight));
                let kv = sight.other.map(|other| other.kv.clone());
                let inputs = std::iter::once(x.clone()).chain(kv).collect();
                tape.segment(inputs, move |inputs| {
                    let sight = owned.with(inputs.get(1));
                    layer.compute(&inputs[0], usize::MAX, sight, &dropped, &Pass::new())
                })
            }
            None => self.compute(x, usize::MAX, sight, &dropped, pass),
        }?;
        pass.show_named_block(&self.shown.layer, std::slice::from_ref(&y))?;
        Ok(y)
    }

    /// Weights of all parts.
    pub(super) fn weights(&self) -> impl Iterator<Item = &Tensor> {
        let linear = [&self.intermediate, &self.output].into_iter();
        let attentions = [&self.attention, &self.crossattention].into_iter();
        linear
            .flat_map(Linear::weights)
            .chain(self.norm.weights())
            .chain(attentions.flatten().flat_map(Attention::weights))
    }

    /// The layer for the first token alone, where nothing is learned: `(b, t, d) -> (b, 1, d)`.
    pub fn forward_first(&self, x: &Tensor, sight: Sight<'_>) -> Result<Tensor> {
        let pass = Pass::new();
        self.compute(x, 1, sight, &self.dropped(&pass), &pass)
    }

    /// The layer for one more token, where nothing is learned: `x: (b, 1, d)`. `before` are the keys and
    /// values of those before it, `(b, t, 2 d)`, to which its own are added.
    pub fn forward_next(
        &self,
        x: &Tensor,
        before: &mut Option<Tensor>,
        sight: Sight<'_>,
    ) -> Result<Tensor> {
        let pass = Pass::new();
        let dropped = self.dropped(&pass);
        let Some(attention) = &self.attention else {
            return self.compute(x, 1, sight, &dropped, &pass);
        };
        let own = attention.keys_values(x)?;
        let kv = match before.take() {
            Some(before) => Tensor::cat(&[&before, &own], 1)?,
            None => own,
        };
        let q = attention.query.forward(x)?;
        let mixed = attend_to(&q, &kv, masked(sight.own), attention.n_heads)?;
        *before = Some(kv);
        let x = attention.finish(x, &mixed, None, &dropped.own, &pass)?;
        self.after_own(&x, sight, &dropped, &pass)
    }

    /// Keys and values of another sequence, as this layer projects them: `(b, m, d) -> (b, m, 2 d)`. `real`
    /// are its tokens that are no padding.
    pub fn keys_values(
        &self,
        context: &Tensor,
        real: Option<&Mask>,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let Some(attention) = &self.crossattention else {
            candle_core::bail!("{} looks at no other sequence", self.name);
        };
        attention.show(&["self.key", "self.value"], context, real, pass)?;
        let linear = [&attention.key, &attention.value];
        let weights = linear.into_iter().flat_map(Linear::weights);
        match pass.tape() {
            Some(tape) if fits_slices(tape, context, weights) => {
                record_projections(tape, context, linear)
            }
            Some(tape) => {
                let attention = attention.clone();
                tape.segment(vec![context.clone()], move |inputs| {
                    attention.keys_values(&inputs[0])
                })
            }
            None => attention.keys_values(context),
        }
    }

    /// The layer itself, for the first `queries` tokens: `(b, t, d) -> (b, queries, d)`.
    fn compute(
        &self,
        x: &Tensor,
        queries: usize,
        sight: Sight<'_>,
        dropped: &Dropped,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let Some(attention) = &self.attention else {
            return self.after_own(x, sight, dropped, pass);
        };
        let shown = &self.shown.attn;
        let x = attention.to_own(x, queries, sight, &dropped.own, shown, pass)?;
        if self.crossattention.is_some() {
            let name = format_args!("{}.self", self.shown.layer);
            pass.show_output(name, || Ok(x.clone()))?;
        }
        self.after_own(&x, sight, dropped, pass)
    }

    /// The part after attention to the own sequence.
    fn after_own(
        &self,
        x: &Tensor,
        sight: Sight<'_>,
        dropped: &Dropped,
        pass: &Pass<'_>,
    ) -> Result<Tensor> {
        let x = match (&self.crossattention, sight.other) {
            (None, _) => x.clone(),
            (Some(_), None) => candle_core::bail!("{} has nothing to look at", self.name),
            (Some(attention), Some(other)) => {
                let Shown {
                    layer, other: what, ..
                } = &self.shown;
                let shown = format!("{layer}.{what}_attn");
                let x = attention.to_other(x, sight, other, &dropped.other, &shown, pass)?;
                pass.show_output(format_args!("{layer}.{what}"), || Ok(x.clone()))?;
                x
            }
        };
        let name = |part: &'static str| move || format!("{}.{part}", self.name);
        pass.show(name("intermediate.dense"), &x, sight.real)?;
        let inner = self.intermediate.forward_active(&x, Activation::Gelu)?; // (b, queries, f)
        pass.show(name("output.dense"), &inner, sight.real)?;
        let sum = residual(&self.output, &inner, &x, &dropped.ffn)?;
        self.norm.forward(&sum)
    }

    /// Whether weights are variables.
    pub fn is_trained(&self) -> bool {
        self.output.weight().track_op()
    }

    /// Whether the pass leaves out numbers of this layer.
    pub fn is_thinned(&self, pass: &Pass<'_>) -> bool {
        self.dropped(pass).ffn.is_active()
    }

    pub(super) fn dropped(&self, pass: &Pass<'_>) -> Dropped {
        let site = |part: &str| pass.dropping(&format!("{}.{part}", self.shown.layer));
        let attention = |name: &str| DroppedAttention {
            shares: site(&format!("{name}_probs")),
            output: site(&format!("{name}_output")),
        };
        Dropped {
            own: attention("attention"),
            other: attention("crossattention"),
            ffn: site("ffn_output"),
        }
    }

    /// Whether the halves can run on slices, which know no causal mask that is not spelled out.
    fn is_fusible(&self, x: &Tensor, sight: Sight<'_>, tape: &Tape) -> bool {
        let is_spelled_out =
            |mask: Option<&Mask>| mask.is_none_or(|mask| mask.added().is_some_and(is_on_host));
        let other = sight
            .other
            .is_none_or(|other| is_on_host(other.kv) && is_spelled_out(other.mask));
        let has_other = self.crossattention.is_some() == sight.other.is_some();
        is_spelled_out(sight.own) && other && has_other && fits_slices(tape, x, self.weights())
    }
}
