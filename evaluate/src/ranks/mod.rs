//! Processes that work together: on the passes over a data set, or on one model.

mod expert_share;

use bytemuck::Pod;
use candle_core::{DType, Device, Tensor};

use crate::{Error, RanksFault, Result};

pub use expert_share::ExpertShare;

/// The operations of ranks together. Every rank calls the same operations in the same order; sums are taken in the
/// order of the ranks, so a run gives the same numbers every time.
///
/// Passes over a data set share its batches: rank r of N computes every N-th batch from the r-th on
/// ([`own`]), and then receives what all have computed ([`gathered`]). The batches are those of one
/// process alone, so the numbers are the same.
pub trait Collective {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// Adds up `values` of all ranks, element by element, for all.
    ///
    /// # Errors
    /// [`RanksFault::Collective`] when a rank is gone or does something else.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// The same in f64.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn sum_f64(&self, values: &mut [f64]) -> Result<()>;

    /// The same for a tensor, without a graph: by way of memory, or on the device where ranks meet
    /// there. Numbers of 16 bits are added up in f32 and rounded once.
    ///
    /// # Errors
    /// As [`Collective::sum`], and when the device fails.
    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        sum_through_memory(self, tensor)
    }

    /// The bytes of every rank, in the order of the ranks; they may differ in length.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Gives each rank the bytes of its own, `to` having those of every rank in their order, and returns what each rank
    /// has given to this one. Messages may differ in length.
    ///
    /// # Errors
    /// [`RanksFault::OtherMessages`] when there are not as many as ranks; as [`Collective::sum`].
    fn exchange(&self, to: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        exchange_through_all(self, to)
    }

    /// Gives rank `root`'s `values` to all.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()>;

    /// Waits for all.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn barrier(&self) -> Result<()>;

    /// Whether this process is the one that writes and prints.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for all at the end of their work. A rank that goes without has failed, and takes the
    /// others with it, which would wait for it forever: say what went wrong before dropping it.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn finish(&self) -> Result<()> {
        self.barrier()
    }
}

/// [`Collective::exchange`] of ranks that have no operation for it: everybody receives everything and keeps its own.
///
/// # Errors
/// As [`Collective::exchange`].
pub fn exchange_through_all<C: Collective + ?Sized>(
    ranks: &C,
    to: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>> {
    let (rank, n_ranks) = (ranks.rank(), ranks.size());
    if to.len() != n_ranks {
        let found = to.len();
        return Err(RanksFault::OtherMessages { found, n_ranks }.into());
    }
    // The lengths of all messages, then the messages.
    let mut own = Vec::new();
    for message in to {
        own.extend_from_slice(&(message.len() as u64).to_le_bytes());
    }
    own.extend(to.iter().flatten());
    let all = ranks.gather(&own)?;
    let of_rank = |bytes: &Vec<u8>| {
        let (lengths, messages) = bytes.split_at_checked(8 * n_ranks)?;
        let lengths = lengths.as_chunks::<8>().0.iter();
        let lengths: Vec<usize> = lengths.map(|n| u64::from_le_bytes(*n) as usize).collect();
        let from: usize = lengths.iter().take(rank).sum();
        let message = messages.get(from..)?.get(..*lengths.get(rank)?)?;
        Some(message.to_vec())
    };
    let found: Option<Vec<Vec<u8>>> = all.iter().map(of_rank).collect();
    found.ok_or(Error::from(RanksFault::OtherMessages { found: 0, n_ranks }))
}

/// [`Collective::sum_tensor`] by way of memory: what ranks do that do not meet on a device.
///
/// # Errors
/// As [`Collective::sum_tensor`].
pub fn sum_through_memory<C: Collective + ?Sized>(ranks: &C, tensor: &Tensor) -> Result<Tensor> {
    let (flat, shape) = (tensor.detach().flatten_all()?, tensor.shape());
    let sum = match tensor.dtype() {
        DType::F64 => {
            let mut values: Vec<f64> = flat.to_vec1()?;
            ranks.sum_f64(&mut values)?;
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        _ => {
            let mut values: Vec<f32> = flat.to_dtype(DType::F32)?.to_vec1()?;
            ranks.sum(&mut values)?;
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
    };
    Ok(sum.to_device(tensor.device())?.to_dtype(tensor.dtype())?)
}

/// One process, which waits for no other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn sum(&self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn sum_f64(&self, _: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }
}

/// The items that a rank takes of a list.
#[must_use]
pub fn own<T>(ranks: &dyn Collective, items: Vec<T>) -> Vec<T> {
    let own = items.into_iter().skip(ranks.rank());
    own.step_by(ranks.size().max(1)).collect()
}

/// The first rank's view of finished work, for all ranks. A rank must not judge for itself whether work is done, since
/// all compute together or none does.
///
/// # Errors
/// As [`Collective::gather`].
pub fn seen_by_first(ranks: &dyn Collective, seen: bool) -> Result<bool> {
    let all = ranks.gather(&[u8::from(seen)])?;
    Ok(all.first().map(Vec::as_slice) == Some(&[1]))
}

/// The bytes that every rank gives to the first one, in the order of the ranks; the others receive nothing.
///
/// # Errors
/// As [`Collective::exchange`].
pub fn given_to_first(ranks: &dyn Collective, own: Vec<u8>) -> Result<Vec<Vec<u8>>> {
    let mut to = vec![Vec::new(); ranks.size()];
    if let Some(first) = to.first_mut() {
        *first = own;
    }
    ranks.exchange(&to)
}

/// The results of all batches in their order, from those of this rank's batches: a batch has
/// `n_examples` of them, and each example as many values as any other.
///
/// # Errors
/// [`RanksFault::UnevenResults`] when a rank has computed other batches than it should; as
/// [`Collective::gather`].
pub fn gathered<T: Pod>(
    ranks: &dyn Collective,
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
            return Err(RanksFault::UnevenResults {
                rank,
                n_values: values.len(),
                n_examples: n,
            }
            .into());
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

    impl Collective for Third {
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

        fn sum(&self, _: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn sum_f64(&self, _: &mut [f64]) -> Result<()> {
            Ok(())
        }

        fn broadcast(&self, _: usize, _: &mut [f32]) -> Result<()> {
            Ok(())
        }

        fn barrier(&self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn all_go_by_what_the_first_rank_sees() {
        for (first, own) in [(0, true), (1, false)] {
            let ranks = Third(vec![vec![first], vec![u8::from(own)]]);
            let seen = seen_by_first(&ranks, own).expect("gathered");
            assert_eq!(seen, first == 1);
        }
        assert!(seen_by_first(&Alone, true).expect("alone"));
        assert!(!seen_by_first(&Alone, false).expect("alone"));
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
        assert!(matches!(
            uneven,
            Err(Error::Ranks(RanksFault::UnevenResults { rank: 2, .. }))
        ));
    }
}
