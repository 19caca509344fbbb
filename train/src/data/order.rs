//! The order of the examples.

use std::ops::Range;

use merge::random::Draws;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The progress of a run through the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Times that the whole data set has been gone through.
    pub epoch: u64,
    /// Batches taken since.
    pub batch: u64,
}

/// The rule that picks the data set of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// Any: all data sets are one.
    #[default]
    Shuffle,
    /// One, and the data sets follow one another.
    Sequential,
    /// One, drawn for each batch in proportion to the data sets' sizes, so that the style of a
    /// data set tells no negative apart.
    ///
    /// Cui et al. 2022, "Contrastive vision-language pre-training with limited resources",
    /// <https://arxiv.org/abs/2112.09331>, section 3.1.
    Debias,
}

/// A new random order in each epoch; the last examples, too few for a batch, are left out.
#[derive(Clone, Debug)]
pub struct Order {
    /// The range of each data set's examples.
    sets: Vec<Range<usize>>,
    sampling: Sampling,
    batch_size: usize,
    /// Ranks that share a batch; data sets are filled up to a multiple of them.
    n_ranks: usize,
    seed: u64,
}

impl Order {
    /// Of `n_examples`, in whole batches of `batch_size`; a smaller data set is one batch of
    /// all its examples.
    #[must_use]
    pub fn new(n_examples: usize, batch_size: usize, seed: u64) -> Self {
        Self {
            sets: std::iter::once(0..n_examples).collect(),
            sampling: Sampling::Shuffle,
            batch_size: batch_size.clamp(1, n_examples.max(1)),
            n_ranks: 1,
            seed,
        }
    }

    /// Of data sets of these names and lengths, one behind the other, as ZeroVL's samplers go through them: each is
    /// filled up from its start to a multiple of the ranks, of which rank `r` takes examples `r`,
    /// `r + ranks`, …
    ///
    /// # Errors
    /// [`Error::TooFewExamples`] for a data set that does not fill one batch.
    pub fn of_sets(
        named: &[(String, usize)],
        sampling: Sampling,
        batch_size: usize,
        n_ranks: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut sets = Vec::with_capacity(named.len());
        let mut end = 0;
        for &(_, n) in named {
            sets.push(end..end + n);
            end += n;
        }
        if sampling == Sampling::Shuffle {
            sets = std::iter::once(0..end).collect();
        }
        let order = Self {
            sets,
            sampling,
            batch_size: batch_size.max(1),
            n_ranks: n_ranks.max(1),
            seed,
        };
        match (0..order.sets.len()).find(|&set| order.n_batches_of(set) == 0) {
            Some(number) => Err(Error::TooFewExamples {
                data: match sampling {
                    Sampling::Shuffle => "what its data sets have together".to_owned(),
                    _ => named[number].0.clone(),
                },
                found: order.sets[number].len(),
                batch_size,
            }),
            None => Ok(order),
        }
    }

    /// Batches of an epoch.
    #[must_use]
    pub fn n_batches(&self) -> u64 {
        let sets = 0..self.sets.len();
        sets.map(|set| self.n_batches_of(set)).sum::<usize>().max(1) as u64
    }

    /// Whole batches of a data set.
    fn n_batches_of(&self, set: usize) -> usize {
        self.sets[set].len().next_multiple_of(self.n_ranks) / self.batch_size
    }

