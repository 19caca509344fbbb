//! Task vectors as they are after thinning, chunk by chunk.

use std::borrow::Cow;

use crate::Result;
use crate::methods::kernels::masks::WORD;
use crate::methods::kernels::passes::{Look, in_order};
use crate::methods::kernels::sums::{LANES, magnitudes, masked_magnitudes};
use crate::methods::ranking::by_count::{BLOCK, Window, length};
use crate::methods::ranking::within_rows::RowChances;
use crate::methods::thinning::draws::MemberDraws;
use crate::methods::thinning::sparsifier::delta;
use crate::methods::{Chunk, Passes, Real, Value, reals};

/// Below this a sum of magnitudes counts as zero, as in mergekit.
const MIN_SUM: f64 = 1e-7;

/// Thinning with everything that had to be looked up in the whole tensor.
pub(in crate::methods) struct Thinned {
    members: Vec<Ready>,
    inverse: bool,
    chunk_elements: usize,
    /// Factor on each thinned task vector.
    factors: Vec<f64>,
    /// For each chunk the mask of each member; empty where it is made when it is wanted.
    masks: Vec<Vec<Vec<u32>>>,
}

/// The thinning of a member, with the values that had to be looked up.
pub(in crate::methods) enum Ready {
    /// Not at all.
    Keep,
    /// Everything becomes zero.
    Clear,
    /// By magnitude.
    Window(Window),
    /// By chance.
    Chance {
        /// The probability to stay.
        share: f32,
        /// The draws.
        draws: MemberDraws,
    },
    /// By chance that grows with rank.
    ChanceByRank {
        /// The probabilities.
        chances: RowChances,
        /// The draws.
        draws: MemberDraws,
    },
}

/// A member's thinned task vector in one chunk, block by block in order.
pub(in crate::methods) struct Term<'a, T> {
    member: usize,
    way: Way<'a, T>,
    factor: f64,
}

enum Way<'a, T> {
    Keep,
    Clear,
    Window {
        window: &'a Window,
        /// Number of the chunk.
        index: usize,
        /// Values equal to the window's ends so far.
        seen: (u64, u64),
    },
    /// Those with a bit stay.
    Mask(Cow<'a, [u32]>),
    /// Each has a factor of its own.
    Factors(Vec<T>),
}

impl Thinned {
    pub(in crate::methods) fn new(
        members: Vec<Ready>,
        inverse: bool,
        chunk_elements: usize,
    ) -> Self {
        Self {
            factors: vec![1.0; members.len()],
            members,
            inverse,
            chunk_elements,
            masks: Vec::new(),
        }
    }

    /// Sets the factors that restore each task vector's sum of magnitudes, and keeps the masks that
    /// are drawn on the way if asked to.
    pub(in crate::methods) fn rescale(
        &mut self,
        data: &dyn Passes,
        keep_masks: bool,
    ) -> Result<()> {
        let mut sums = vec![[0.0; 2]; self.members.len()];
        let mut masks = Vec::new();
        let look = Norms {
            thinned: self,
            keep_masks,
        };
        in_order(data, &look, |note| {
            for (sums, terms) in sums.iter_mut().zip(note.sums) {
                sums[0] += terms[0];
                sums[1] += terms[1];
            }
            masks.push(note.masks);
        })?;
        for ([before, after], factor) in sums.into_iter().zip(&mut self.factors) {
            if before >= MIN_SUM && after >= MIN_SUM {
                *factor = before / after;
            }
        }
        if keep_masks {
            self.masks = masks;
        }
        Ok(())
    }

