//! Buffers that are lent to whichever thread works next.

use std::sync::{Mutex, PoisonError};

/// Things of which a thread takes one that no other uses, so that there are no more than threads.
pub(super) struct Idle<T>(Mutex<Vec<T>>);

impl<T> Default for Idle<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T> Idle<T> {
    /// Calls `work` with one of them, or with a new one where all are in use.
    pub(super) fn with<R>(&self, new: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let mut taken = self.take().unwrap_or_else(new);
        let done = work(&mut taken);
        self.give(taken);
        done
    }

    /// One that no thread uses.
    pub(super) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Puts one back.
    pub(super) fn give(&self, thing: T) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thing);
    }
}
