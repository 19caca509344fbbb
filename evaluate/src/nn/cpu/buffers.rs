//! Memory that is used again.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use super::pages::Numbers;

/// Vectors that are used again by whoever wants one of about their length.
///
/// Blocks of a model want the same few lengths over and over. Fresh memory costs a page fault per
/// 4 KiB and a pass that fills it with zeros; this costs neither. A vector that nobody wants while
/// two dozen others come back is freed: what a forward pass keeps comes back in the backward pass, block by block, and
/// gradients take its place. Unused memory never exceeds the most that was in use at once.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<State>>);

/// Vectors that come back while another one waits to be used again. A block gives back fewer.
const MAX_AGE: u64 = 24;

#[derive(Debug, Default)]
struct State {
    /// Those given back longest ago first, each with how many came back before it.
    unused: Vec<(u64, Numbers)>,
    /// The number of buffers that came back.
    n_given: u64,
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
    numbers: Numbers,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// A vector of `n` numbers, whatever they are.
    pub(crate) fn take(&self, n: usize) -> Buffer {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.n_used += n;
        state.most_used = state.most_used.max(state.n_used);
        let fits = |buffer: &Numbers| (n..=n + n / 4).contains(&buffer.len());
        // Of equals the one that came back last, so that the others grow old.
        let best = (state.unused.iter().enumerate().rev())
            .filter(|(_, (_, buffer))| fits(buffer))
            .min_by_key(|(_, (_, buffer))| buffer.len());
        let numbers = match best.map(|(index, _)| index) {
            Some(index) => {
                let (_, numbers) = state.unused.remove(index);
                state.n_unused -= numbers.len();
                numbers
            }
            None => Numbers::zeros(n),
        };
        drop(state);
        Buffer {
            numbers,
            len: n,
            home: self.clone(),
        }
    }

    fn give(&self, numbers: Numbers, len: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.n_used -= len;
        state.n_unused += numbers.len();
        state.n_given += 1;
        let n_given = state.n_given;
        state.unused.push((n_given, numbers));
        let mut n_freed = 0;
        let oldest = |state: &State, at: usize| {
            let (given, numbers) = state.unused.get(at)?;
            Some((*given, numbers.len()))
        };
        while let Some((given, n)) = oldest(&state, n_freed) {
            let is_old = n_given - given > MAX_AGE;
            if !is_old && state.n_unused <= state.most_used + state.most_used / 4 {
                break;
            }
            state.n_unused -= n;
            n_freed += 1;
        }
        let freed: Vec<_> = state.unused.drain(..n_freed).collect();
        // Returned to the system after the lock.
        drop(state);
        drop(freed);
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.numbers.values()[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.numbers.values_mut()[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.numbers), self.len);
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

    #[test]
    fn what_was_kept_does_not_pile_up_when_it_comes_back() {
        let buffers = Buffers::default();
        let kept: Vec<Buffer> = (0..200).map(|_| buffers.take(100)).collect();
        for kept in kept.into_iter().rev() {
            // A block's own numbers, which it gives back, too.
            let inner = [buffers.take(100), buffers.take(100)];
            drop((kept, inner));
        }
        let state = buffers.0.lock().expect("not poisoned");
        assert_eq!(state.n_used, 0);
        assert!(
            state.n_unused <= 100 * (1 + MAX_AGE as usize),
            "{}",
            state.n_unused
        );
    }
}
