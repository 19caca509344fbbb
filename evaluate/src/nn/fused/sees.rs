//! The rows that each half works on, and the rows that they see.

use candle_core::Result;

use super::hidden;
use crate::nn::cpu::attention::Added;
use crate::nn::cpu::host::Host;
use crate::nn::cpu::sequences::{Sizes, Spans};
use crate::nn::packing::PackedPairs;
use crate::nn::{Dropping, Mask};

/// The rows that the rows of a half see.
#[derive(Clone, Debug)]
pub(crate) enum Sees {
    /// Sequences of one length, padding and all.
    Padded {
        /// Sequences.
        batch: usize,
        /// Tokens of each that ask.
        queries: usize,
        /// Tokens that each of them asks.
        keys: usize,
        /// The hidden keys: padding, or a choice for each pair.
        mask: Option<Mask>,
    },
    /// Texts without their padding.
    Packed(PackedPairs),
}

/// The numbers added to scores.
pub(super) enum Hidden<'a> {
    Padded(Option<Host<'a>>),
    Packed(&'a [f32]),
}

impl Hidden<'_> {
    /// With dropout's factors of the shares, or nothing.
    pub fn added<'b>(&'b self, keep: &'b [f32]) -> Added<'b> {
        let mask = match self {
            Self::Padded(host) => host.as_ref().map_or(&[][..], Host::values),
            Self::Packed(values) => values,
        };
        Added {
            bias: &[],
            mask,
            keep,
        }
    }
}

impl Sees {
    pub(super) fn sizes(&self, heads: usize, width: usize) -> Sizes<'_> {
        let (batch, queries, keys) = match self {
            &Self::Padded {
                batch,
                queries,
                keys,
                ..
            } => (batch, Spans::Even(queries), Spans::Even(keys)),
            Self::Packed(pairs) => pairs.spans(),
        };
        Sizes {
            batch,
            queries,
            keys,
            heads,
            head_width: width / heads,
        }
    }

    /// Whether all sequences ask the same rows, of which there is no gradient.
    pub(super) fn shares_keys(&self) -> bool {
        matches!(self, Self::Packed(pairs) if pairs.shares_keys())
    }

    pub(super) fn hidden(&self) -> Result<Hidden<'_>> {
        Ok(match self {
            Self::Padded { mask, .. } => Hidden::Padded(hidden(mask.as_ref())?),
            Self::Packed(pairs) => Hidden::Packed(pairs.hidden()),
        })
    }

    /// Dropout's factors of the shares of attention; empty where nothing is left out.
    ///
    /// # Errors
    /// As [`Dropping::factors`].
    pub fn share_factors(&self, dropping: &Dropping, heads: usize) -> Result<Vec<f32>> {
        let factors = match self {
            &Self::Padded {
                batch,
                queries,
                keys,
                ..
            } => dropping.factors(&[batch, heads, queries, keys]),
            Self::Packed(pairs) => pairs.factors(dropping, heads),
        };
        Ok(factors?.unwrap_or_default())
    }

    /// Dropout's factors of rows that ask, `width` wide; empty where nothing is left out.
    ///
    /// # Errors
    /// As [`Dropping::factors`].
    pub fn row_factors(&self, dropping: &Dropping, width: usize) -> Result<Vec<f32>> {
        let factors = match self {
            &Self::Padded { batch, queries, .. } => dropping.factors(&[batch, queries, width]),
            Self::Packed(pairs) => pairs.queries().factors(dropping, width),
        };
        Ok(factors?.unwrap_or_default())
    }
}
