//! In which order examples are learned from.

use merge::random::Draws;
use serde::{Deserialize, Serialize};

/// How far a run has come through the data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Times that the whole data set has been gone through.
    pub epoch: u64,
    /// Batches taken since.
    pub batch: u64,
}

/// A new random order in each epoch; the last examples, too few for a batch, are left out.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    n_examples: usize,
    batch_size: usize,
    seed: u64,
}

impl Order {
    /// Of so many examples, in whole batches of `batch_size`; a smaller data set is one batch of
    /// all its examples.
    #[must_use]
    pub fn new(n_examples: usize, batch_size: usize, seed: u64) -> Self {
        Self {
            n_examples,
            batch_size: batch_size.clamp(1, n_examples.max(1)),
            seed,
        }
    }

    /// Batches of an epoch.
    #[must_use]
    pub fn n_batches(&self) -> u64 {
        (self.n_examples / self.batch_size).max(1) as u64
    }

    /// Examples of a batch.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// The batches from `place` on, without end: where each stands, and its examples.
    pub fn from(self, place: Place) -> impl Iterator<Item = (Place, Vec<usize>)> + Send + 'static {
        let first = place.batch.min(self.n_batches());
        (place.epoch..).flat_map(move |epoch| {
            let order = self.epoch(epoch);
            let skipped = if epoch == place.epoch { first } else { 0 };
            (skipped..self.n_batches()).map(move |batch| {
                let from = batch as usize * self.batch_size;
                let examples = order[from..from + self.batch_size].to_vec();
                (Place { epoch, batch }, examples)
            })
        })
    }

    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.n_examples).collect();
        let draws = Draws::new(self.seed, &format!("order of epoch {epoch}"));
        draws.sequence().shuffle(&mut order);
        order
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

    #[test]
    fn an_epoch_has_every_example_once_but_the_last_few() {
        let order = Order::new(11, 3, 5);
        let first: Vec<usize> = order
            .from(Place::default())
            .take_while(|(place, _)| place.epoch == 0)
            .flat_map(|(_, examples)| examples)
            .collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((first.len(), sorted.len()), (9, 9));
        let second: Vec<usize> = order
            .from(Place { epoch: 1, batch: 0 })
            .take(3)
            .flat_map(|(_, examples)| examples)
            .collect();
        assert_ne!(first, second);
    }

    #[test]
    fn going_on_from_a_place_gives_what_would_have_come() {
        let order = Order::new(10, 4, 1);
        let all: Vec<_> = order.from(Place::default()).take(9).collect();
        let mut place = Place::default();
        for (index, (at, _)) in all.iter().enumerate() {
            assert_eq!(*at, place);
            let rest: Vec<_> = order.from(place).take(9 - index).collect();
            assert_eq!(all[index..], rest);
            place = place.next(&order);
        }
    }

    #[test]
    fn a_data_set_smaller_than_a_batch_is_one_batch() {
        let order = Order::new(5, 64, 1);
        assert_eq!((order.n_batches(), order.batch_size()), (1, 5));
    }
}
