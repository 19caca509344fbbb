//! Draws for random masks: which numbers decide whether an element stays.

use std::sync::{Arc, OnceLock};

use crate::methods::kernels::masks::{WORD, each_set, pack};
use crate::methods::ranking::by_count::BLOCK;
use crate::random::{Draws, Mersenne};

/// The key of one group's draws.
#[derive(Clone)]
pub struct DrawKey {
    /// The seed.
    pub seed: u64,
    /// The tensor.
    pub name: String,
    /// The row of draws through the whole model, and this group's place in it; none for draws keyed
    /// by element.
    pub tape: Option<(Arc<Tape>, usize)>,
}

/// One row of draws for all groups of a model, in their order, as mergekit takes them.
pub struct Tape {
    seed: u64,
    /// Draws that each group takes.
    lengths: Vec<u64>,
    /// The generator before each group; made when first asked for.
    starts: OnceLock<Vec<Mersenne>>,
}

impl Tape {
    /// A row of draws of which each group takes this many.
    #[must_use]
    pub fn new(seed: u64, lengths: Vec<u64>) -> Self {
        Self {
            seed,
            lengths,
            starts: OnceLock::new(),
        }
    }

    /// The generator before a group.
    fn start(&self, group: usize) -> Mersenne {
        let starts = self.starts.get_or_init(|| {
            let mut generator = Mersenne::new(self.seed as u32);
            let lengths = self.lengths.iter();
            lengths
                .map(|&length| {
                    let start = generator.clone();
                    generator.skip(length);
                    start
                })
                .collect()
        });
        // Groups are numbered when their lengths are noted.
        starts
            .get(group)
            .cloned()
            .unwrap_or_else(|| Mersenne::new(0))
    }
}

/// Draws for one member of a group.
pub(in crate::methods) enum MemberDraws {
    /// By element.
    Keyed(Draws),
    /// In a row: the generator before each chunk, and the number of elements of a chunk.
    InARow(Vec<Mersenne>, usize),
}

impl DrawKey {
    /// Draws for the members that are thinned by chance, each of `n_elements`, in chunks of
    /// `chunk_elements`; `None` for the others.
    pub(in crate::methods) fn members(
        &self,
        is_drawn: &[bool],
        n_elements: usize,
        chunk_elements: usize,
    ) -> Vec<Option<MemberDraws>> {
        let mut row = self.tape.as_ref().map(|(tape, group)| tape.start(*group));
        (is_drawn.iter().enumerate())
            .map(|(member, &is_drawn)| {
                if !is_drawn {
                    return None;
                }
                let Some(generator) = &mut row else {
                    let name = format!("{}#{member}", self.name);
                    return Some(MemberDraws::Keyed(Draws::new(self.seed, &name)));
                };
                let starts = (0..n_elements).step_by(chunk_elements.max(1));
                let starts = starts.map(|first| {
                    let start = generator.clone();
                    generator.skip(chunk_elements.min(n_elements - first) as u64);
                    start
                });
                Some(MemberDraws::InARow(starts.collect(), chunk_elements))
            })
            .collect()
    }
}

impl MemberDraws {
    /// The elements `first..first + n` of a chunk whose draw is below `share`, one bit each.
    pub(in crate::methods) fn below(&self, share: f32, first: usize, n: usize) -> Vec<u32> {
        let mut words = vec![0; n.div_ceil(WORD)];
        match self {
            Self::Keyed(draws) => below_by_bits(draws, share, first, &mut words),
            Self::InARow(starts, chunk_elements) => {
                let mut generator = starts.get(first / chunk_elements).cloned();
                let mut block = [0.0; BLOCK];
                for (index, words) in words.chunks_mut(BLOCK / WORD).enumerate() {
                    let block = &mut block[..BLOCK.min(n - index * BLOCK)];
                    if let Some(generator) = &mut generator {
                        generator.fill_unit(block);
                    }
                    crate::vectorized(
                        #[inline(always)]
                        || pack(block, words, |draw| draw < share),
                    );
                }
            }
        }
        words
    }

    /// The draws of a chunk that begins at element `first` of the tensor, uniform in [0, 1) with 24
    /// bits.
    pub(in crate::methods) fn fill(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Keyed(draws) => draws.fill_uniform(first, out),
            Self::InARow(starts, chunk_elements) => {
                if let Some(start) = starts.get(first / chunk_elements) {
                    let mut generator = start.clone();
                    generator.fill_unit(out);
                }
            }
        }
    }
}

/// Bits of a draw that come from rows of bits, one row for each.
const N_ROWS: u32 = 8;

/// Likewise, for draws of 24 bits, where `first` is a multiple of [`WORD`]. The draws of a word's
/// elements are compared at once, bit after bit from the highest: a draw is below `share` if at the
/// first bit that differs it has a 0. No more rows are drawn than `share` has bits; after eight of
/// them one element in 256 is still undecided.
fn below_by_bits(draws: &Draws, share: f32, first: usize, words: &mut [u32]) {
    debug_assert!(first.is_multiple_of(WORD));
    let scaled = (f64::from(share) * f64::from(1 << 24)).ceil() as u32;
    if scaled >= 1 << 24 {
        return words.fill(u32::MAX);
    }
    words.fill(0);
    let mut equal = vec![u32::MAX; words.len()];
    let mut row = vec![0; words.len()];
    for bit in 0..N_ROWS {
        let left = scaled << (8 + bit);
        if left == 0 {
            return;
        }
        draws.fill_bits(bit, first / WORD, &mut row);
        let is_one = (left >> 31).wrapping_neg();
        crate::vectorized(
            #[inline(always)]
            || {
                for ((word, equal), &row) in words.iter_mut().zip(&mut equal).zip(&row) {
                    *word |= *equal & !row & is_one;
                    *equal &= !(row ^ is_one);
                }
            },
        );
    }
    let fine = scaled & 0xffff;
    if fine > 0 {
        each_set(&equal, |place| {
            if u32::from(draws.fine(first + place)) < fine {
                words[place / WORD] |= 1 << (place % WORD);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_stay_as_their_chance_says() {
        let draws = MemberDraws::Keyed(Draws::new(1, "w#0"));
        let n = 1 << 20;
        for share in [0.5, 0.3, 0.9, 0.001, 0.003, 0.999] {
            let words = draws.below(share, 0, n);
            let stay: u32 = words.iter().map(|word| word.count_ones()).sum();
            let (mean, share) = (f64::from(stay) / n as f64, f64::from(share));
            let error = (share * (1.0 - share) / n as f64).sqrt();
            assert!((mean - share).abs() < 5.0 * error, "{share}: {mean}");
            let tail = draws.below(share as f32, 3 * 1024 + 32, 100);
            assert_eq!(tail[..3], words[3 * 32 + 1..3 * 32 + 4]);
        }
        assert!(draws.below(1.0, 0, 64).iter().all(|&word| word == u32::MAX));
    }
}
