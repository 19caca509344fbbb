//! The tokens that each row of a stream sees, as numbers added to attention scores.

use candle_core::{DType, Device, Tensor};

use super::FAMILY;
use crate::batch::Texts;
use crate::crossing;
use crate::models::Reading;
use crate::nn::{Mask, Packing, keep_texts_of_blind_rows};
use crate::streams::{self, Span};
use crate::{Error, ModelFault, Result};

/// The number added to the score of a hidden token. So a row from which all is hidden shares by its scores.
const HIDDEN: f32 = -10_000.0;

/// The number of tokens of each text before its padding.
///
/// # Errors
/// [`ModelFault::Incapable`] for a text without a token or with padding before one.
pub(super) fn lengths(texts: &Texts) -> Result<Vec<usize>> {
    let kept: Vec<u8> = crossing::to_memory(&texts.kept.to_dtype(DType::U8)?)?;
    let kept = kept.chunks_exact(texts.kept.dim(1)?.max(1));
    let kept: Vec<Vec<u8>> = kept.map(<[u8]>::to_vec).collect();
    let length = |row: Vec<u8>| {
        let n = row.iter().filter(|&&kept| kept != 0).count();
        match n > 0 && row[..n].iter().all(|&kept| kept != 0) {
            true => Ok(n),
            false => Err(Error::Model(ModelFault::Incapable {
                family: FAMILY.name,
                what: "read a text that begins with padding, or has some between its tokens",
            })),
        }
    };
    kept.into_iter().map(length).collect()
}

/// The masks of the three streams: forward, reverse, and the queries' of both.
#[derive(Clone, Debug)]
pub(super) struct Masks {
    /// `(b, t, t)`.
    pub forward: Mask,
    /// `(b, t, t)`.
    pub reverse: Mask,
    /// `(b, queries, 2 t)`.
    pub queries: Mask,
}

impl Masks {
    /// Of every query, with a span hidden from each where `spans: (b t)` are given.
    pub fn of_all(texts: &Texts, spans: Option<&[Span]>) -> Result<Self> {
        let t = texts.ids.dim(1)?;
        Self::of(texts, t, |text, seen| {
            let Some(spans) = spans else { return };
            let spans = spans.get(text * t..(text + 1) * t).unwrap_or_default();
            let rows = seen.chunks_mut(2 * t).zip(spans).enumerate();
            // The first query sees all tokens.
            rows.skip(1)
                .for_each(|(row, (seen, span))| span.hide(row, seen));
        })
    }

    /// Of the first query alone.
    pub fn of_first(texts: &Texts) -> Result<Self> {
        Self::of(texts, 1, |_, _| {})
    }

    fn of(texts: &Texts, n_queries: usize, corrupt: impl Fn(usize, &mut [u8])) -> Result<Self> {
        let (b, t) = texts.ids.dims2()?;
        let (mut forward, mut reverse, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        for (text, n) in lengths(texts)?.into_iter().enumerate() {
            forward.extend(streams::forward(n, t));
            reverse.extend(streams::reverse(n, t));
            let mut seen = streams::reconstructor(n, t);
            corrupt(text, &mut seen);
            queries.extend_from_slice(&seen[..n_queries * 2 * t]);
        }
        let device = texts.ids.device();
        Ok(Self {
            forward: pairs(forward, [b, t, t], device)?,
            reverse: pairs(reverse, [b, t, t], device)?,
            queries: pairs(queries, [b, n_queries, 2 * t], device)?,
        })
    }
}

/// The mask of one stream.
pub(super) fn of_reading(texts: &Texts, reading: Reading<'_>) -> Result<Mask> {
    let (b, t) = texts.ids.dims2()?;
    let mut seen = Vec::with_capacity(b * t * t);
    for (text, n) in lengths(texts)?.into_iter().enumerate() {
        seen.extend(match reading {
            Reading::Bidirectional => return Ok(Mask::padding(&texts.kept, HIDDEN)?),
            Reading::Causal => streams::forward(n, t),
            Reading::AfterPrefix(prefixes) => {
                let prefix = prefixes.get(text).copied().unwrap_or(n);
                after_prefix(n, prefix, t)
            }
        });
    }
    pairs(seen, [b, t, t], texts.ids.device())
}

/// The mask of rows that read on from a prefix, `len × len`: each sees the prefix, itself and the rows before it.
fn after_prefix(n_tokens: usize, prefix: usize, len: usize) -> Vec<u8> {
    let places = (0..len).flat_map(|row| (0..len).map(move |key| (row, key)));
    let sees = |(row, key)| key < n_tokens && (key < prefix || key <= row);
    places.map(|place| u8::from(sees(place))).collect()
}

fn pairs(seen: Vec<u8>, shape: [usize; 3], device: &Device) -> Result<Mask> {
    let seen = crossing::to_device(seen, &shape[..], device)?;
    Ok(Mask::pairs(&seen, HIDDEN)?)
}

/// The rows of texts that one stream computes where padding is left out: those of tokens.
pub(super) fn rows_of_one(texts: &Texts, mask: &Mask) -> Result<Packing> {
    let (mut rows, t) = (lengths(texts)?, texts.ids.dim(1)?);
    keep_texts_of_blind_rows(&mut rows, t, mask)?;
    Ok(Packing::new(rows, t))
}

/// The number of rows of each text that the forward and the reverse stream compute where padding is left out. From the
/// row after its last token the reverse stream guesses that token; classifiers, which ask the first query alone, do not
/// need it.
pub(super) fn rows_of_three(
    texts: &Texts,
    n_queries: usize,
    masks: &Masks,
) -> Result<[Vec<usize>; 2]> {
    let (mut forward, t) = (lengths(texts)?, texts.ids.dim(1)?);
    let one_more = |&n: &usize| match n_queries > 1 && n > 1 {
        true => (n + 1).min(t),
        false => n,
    };
    let mut reverse: Vec<usize> = forward.iter().map(one_more).collect();
    keep_texts_of_blind_rows(&mut forward, t, &masks.forward)?;
    keep_texts_of_blind_rows(&mut forward, t, &masks.queries)?;
    keep_texts_of_blind_rows(&mut reverse, t, &masks.reverse)?;
    for (forward, reverse) in forward.iter_mut().zip(&mut reverse) {
        if *forward == t || *reverse == t {
            (*forward, *reverse) = (t, t);
        }
    }
    Ok([forward, reverse])
}

/// 1 where a row sees a key, 0 where it does not, in the shape of the mask; a mask of padding has one row.
pub(super) fn visible(mask: &Mask) -> Result<Option<Tensor>> {
    let Some(added) = mask.added() else {
        return Ok(None);
    };
    let seen = added.eq(0.0)?;
    Ok(Some(match seen.rank() {
        2 => seen.unsqueeze(1)?,
        _ => seen,
    }))
}