    /// The members' task vectors in a chunk.
    pub(in crate::methods) fn terms<'a, V: Value>(
        &'a self,
        chunk: &Chunk<'_, V>,
    ) -> Vec<Term<'a, V::Real>> {
        let index = chunk.first / self.chunk_elements.max(1);
        (0..self.members.len())
            .map(|member| {
                let (way, own) = self.way(chunk, index, member);
                Term {
                    member,
                    way,
                    factor: self.factors[member] * own,
                }
            })
            .collect()
    }

    /// The thinning of a member in a chunk, and the factor on the rest.
    fn way<'a, T: Real, V: Value<Real = T>>(
        &'a self,
        chunk: &Chunk<'_, V>,
        index: usize,
        member: usize,
    ) -> (Way<'a, T>, f64) {
        let n = length(chunk);
        let kept = self.masks.get(index).and_then(|masks| masks.get(member));
        let kept = kept.filter(|mask| !mask.is_empty());
        match &self.members[member] {
            Ready::Keep => (Way::Keep, 1.0),
            Ready::Clear => (Way::Clear, 1.0),
            Ready::Window(window) => {
                let seen = (0, 0);
                let way = Way::Window {
                    window,
                    index,
                    seen,
                };
                (way, 1.0)
            }
            Ready::Chance { .. } | Ready::ChanceByRank { .. } if kept.is_some() => {
                let mask = kept.map(Vec::as_slice).unwrap_or_default();
                (Way::Mask(Cow::Borrowed(mask)), 1.0)
            }
            Ready::Chance { share, draws } => {
                let factor = match self.inverse {
                    true => 1.0 / f64::from(*share),
                    false => 1.0,
                };
                let mask = draws.below(*share, chunk.first, n);
                (Way::Mask(Cow::Owned(mask)), factor)
            }
            Ready::ChanceByRank { chances, draws } => {
                let (mut values, mut uniform) = (vec![T::ZERO; n], vec![0.0; n]);
                delta(chunk, member, 0, &mut values);
                draws.fill(chunk.first, &mut uniform);
                let way = match self.inverse {
                    true => Way::Factors(chances.factors(&values, &uniform)),
                    false => Way::Mask(Cow::Owned(chances.stays(&values, &uniform))),
                };
                (way, 1.0)
            }
        }
    }
}

impl<T: Real> Term<'_, T> {
    /// Hands each place of `out` the elements `first..` of the chunk times `weight`; blocks of a multiple
    /// of [`WORD`], at most [`BLOCK`], must come in order.
    #[inline(always)]
    pub(in crate::methods) fn each<V: Value<Real = T>>(
        &mut self,
        chunk: &Chunk<'_, V>,
        weight: f64,
        first: usize,
        out: &mut [f64],
        put: impl Fn(&mut f64, f64),
    ) {
        let factor = self.factor * weight;
        let value = &chunk.members[self.member][first..first + out.len()];
        let base = &chunk.base.unwrap_or_default()[first..first + out.len()];
        let inputs = reals(value).zip(reals(base));
        match &mut self.way {
            Way::Keep => crate::vectorized(
                #[inline(always)]
                || {
                    for (out, (value, base)) in out.iter_mut().zip(inputs.clone()) {
                        put(out, factor * (value - base).to_f64());
                    }
                },
            ),
            Way::Clear => out.iter_mut().for_each(|out| put(out, 0.0)),
            Way::Window {
                window,
                index,
                seen,
            } => {
                // Ranked by what their difference is in the type they are computed in.
                let mut block = [T::ZERO; BLOCK];
                let block = &mut block[..out.len()];
                delta(chunk, self.member, first, block);
                window.apply(*index, seen, block);
                for (out, value) in out.iter_mut().zip(block) {
                    put(out, factor * value.to_f64());
                }
            }
            Way::Mask(words) => {
                let mask = Mask {
                    words: &words[first / WORD..],
                    factor: self.factor,
                };
                crate::vectorized(
                    #[inline(always)]
                    || {
                        let (whole, rest) = out.as_chunks_mut::<LANES>();
                        let n_whole = whole.len();
                        let values = value.as_chunks::<LANES>().0.iter();
                        let places = whole
                            .iter_mut()
                            .zip(values.zip(base.as_chunks::<LANES>().0));
                        for (index, (out, (value, base))) in places.enumerate() {
                            mask.each(index, weight, value, base, out, &put);
                        }
                        let n = n_whole * LANES;
                        mask.each(n_whole, weight, &value[n..], &base[n..], rest, &put);
                    },
                );
            }
            Way::Factors(factors) => {
                for ((out, (value, base)), &own) in
                    out.iter_mut().zip(inputs).zip(&factors[first..])
                {
                    let scaled = factor * own.to_f64() * (value - base).to_f64();
                    put(out, if own == T::ZERO { 0.0 } else { scaled });
                }
            }
        }
    }

    /// Sums of magnitudes of the member's task vector in the chunk, before and after.
    fn sums<V: Value<Real = T>>(&mut self, chunk: &Chunk<'_, V>) -> [f64; 2] {
        let member = self.member;
        let base = chunk.base.unwrap_or_default();
        match &mut self.way {
            Way::Keep => [0.0; 2],
            Way::Mask(words) => masked_magnitudes(chunk.members[member], base, words),
            way => {
                let mut sums = [0.0; 2];
                let mut block = [T::ZERO; BLOCK];
                for first in (0..length(chunk)).step_by(BLOCK) {
                    let n = BLOCK.min(length(chunk) - first);
                    let block = &mut block[..n];
                    delta(chunk, member, first, block);
                    sums[0] += magnitudes(block);
                    match way {
                        Way::Window {
                            window,
                            index,
                            seen,
                        } => window.apply(*index, seen, block),
                        Way::Factors(factors) => {
                            for (value, &own) in block.iter_mut().zip(&factors[first..]) {
                                *value = *value * own;
                            }
                        }
                        _ => block.fill(T::ZERO),
                    }
                    sums[1] += magnitudes(block);
                }
                sums
            }
        }
    }
}