    /// Examples of a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The batches from `place` on, without end: where each stands, and its examples, those of rank 0
    /// first.
    pub fn from(self, place: Place) -> impl Iterator<Item = (Place, Vec<usize>)> + Send + 'static {
        let first = place.batch.min(self.n_batches());
        (place.epoch..).flat_map(move |epoch| {
            let skipped = if epoch == place.epoch { first } else { 0 };
            let mut orders: Vec<Option<(u64, Vec<usize>)>> = vec![None; self.sets.len()];
            let visits = self.visits(epoch).into_iter().enumerate();
            let order = self.clone();
            visits
                .skip(skipped as usize)
                .map(move |(batch, (set, visit))| {
                    let kept = orders[set]
                        .take()
                        .filter(|(round, _)| *round == visit.round);
                    let shuffled = match kept {
                        Some((_, shuffled)) => shuffled,
                        None => order.shuffled(epoch, set, visit.round),
                    };
                    let place = Place {
                        epoch,
                        batch: batch as u64,
                    };
                    let (size, ranks) = (order.batch_size, order.n_ranks);
                    let examples = share_out(&shuffled, visit.batch, size, ranks);
                    orders[set] = Some((visit.round, shuffled));
                    (place, examples)
                })
        })
    }

    /// The data set and batch of each step of an epoch.
    fn visits(&self, epoch: u64) -> Vec<(usize, Visit)> {
        let n_batches: Vec<usize> = (0..self.sets.len())
            .map(|set| self.n_batches_of(set))
            .collect();
        if self.sampling != Sampling::Debias {
            let all = n_batches.iter().enumerate().flat_map(|(set, &n)| {
                let n = if self.sets.len() == 1 { n.max(1) } else { n };
                (0..n).map(move |batch| (set, Visit { round: 0, batch }))
            });
            return all.collect();
        }
        let weights: Vec<f32> = self.sets.iter().map(|set| set.len() as f32).collect();
        let mut draws = Draws::new(self.seed, &format!("data sets of epoch {epoch}")).sequence();
        let mut visits = Visits::new(&n_batches);
        (0..n_batches.iter().sum())
            .map(|_| {
                let set = draws.weighted(&weights).unwrap_or_default();
                (set, visits.next(set))
            })
            .collect()
    }

    /// The examples of a data set in a new order, filled up from its start.
    fn shuffled(&self, epoch: u64, set: usize, round: u64) -> Vec<usize> {
        let mut order: Vec<usize> = self.sets[set].clone().collect();
        let name = match (self.sets.len(), round) {
            (1, 0) => format!("order of epoch {epoch}"),
            _ => format!("order of epoch {epoch}, data set {set}, round {round}"),
        };
        Draws::new(self.seed, &name).sequence().shuffle(&mut order);
        let n = order.len();
        let lacking = n.next_multiple_of(self.n_ranks) - n;
        order.extend(
            (0..lacking)
                .map(|at| order[at % n.max(1)])
                .collect::<Vec<_>>(),
        );
        order
    }
}

/// Batch number `batch` of examples in order: first those of rank 0, then those of rank 1, … Rank `r` of
/// `n_ranks` takes every `n_ranks`-th example from the `r`-th on.
#[must_use]
pub fn share_out(order: &[usize], batch: usize, batch_size: usize, n_ranks: usize) -> Vec<usize> {
    let end = ((batch + 1) * batch_size).min(order.len());
    let of_batch = &order[(batch * batch_size).min(end)..end];
    let ranks = 0..n_ranks.max(1);
    let of_rank = |rank: usize| of_batch.iter().skip(rank).step_by(n_ranks.max(1)).copied();
    ranks.flat_map(of_rank).collect()
}

/// A batch of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Times that the data set has been gone through in this epoch.
    pub round: u64,
    /// The batch, from 0.
    pub batch: usize,
}

/// The position of an epoch in each data set. A data set that is used up begins again.
#[derive(Clone, Debug)]
pub struct Visits {
    n_batches: Vec<usize>,
    next: Vec<Visit>,
}

impl Visits {
    /// At the beginning of an epoch; `n_batches` are those of each data set.
    #[must_use]
    pub fn new(n_batches: &[usize]) -> Self {
        let first = Visit { round: 0, batch: 0 };
        Self {
            n_batches: n_batches.to_vec(),
            next: vec![first; n_batches.len()],
        }
    }

