//! The pages that were decoded last.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that are kept, unless a single entry has more.
pub(super) const KEPT_BYTES: usize = 64 << 20;

/// Entries that were used last, with their bytes, the oldest first.
#[derive(Debug)]
pub(super) struct Kept<K, T>(Mutex<VecDeque<(K, usize, Arc<T>)>>);

impl<K, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: PartialEq, T> Kept<K, T> {
    /// An entry that is still kept.
    pub(super) fn get(&self, key: &K) -> Option<Arc<T>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(other, ..)| other == key)?;
        // To the end: the first goes when room is needed.
        let found = kept.remove(place)?;
        let entry = Arc::clone(&found.2);
        kept.push_back(found);
        Some(entry)
    }

    /// Keeps an entry of `n_bytes`; older ones make room.
    pub(super) fn keep(&self, key: K, n_bytes: usize, entry: T) -> Arc<T> {
        let entry = Arc::new(entry);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back((key, n_bytes, Arc::clone(&entry)));
        let mut n_kept: usize = kept.iter().map(|(_, n_bytes, _)| n_bytes).sum();
        while n_kept > KEPT_BYTES && kept.len() > 1 {
            n_kept -= kept.pop_front().map_or(0, |(_, n_bytes, _)| n_bytes);
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_stays() {
        let kept = Kept::default();
        let half = KEPT_BYTES / 2;
        kept.keep(1, half, "one");
        kept.keep(2, half, "two");
        assert_eq!(kept.get(&1).as_deref(), Some(&"one"));
        kept.keep(3, 1, "three");
        assert_eq!(kept.get(&2), None);
        assert_eq!(kept.get(&1).as_deref(), Some(&"one"));
        // One that is larger than all room stays alone.
        kept.keep(4, 2 * KEPT_BYTES, "four");
        assert_eq!(kept.get(&3), None);
        assert_eq!(kept.get(&4).as_deref(), Some(&"four"));
    }
}
