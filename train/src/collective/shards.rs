//! Shares out the parameters: each rank updates its own.

use std::ops::Range;

use super::Collective;
use crate::Result;

/// Numbers that are given to all at a time.
const PIECE: usize = 1 << 20;

/// The parameters of a model, laid end to end and cut into a stretch for each rank, of lengths that
/// differ by one number at most. A rank keeps the optimizer's state of its own stretch alone, updates
/// that, and gives it to all.
///
/// Rajbhandari et al. 2020, "ZeRO", <https://arxiv.org/abs/1910.02054>, section 5.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards {
    /// The first element of each parameter, and the end of the last.
    starts: Vec<usize>,
    n_ranks: usize,
}

/// Parameters that can be read and written part by part.
pub trait Parameters {
    /// Numbers of each.
    fn lengths(&self) -> Vec<usize>;

    /// Reads a part into a slice of its length.
    ///
    /// # Errors
    /// When the parameter cannot be read.
    fn read(&self, part: &Part, out: &mut [f32]) -> Result<()>;

    /// Writes a part.
    ///
    /// # Errors
    /// When the parameter cannot be written.
    fn write(&mut self, part: &Part, values: &[f32]) -> Result<()>;
}

/// The part of one parameter that a rank owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The number of the parameter.
    pub parameter: usize,
    /// Numbers of the parameter.
    pub of_parameter: Range<usize>,
    /// The same numbers in the rank's own stretch.
    pub of_shard: Range<usize>,
}

impl Shards {
    /// Of parameters of these lengths. All ranks must list them in the same order.
    ///
    /// # Panics
    /// When there is no rank.
    #[must_use]
    pub fn new(lengths: impl IntoIterator<Item = usize>, n_ranks: usize) -> Self {
        assert!(n_ranks > 0, "somebody owns the parameters");
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            starts.push(end);
        }
        Self { starts, n_ranks }
    }

    /// Numbers of all parameters.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// Whether there is nothing to own.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The stretch of rank `rank` among all parameters laid end to end.
    #[must_use]
    pub fn range(&self, rank: usize) -> Range<usize> {
        let (each, rest) = (self.len() / self.n_ranks, self.len() % self.n_ranks);
        let start = |rank: usize| rank * each + rank.min(rest);
        start(rank)..start(rank + 1)
    }

    /// The parts of rank `rank`, parameter by parameter.
    pub fn parts(&self, rank: usize) -> impl Iterator<Item = Part> {
        self.parts_of(self.range(rank))
    }

    fn parts_of(&self, range: Range<usize>) -> impl Iterator<Item = Part> {
        let first = self.starts.partition_point(|&start| start <= range.start) - 1;
        let parameters = self.starts.windows(2).enumerate().skip(first);
        let Range { start, end } = range;
        let parts = parameters.take_while(move |(_, bounds)| bounds[0] < end);
        let parts = parts.map(move |(parameter, bounds)| {
            let (from, to) = (start.max(bounds[0]), end.min(bounds[1]));
            Part {
                parameter,
                of_parameter: from - bounds[0]..to - bounds[0],
                of_shard: from - start..to - start,
            }
        });
        parts.filter(|part| !part.of_shard.is_empty())
    }

    /// Gives to all ranks what each has changed of its own stretch. Needs room for a million numbers,
    /// whatever the size of the model.
    ///
    /// # Errors
    /// As [`Collective::broadcast`], and those of the parameters.
    ///
    /// # Panics
    /// When `parameters` have another number or length than the record says, or ranks do.
    pub fn gather_ranges(
        &self,
        collective: &dyn Collective,
        parameters: &mut dyn Parameters,
    ) -> Result<()> {
        assert_eq!(collective.size(), self.n_ranks, "a stretch for each rank");
        let lengths = self.starts.windows(2).map(|bounds| bounds[1] - bounds[0]);
        assert!(
            lengths.eq(parameters.lengths()),
            "the parameters have the lengths of the record"
        );
        if self.n_ranks == 1 {
            return Ok(());
        }
        let mut piece = Vec::new();
        for root in 0..self.n_ranks {
            let range = self.range(root);
            for from in range.clone().step_by(PIECE) {
                let to = range.end.min(from + PIECE);
                piece.resize(to - from, 0.0);
                if root == collective.rank() {
                    for part in self.parts_of(from..to) {
                        parameters.read(&part, &mut piece[part.of_shard.clone()])?;
                    }
                }
                collective.broadcast(root, &mut piece)?;
                if root != collective.rank() {
                    for part in self.parts_of(from..to) {
                        parameters.write(&part, &piece[part.of_shard.clone()])?;
                    }
                }
            }
        }
        Ok(())
    }
}
