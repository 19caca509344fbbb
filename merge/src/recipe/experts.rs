//! The experts that act in each block.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::Expert;

/// Blocks `first..end`, written `0..10`, or `7` for a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockRange {
    /// The first block, counted from 0.
    pub first: usize,
    /// One past the last block.
    pub end: usize,
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.first, self.end)
    }
}

impl FromStr for BlockRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || format!("`{text}` is no range of blocks; write `0..10`, or `7` for one block");
        let (first, end) = match text.split_once("..") {
            Some((first, end)) => (first.trim().parse().ok(), end.trim().parse().ok()),
            None => {
                let block: Option<usize> = text.trim().parse().ok();
                (block, block.and_then(|block| block.checked_add(1)))
            }
        };
        match (first, end) {
            (Some(first), Some(end)) if first < end => Ok(Self { first, end }),
            _ => Err(bad()),
        }
    }
}

impl Serialize for BlockRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlockRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// For ranges of blocks, the experts that are merged there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExpertChoice(pub BTreeMap<BlockRange, Vec<Expert>>);

impl ExpertChoice {
    /// The choice that gives `of(block)` for each of `n_blocks` blocks, in as few ranges as can be.
    #[must_use]
    pub fn from_blocks(n_blocks: usize, of: impl Fn(usize) -> Vec<Expert>) -> Self {
        let mut ranges: Vec<(BlockRange, Vec<Expert>)> = Vec::new();
        for block in 0..n_blocks {
            let experts = of(block);
            match ranges.last_mut() {
                Some((range, last)) if *last == experts => range.end = block + 1,
                _ => ranges.push((
                    BlockRange {
                        first: block,
                        end: block + 1,
                    },
                    experts,
                )),
            }
        }
        Self(ranges.into_iter().collect())
    }

    /// The experts of one block, in the order of [`Expert`]; `None` if no range holds it.
    #[must_use]
    pub fn of_block(&self, block: usize) -> Option<Vec<Expert>> {
        let (_, experts) = self
            .0
            .iter()
            .find(|(range, _)| (range.first..range.end).contains(&block))?;
        let mut experts = experts.clone();
        experts.sort_unstable();
        experts.dedup();
        Some(experts)
    }

    /// The first of some blocks that is in no range, in two, or without any expert.
    #[must_use]
    pub fn flaw(&self, mut blocks: impl Iterator<Item = usize>) -> Option<(usize, &'static str)> {
        blocks.find_map(|block| {
            let holds = |range: &BlockRange| (range.first..range.end).contains(&block);
            let hits: Vec<_> = self.0.iter().filter(|(range, _)| holds(range)).collect();
            match hits.as_slice() {
                [] => Some((block, "is in no range")),
                [(_, experts)] if experts.is_empty() => Some((block, "has no expert")),
                [_] => None,
                _ => Some((block, "is in two ranges")),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_neighbors_share_a_range() {
        let choice = ExpertChoice::from_blocks(12, |block| match block {
            0..10 => vec![Expert::Vision, Expert::Language],
            _ => vec![Expert::VisionLanguage],
        });
        let written: Vec<String> = choice.0.keys().map(ToString::to_string).collect();
        assert_eq!(written, ["0..10", "10..12"]);
        assert_eq!(choice.of_block(11), Some(vec![Expert::VisionLanguage]));
        assert_eq!(choice.flaw(0..12), None);
        assert_eq!(choice.flaw(0..13), Some((12, "is in no range")));
    }

    #[test]
    fn ranges_that_overlap_or_run_backwards_are_refused() {
        let mut choice = ExpertChoice::from_blocks(4, |_| vec![Expert::Vision]);
        choice
            .0
            .insert(BlockRange { first: 3, end: 5 }, vec![Expert::Language]);
        assert_eq!(choice.flaw(0..4), Some((3, "is in two ranges")));
        assert!("5..2".parse::<BlockRange>().is_err());
        assert!("a".parse::<BlockRange>().is_err());
        assert_eq!("7".parse(), Ok(BlockRange { first: 7, end: 8 }));
    }
}