/// A task vector of which those elements stay whose bit is set, times a factor.
pub(in crate::methods) struct Mask<'a> {
    words: &'a [u32],
    factor: f64,
}

/// The masks of terms, if all have one.
pub(in crate::methods) fn masks<'a, T>(terms: &'a [Term<'_, T>]) -> Option<Vec<Mask<'a>>> {
    let masks = terms.iter().map(|term| match &term.way {
        Way::Mask(words) => Some(Mask {
            words,
            factor: term.factor,
        }),
        _ => None,
    });
    masks.collect()
}

impl Mask<'_> {
    /// As [`Term::each`], for the `index`-th [`LANES`] elements. Where all slices are known to be as
    /// long as that, bits become masks of vectors.
    #[inline(always)]
    pub(in crate::methods) fn each<V: Value>(
        &self,
        index: usize,
        weight: f64,
        value: &[V],
        base: &[impl Value<Real = V::Real>],
        out: &mut [f64],
        put: impl Fn(&mut f64, f64),
    ) {
        let first = index * LANES;
        // No word, no elements.
        let word = self.words.get(first / WORD).copied().unwrap_or_default();
        let bits = word >> (first % WORD);
        let factor = self.factor * weight;
        let mut deltas = [V::Real::ZERO; LANES];
        for (lane, (value, base)) in value.iter().zip(base).enumerate() {
            let delta = value.real() - base.real();
            let is_set = bits & 1 << lane != 0;
            deltas[lane] = if is_set { delta } else { V::Real::ZERO };
        }
        for (out, delta) in out.iter_mut().zip(&deltas) {
            put(out, factor * delta.to_f64());
        }
    }
}

/// Sums of magnitudes of each task vector, before and after.
struct Norms<'a> {
    thinned: &'a Thinned,
    keep_masks: bool,
}

struct Note {
    /// For each member.
    sums: Vec<[f64; 2]>,
    /// Likewise; empty where there is none to keep.
    masks: Vec<Vec<u32>>,
}

impl Look for Norms<'_> {
    type Note = Note;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Note {
        let mut note = Note {
            sums: Vec::new(),
            masks: Vec::new(),
        };
        for mut term in self.thinned.terms(chunk) {
            note.sums.push(term.sums(chunk));
            note.masks.push(match term.way {
                Way::Mask(mask) if self.keep_masks => mask.into_owned(),
                _ => Vec::new(),
            });
        }
        note
    }
}
