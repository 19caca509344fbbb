//! A reproducible order.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Shuffles by the method of Fisher and Yates, the same for a seed on every machine.
pub(super) fn shuffle<T>(values: &mut [T], seed: u64) {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    for last in (1..values.len()).rev() {
        let n = last as u64 + 1;
        // Draws that would favor small numbers are thrown away.
        let bound = u64::MAX - u64::MAX % n;
        let draw = loop {
            let draw = generator.next_u64();
            if draw < bound {
                break draw % n;
            }
        };
        values.swap(last, draw as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::shuffle;

    #[test]
    fn a_shuffle_is_a_permutation_and_follows_its_seed() {
        let order = |seed| {
            let mut values: Vec<u32> = (0..100).collect();
            shuffle(&mut values, seed);
            values
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        let mut sorted = order(1);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }
}
