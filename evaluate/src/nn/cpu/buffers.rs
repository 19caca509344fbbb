//! Memory that is used again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

/// Vectors that are used again by whoever wants one of about their length.
///
/// Blocks of a model want the same few lengths over and over. Fresh memory costs a page fault per
/// 4 KiB and a pass that fills it with zeros; this costs neither. What lies unused never exceeds
/// what was in use at once, so lengths that do not come again are freed in time.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Those given back longest ago first.
    unused: Vec<Vec<f32>>,
    /// Elements of `unused`.
    n_unused: usize,
    /// Elements in use.
    n_used: usize,
    /// The most that was in use at once.
    most_used: usize,
}

/// A vector that goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    values: Vec<f32>,
    home: Buffers,
}

impl Buffers {
    /// A vector of `n` numbers, whatever they are.
    pub(crate) fn take(&self, n: usize) -> Buffer {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.n_used += n;
        state.most_used = state.most_used.max(state.n_used);
        let fits = |buffer: &Vec<f32>| (n..=n + n / 4).contains(&buffer.capacity());
        let best = (state.unused.iter().enumerate())
            .filter(|(_, buffer)| fits(buffer))
            .min_by_key(|(_, buffer)| buffer.capacity());
        let values = match best.map(|(index, _)| index) {
            Some(index) => {
                let mut values = state.unused.remove(index);
                state.n_unused -= values.capacity();
                drop(state);
                values.resize(n, 0.0);
                values
            }
            None => vec![0.0; n],
        };
        let home = self.clone();
        Buffer { values, home }
    }

    fn give(&self, values: Vec<f32>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.n_used -= values.len();
        state.n_unused += values.capacity();
        state.unused.push(values);
        let mut n_freed = 0;
        while state.n_unused > state.most_used + state.most_used / 4 {
            let Some(oldest) = state.unused.get(n_freed) else {
                break;
            };
            state.n_unused -= oldest.capacity();
            n_freed += 1;
        }
        state.unused.drain(..n_freed);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_used_again_and_what_no_longer_fits_is_freed() {
        let buffers = Buffers::default();
        let first = buffers.take(1000);
        let place = first.as_ptr();
        drop(first);
        let second = buffers.take(900);
        assert_eq!((second.len(), second.as_ptr()), (900, place));
        drop(second);
        for n in 1..100 {
            assert_eq!(buffers.take(10 * n).len(), 10 * n);
        }
        let state = buffers.0.lock().expect("not poisoned");
        assert_eq!(state.n_used, 0);
        assert!(state.n_unused <= 1250, "{}", state.n_unused);
    }
}
