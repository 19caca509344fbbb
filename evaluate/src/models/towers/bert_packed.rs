//! A layer of BERT on texts without their padding.

use candle_core::{Result, Tensor};

use super::bert_fused::{self, Looks};
use super::bert_layer::Layer;
use crate::nn::{Buffers, Mask, PackedPairs, Packing, Pass, Sees, is_leaf, is_on_host};

/// The sequences and masks of the rows of packed texts in a layer.
#[derive(Clone, Copy, Default)]
pub(in crate::models) struct PackedSight<'a> {
    /// Of their own text.
    pub own: Option<&'a PackedPairs>,
    /// Of another sequence, whose keys and values the layer has projected: [`Layer::keys_values`].
    pub other: Option<(&'a Tensor, &'a PackedPairs)>,
}

impl Layer {
    /// The layer for packed texts, `x: (1, r, d)`: see [`Layer::packs`].
    pub fn forward_packed(
        &self,
        x: &Tensor,
        sight: PackedSight<'_>,
        pass: &Pass<'_>,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let sees = |pairs: &PackedPairs| Sees::Packed(pairs.clone());
        let looks = Looks {
            own: sight.own.map(sees),
            other: sight.other.map(|(_, pairs)| sees(pairs)),
        };
        let has = [&self.attention, &self.crossattention].map(|attention| attention.is_some());
        if has != [looks.own.is_some(), looks.other.is_some()] {
            candle_core::bail!("{} looks at other sequences than it is given", self.name);
        }
        let width = x.dim(2)?;
        let fits = |tensor: &Tensor, rows: usize, width: usize| tensor.elem_count() == rows * width;
        let own = sight
            .own
            .is_none_or(|own| fits(x, own.queries().n_rows(), width));
        let other = sight.other.is_none_or(|(kv, other)| {
            fits(x, other.queries().n_rows(), width) && fits(kv, other.keys().n_rows(), 2 * width)
        });
        if !own || !other {
            candle_core::bail!("{:?} are not the packed rows of these texts", x.dims());
        }
        let (dropped, kv) = (self.dropped(pass), sight.other.map(|(kv, _)| kv));
        match pass.tape() {
            Some(tape) => bert_fused::record(tape, self, x, kv, looks, dropped),
            None => bert_fused::run(self, x, kv, looks, dropped, buffers),
        }
    }

    /// [`Layer::forward_first`] for packed texts: `(1, r, d) -> (1, b, d)`.
    pub fn forward_packed_first(
        &self,
        x: &Tensor,
        packing: &Packing,
        mask: &Mask,
        buffers: &Buffers,
    ) -> Result<Tensor> {
        let firsts = Packing::even(packing.batch(), 1);
        let sees = Sees::Packed(PackedPairs::own(&firsts, packing, mask)?);
        bert_fused::run_first(self, x, packing, &sees, buffers)
    }

    /// Whether the layer can run on packed texts: on slices, with or without a tape.
    pub fn packs(&self, pass: &Pass<'_>) -> bool {
        let is_plain = |weight: &Tensor| is_on_host(weight) && !weight.track_op();
        match pass.tape() {
            Some(tape) => tape.fuses() && self.weights().all(is_leaf),
            None => self.weights().all(is_plain),
        }
    }
}
