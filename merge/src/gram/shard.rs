//! Parts of a data set that several processes sum.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Part `number` of `of`, from 1: every `of`-th item, beginning with the `number`-th.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl Shard {
    /// `None` if there is no such part.
    #[must_use]
    pub fn new(number: usize, of: usize) -> Option<Self> {
        (1..=of).contains(&number).then_some(Self { number, of })
    }

    /// Of how many parts.
    #[must_use]
    pub fn of(self) -> usize {
        self.of
    }

    /// The items of this part, in their order.
    #[must_use]
    pub fn take<T>(self, items: Vec<T>) -> Vec<T> {
        let own = items.into_iter().skip(self.number - 1);
        own.step_by(self.of).collect()
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| {
            let (number, of) = (number.parse().ok()?, of.parse().ok()?);
            Self::new(number, of)
        });
        parsed.ok_or_else(|| "K/N, the Kth of N parts, e.g. 1/4".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_in_one_part() {
        for of in 1..6 {
            let mut all: Vec<u32> = Vec::new();
            for number in 1..=of {
                let shard: Shard = format!("{number}/{of}").parse().expect("a part");
                assert_eq!(shard.to_string(), format!("{number}/{of}"));
                all.extend(shard.take((0..4).collect()));
            }
            all.sort_unstable();
            assert_eq!(all, [0, 1, 2, 3]);
        }
        for wrong in ["0/2", "3/2", "1", "1/", "/2", "1/0", "-1/2", "a/b"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
