//! Processes that share the passes over a data set.

use bytemuck::Pod;

use crate::{Error, Result};

/// Processes that share the passes over a data set. Every one runs the same task on the same split,
/// computes every so manieth batch, and then has what all have computed: the same batches as one
/// process alone, so the same numbers.
pub trait Ranks {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// The bytes of every process, in their order; they may differ in length.
    ///
    /// # Errors
    /// When a process is gone or does something else.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;
}

/// A process that has nobody to share with.
#[derive(Clone, Copy, Debug)]
pub struct Single;

impl Ranks for Single {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }
}

/// The items that a rank takes of a list.
#[must_use]
pub fn own<T>(ranks: &dyn Ranks, items: Vec<T>) -> Vec<T> {
    let own = items.into_iter().skip(ranks.rank());
    own.step_by(ranks.size().max(1)).collect()
}

/// The results of all batches in their order, from those of this rank's batches: a batch has
/// `n_examples` of them, and each example as many values as any other.
///
/// # Errors
/// [`Error::UnevenResults`] when a rank has computed other batches than it should; as
/// [`Ranks::gather`].
pub fn gathered<T: Pod>(
    ranks: &dyn Ranks,
    own: Vec<T>,
    n_examples: &[usize],
) -> Result<Vec<Vec<T>>> {
    let n_ranks = ranks.size().max(1);
    let mut results: Vec<Vec<T>> = Vec::new();
    results.resize_with(n_examples.len(), Vec::new);
    let all = ranks.gather(bytemuck::cast_slice(&own))?;
    for (rank, bytes) in all.iter().enumerate() {
        let values: Vec<T> = bytemuck::pod_collect_to_vec(bytes);
        let batches = || (rank..n_examples.len()).step_by(n_ranks);
        let n: usize = batches().map(|batch| n_examples[batch]).sum();
        let width = values.len() / n.max(1);
        if width * n != values.len() {
            return Err(Error::UnevenResults {
                rank,
                n_values: values.len(),
                n_examples: n,
            });
        }
        let mut rest = values.as_slice();
        for batch in batches() {
            let (values, next) = rest.split_at(width * n_examples[batch]);
            results[batch] = values.to_vec();
            rest = next;
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of three, which knows what the others send.
    struct Third(Vec<Vec<u8>>);

    impl Ranks for Third {
        fn rank(&self) -> usize {
            2
        }

        fn size(&self) -> usize {
            3
        }

        fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            let mut all = self.0.clone();
            all.push(own.to_vec());
            Ok(all)
        }
    }

    #[test]
    fn results_of_all_ranks_come_in_the_order_of_the_batches() {
        // Batches 0 to 4 of 2, 2, 2, 2 and 1 examples with two values each.
        let ranks = Third(vec![
            vec![0, 1, 2, 3, 30, 31, 32, 33],
            vec![10, 11, 12, 13, 40, 41],
        ]);
        assert_eq!(own(&ranks, vec![0, 1, 2, 3, 4]), [2]);
        let all = gathered::<u8>(&ranks, vec![20, 21, 22, 23], &[2, 2, 2, 2, 1]);
        let expected: [&[u8]; 5] = [
            &[0, 1, 2, 3],
            &[10, 11, 12, 13],
            &[20, 21, 22, 23],
            &[30, 31, 32, 33],
            &[40, 41],
        ];
        assert_eq!(all.expect("gathered"), expected);
        let uneven = gathered::<u8>(&ranks, vec![20, 21, 22], &[2, 2, 2, 2, 1]);
        assert!(matches!(uneven, Err(Error::UnevenResults { rank: 2, .. })));
    }
}
