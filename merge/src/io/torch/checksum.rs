//! The CRC-32 of a storage, put together from the pieces in which it is read.

use std::collections::BTreeMap;

use crc32fast::Hasher;

/// The part of a storage that has been read so far.
#[derive(Default)]
pub(crate) struct Checksum {
    /// Runs of bytes that have been read, by their start; none of them touch.
    runs: BTreeMap<u64, Run>,
    /// The checksum of the whole, once all of it has been read.
    computed: Option<u32>,
}

struct Run {
    end: u64,
    hasher: Hasher,
}

impl Checksum {
    /// The checksum of the whole, if it is known.
    pub(super) fn computed(&self) -> Option<u32> {
        self.computed
    }

    /// Notes the checksum of the whole.
    pub(super) fn set(&mut self, computed: u32) {
        self.computed = Some(computed);
        self.runs.clear();
    }

    /// Adds the bytes `start..end` of a storage of `n_bytes`, hashed by `hasher`. Bytes that were
    /// read before are passed over.
    pub(super) fn add(&mut self, start: u64, end: u64, hasher: Hasher, n_bytes: u64) {
        let before = (self.runs.range(..=start).next_back()).map(|(&at, run)| (at, run.end));
        let after = self.runs.range(start..).next().map(|(&at, _)| at);
        let is_known = before.is_some_and(|(_, to)| to > start) || after.is_some_and(|at| at < end);
        if self.computed.is_some() || is_known {
            return;
        }
        let mut joined = (start, Run { end, hasher });
        if let Some((at, to)) = before
            && to == start
            && let Some(mut run) = self.runs.remove(&at)
        {
            run.hasher.combine(&joined.1.hasher);
            run.end = end;
            joined = (at, run);
        }
        if after == Some(end)
            && let Some(next) = self.runs.remove(&end)
        {
            joined.1.hasher.combine(&next.hasher);
            joined.1.end = next.end;
        }
        if joined.0 == 0 && joined.1.end == n_bytes {
            self.set(joined.1.hasher.finalize());
        } else {
            self.runs.insert(joined.0, joined.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(bytes: &[u8]) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        hasher
    }

    #[test]
    fn pieces_in_any_order_give_the_checksum_of_the_whole() {
        let data: Vec<u8> = (0..100).collect();
        let whole = crc32fast::hash(&data);
        let cuts = [0, 7, 8, 40, 41, 90, 100];
        for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]] {
            let mut checksum = Checksum::default();
            for (step, piece) in order.into_iter().enumerate() {
                assert_eq!(
                    checksum.computed(),
                    None,
                    "after {step} pieces of {order:?}"
                );
                let (start, end) = (cuts[piece], cuts[piece + 1]);
                let hasher = hashed(&data[start..end]);
                checksum.add(start as u64, end as u64, hasher, 100);
            }
            assert_eq!(checksum.computed(), Some(whole), "{order:?}");
        }
    }

    #[test]
    fn bytes_that_are_read_twice_count_once() {
        let data: Vec<u8> = (0..30).collect();
        let mut checksum = Checksum::default();
        for (start, end) in [
            (10, 20),
            (10, 20),
            (5, 15),
            (15, 25),
            (0, 30),
            (0, 10),
            (20, 30),
        ] {
            let hasher = hashed(&data[start..end]);
            checksum.add(start as u64, end as u64, hasher, 30);
        }
        assert_eq!(checksum.computed(), Some(crc32fast::hash(&data)));
    }
}