    /// The next batch of a data set.
    pub fn next(&mut self, set: usize) -> Visit {
        let next = &mut self.next[set];
        if next.batch >= self.n_batches[set] {
            *next = Visit {
                round: next.round + 1,
                batch: 0,
            };
        }
        let visit = *next;
        next.batch += 1;
        visit
    }
}

impl Place {
    /// The place after this one.
    #[must_use]
    pub fn next(self, order: &Order) -> Self {
        match self.batch + 1 < order.n_batches() {
            true => Self {
                batch: self.batch + 1,
                ..self
            },
            false => Self {
                epoch: self.epoch + 1,
                batch: 0,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(lengths: &[usize]) -> Vec<(String, usize)> {
        let sets = lengths.iter().enumerate();
        sets.map(|(at, &n)| (format!("set {at}"), n)).collect()
    }

    #[test]
    fn an_epoch_has_every_example_once_but_the_last_few() {
        let order = Order::new(11, 3, 5);
        let first: Vec<usize> = order
            .clone()
            .from(Place::default())
            .take_while(|(place, _)| place.epoch == 0)
            .flat_map(|(_, examples)| examples)
            .collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((first.len(), sorted.len()), (9, 9));
        let second: Vec<usize> = order
            .clone()
            .from(Place { epoch: 1, batch: 0 })
            .take(3)
            .flat_map(|(_, examples)| examples)
            .collect();
        assert_ne!(first, second);
    }

    #[test]
    fn going_on_from_a_place_gives_what_would_have_come() {
        let order = Order::new(10, 4, 1);
        let all: Vec<_> = order.clone().from(Place::default()).take(9).collect();
        let mut place = Place::default();
        for (index, (at, _)) in all.iter().enumerate() {
            assert_eq!(*at, place);
            let rest: Vec<_> = order.clone().from(place).take(9 - index).collect();
            assert_eq!(all[index..], rest);
            place = place.next(&order);
        }
    }

    #[test]
    fn a_data_set_smaller_than_a_batch_is_one_batch() {
        let order = Order::new(5, 64, 1);
        assert_eq!((order.n_batches(), order.batch_size()), (1, 5));
    }

    #[test]
    fn a_debiased_batch_has_one_data_set_as_often_as_it_is_large() {
        let order =
            Order::of_sets(&named(&[300, 100]), Sampling::Debias, 10, 2, 3).expect("an order");
        assert_eq!(order.n_batches(), 40);
        let mut n_first = 0;
        for (_, examples) in order.from(Place::default()).take(2000) {
            let n = examples.iter().filter(|&&example| example < 300).count();
            assert!(n == 0 || n == 10, "{examples:?}");
            n_first += n / 10;
        }
        // 1500 expected, with a deviation of 19.
        assert!((1420..1580).contains(&n_first), "{n_first}");
    }

    #[test]
    fn data_sets_follow_one_another_and_each_fills_a_batch() {
        let order =
            Order::of_sets(&named(&[5, 4]), Sampling::Sequential, 2, 1, 3).expect("an order");
        assert_eq!(order.n_batches(), 4);
        let batches = order.from(Place::default()).take(4);
        let of_first: Vec<bool> = batches.map(|(_, e)| e.iter().all(|&e| e < 5)).collect();
        assert_eq!(of_first, [true, true, false, false]);
        let error = Order::of_sets(&named(&[5, 1]), Sampling::Debias, 2, 1, 3);
        let error = error.expect_err("too few").to_string();
        assert!(
            error.contains("set 1 has 1 example") && error.contains("batch of 2"),
            "{error}"
        );
    }

    #[test]
    fn a_debiased_epoch_goes_on_from_any_place() {
        let order = Order::of_sets(&named(&[9, 6]), Sampling::Debias, 3, 1, 8).expect("an order");
        let all: Vec<_> = order.clone().from(Place::default()).take(12).collect();
        let mut place = Place::default();
        for index in 0..12 {
            let rest: Vec<_> = order.clone().from(place).take(12 - index).collect();
            assert_eq!(all[index..], rest);
            place = place.next(&order);
        }
    }
}
