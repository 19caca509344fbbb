//! Task vectors as they are after thinning, chunk by chunk.

use std::borrow::Cow;

use super::draws::MemberDraws;
use super::masks::{self, WORD};
use super::row_ranks::RowChances;
use super::selection::{BLOCK, Window, length};
use super::sparsify::delta;
use super::survey::{Look, in_order, magnitudes};
use super::{Chunk, Passes, Real};
use crate::Result;

/// Below this a sum of magnitudes counts as zero, as in mergekit.
const MIN_SUM: f64 = 1e-7;

/// Thinning with everything that had to be looked up in the whole tensor.
pub(super) struct Thinned {
    members: Vec<Ready>,
    inverse: bool,
    chunk_elements: usize,
    /// Factor on each thinned task vector.
    factors: Vec<f64>,
    /// For each chunk the mask of each member; empty where it is made when it is wanted.
    masks: Vec<Vec<Vec<u32>>>,
}

/// How a member is thinned, with what had to be looked up.
pub(super) enum Ready {
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
pub(super) struct Term<'a, T> {
    member: usize,
    way: Way<'a, T>,
    factor: T,
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
    pub(super) fn new(members: Vec<Ready>, inverse: bool, chunk_elements: usize) -> Self {
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
    pub(super) fn rescale(&mut self, data: &dyn Passes, keep_masks: bool) -> Result<()> {
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
    pub(super) fn terms<'a, T: Real>(&'a self, chunk: &Chunk<'_, T>) -> Vec<Term<'a, T>> {
        let index = chunk.first / self.chunk_elements.max(1);
        (0..self.members.len())
            .map(|member| {
                let (way, own) = self.way(chunk, index, member);
                Term {
                    member,
                    way,
                    factor: T::from_f64(self.factors[member] * own),
                }
            })
            .collect()
    }

    /// How a member is thinned in a chunk, and the factor on what is left.
    fn way<'a, T: Real>(
        &'a self,
        chunk: &Chunk<'_, T>,
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
    /// Writes the elements `first..` of the chunk; blocks of a multiple of [`WORD`] must come in order.
    pub(super) fn fill(&mut self, chunk: &Chunk<'_, T>, first: usize, out: &mut [T]) {
        delta(chunk, self.member, first, out);
        self.thin(first, out);
        if self.factor != T::ONE {
            let factor = self.factor;
            crate::vectorized(
                #[inline(always)]
                || out.iter_mut().for_each(|value| *value = *value * factor),
            );
        }
    }

    /// Thins a block of the task vector.
    fn thin(&mut self, first: usize, out: &mut [T]) {
        match &mut self.way {
            Way::Keep => {}
            Way::Clear => out.fill(T::ZERO),
            Way::Window {
                window,
                index,
                seen,
            } => window.apply(*index, seen, out),
            Way::Mask(words) => {
                let words = &words[first / WORD..];
                crate::vectorized(
                    #[inline(always)]
                    || masks::clear(words, out),
                );
            }
            Way::Factors(factors) => {
                for (out, &factor) in out.iter_mut().zip(&factors[first..]) {
                    *out = if factor == T::ZERO {
                        T::ZERO
                    } else {
                        *out * factor
                    };
                }
            }
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

    fn look<T: Real>(&self, _: usize, chunk: &Chunk<'_, T>) -> Note {
        let n = length(chunk);
        let (mut before, mut after) = ([T::ZERO; BLOCK], [T::ZERO; BLOCK]);
        let mut note = Note {
            sums: Vec::new(),
            masks: Vec::new(),
        };
        for mut term in self.thinned.terms(chunk) {
            let mut sums = [0.0; 2];
            if !matches!(term.way, Way::Keep) {
                for first in (0..n).step_by(BLOCK) {
                    let n = BLOCK.min(n - first);
                    delta(chunk, term.member, first, &mut before[..n]);
                    after[..n].copy_from_slice(&before[..n]);
                    term.thin(first, &mut after[..n]);
                    sums[0] += magnitudes(&before[..n]);
                    sums[1] += magnitudes(&after[..n]);
                }
            }
            note.sums.push(sums);
            note.masks.push(match term.way {
                Way::Mask(mask) if self.keep_masks => mask.into_owned(),
                _ => Vec::new(),
            });
        }
        note
    }
}
