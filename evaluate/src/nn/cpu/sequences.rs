//! Sequences one after the other, of one length or of several.

use std::ops::Range;

/// The rows of each sequence, where sequences stand one after the other.
#[derive(Clone, Copy, Debug)]
pub enum Spans<'a> {
    /// The number of each.
    Even(usize),
    /// From each of these numbers to the next.
    Between(&'a [usize]),
    /// The same first ones for all.
    Same(usize),
}

impl Spans<'_> {
    pub(super) fn of(self, sequence: usize) -> Range<usize> {
        match self {
            Self::Even(n) => sequence * n..(sequence + 1) * n,
            Self::Between(starts) => starts[sequence]..starts[sequence + 1],
            Self::Same(n) => 0..n,
        }
    }

    /// The number of rows of the longest of `batch` sequences.
    fn longest(self, batch: usize) -> usize {
        let lengths = (0..batch).map(|sequence| self.of(sequence).len());
        lengths.max().unwrap_or_default()
    }
}

/// Sizes of a batch of sequences.
#[derive(Clone, Copy, Debug)]
pub struct Sizes<'a> {
    /// Sequences.
    pub batch: usize,
    /// Tokens that ask: the first of each sequence.
    pub queries: Spans<'a>,
    /// Tokens that are asked.
    pub keys: Spans<'a>,
    /// Heads.
    pub heads: usize,
    /// Width of a head.
    pub head_width: usize,
}

/// The place of one sequence's numbers.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its rows that ask.
    pub(super) queries: Range<usize>,
    /// Its rows that are asked.
    pub(super) keys: Range<usize>,
    /// Its pairs of a query and a key among those of all sequences.
    pub(super) pairs: Range<usize>,
}

impl Sizes<'_> {
    pub(super) fn width(self) -> usize {
        self.heads * self.head_width
    }

    pub(super) fn scale(self) -> f32 {
        (self.head_width as f32).sqrt().recip()
    }

    pub(super) fn places(self) -> Vec<Place> {
        let mut end = 0;
        let place = |sequence| {
            let (queries, keys) = (self.queries.of(sequence), self.keys.of(sequence));
            let first = end;
            end += queries.len() * keys.len();
            Place {
                queries,
                keys,
                pairs: first..end,
            }
        };
        (0..self.batch).map(place).collect()
    }

    /// Rows that ask, of all sequences.
    pub(super) fn n_queries(self) -> usize {
        let queries = (0..self.batch).map(|sequence| self.queries.of(sequence).len());
        queries.sum()
    }

    /// Elements of the scores of one head in the longest sequence.
    pub(super) fn most_pairs(self) -> usize {
        self.queries.longest(self.batch) * self.keys.longest(self.batch)
    }
}
