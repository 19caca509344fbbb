//! Draws for random masks: which numbers decide whether an element stays.

use std::sync::{Arc, OnceLock};

use crate::random::{Draws, Mersenne};

/// Where the draws of one group come from.
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
pub(super) enum MemberDraws {
    /// By element.
    Keyed(Draws),
    /// In a row: the generator before each chunk of so many elements.
    InARow(Vec<Mersenne>, usize),
}

impl DrawKey {
    /// Draws for the members that are thinned by chance, each of `n_elements`, in chunks of
    /// `chunk_elements`; `None` for the others.
    pub(super) fn members(
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
    /// The draws of a chunk that begins at element `first` of the tensor, uniform in [0, 1) with 24
    /// bits.
    pub(super) fn fill(&self, first: usize, out: &mut [f32]) {
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
