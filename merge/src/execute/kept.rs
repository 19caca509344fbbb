//! Bytes of a tensor's inputs that stay in memory from the first look to the writing of the result.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::idle::Idle;
use super::inputs::Inputs;
use crate::Result;

/// Memory for kept bytes, used again for one tensor after the other.
pub(super) struct Pool {
    idle: Idle<Vec<u8>>,
    /// Bytes that may still be allocated.
    left: AtomicUsize,
}

impl Pool {
    /// Room for `n_bytes` bytes.
    pub(super) fn new(n_bytes: usize) -> Self {
        Self {
            idle: Idle::default(),
            left: AtomicUsize::new(n_bytes),
        }
    }

    /// A buffer of `n_bytes` bytes, if there is room.
    fn take(&self, n_bytes: usize) -> Option<Vec<u8>> {
        while let Some(mut buffer) = self.idle.take() {
            if buffer.capacity() >= n_bytes {
                buffer.resize(n_bytes, 0);
                return Some(buffer);
            }
            // Too small: its room goes to a larger one.
            self.left.fetch_add(buffer.capacity(), Ordering::Relaxed);
        }
        let with_less = |left: usize| left.checked_sub(n_bytes);
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_less)
            .ok()?;
        Some(vec![0; n_bytes])
    }
}

/// The inputs of one group, of which as many pieces are kept as there is room for.
pub(super) struct Kept<'a> {
    pub(super) inputs: Inputs<'a>,
    n_elements: usize,
    piece_elements: usize,
    pool: &'a Pool,
    /// The bytes of each piece that was read.
    pieces: Vec<OnceLock<Vec<u8>>>,
}

impl<'a> Kept<'a> {
    pub(super) fn new(
        inputs: Inputs<'a>,
        n_elements: usize,
        piece_elements: usize,
        pool: &'a Pool,
    ) -> Self {
        let n_pieces = n_elements.div_ceil(piece_elements.max(1));
        Self {
            inputs,
            n_elements,
            piece_elements,
            pool,
            pieces: (0..n_pieces).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The elements of a piece.
    pub(super) fn elements(&self, index: usize) -> Range<usize> {
        let first = index * self.piece_elements;
        first..(first + self.piece_elements).min(self.n_elements)
    }

    /// The bytes of the piece that begins with element `first`. They are in `scratch` if there is no
    /// room to keep them.
    pub(super) fn piece<'b>(&'b self, first: usize, scratch: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let index = first / self.piece_elements.max(1);
        let piece = &self.pieces[index];
        if let Some(kept) = piece.get() {
            return Ok(kept);
        }
        let elements = self.elements(index);
        let n_bytes = self.inputs.n_bytes(elements.len());
        let Some(mut buffer) = self.pool.take(n_bytes) else {
            scratch.resize(n_bytes, 0);
            self.inputs.read(elements.start, elements.len(), scratch)?;
            return Ok(scratch);
        };
        if let Err(fault) = self
            .inputs
            .read(elements.start, elements.len(), &mut buffer)
        {
            self.pool.idle.give(buffer);
            return Err(fault);
        }
        Ok(piece.get_or_init(|| buffer))
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        for piece in &mut self.pieces {
            if let Some(buffer) = piece.take() {
                self.pool.idle.give(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_lends_no_more_than_it_has_and_gives_up_buffers_that_are_too_small() {
        let pool = Pool::new(100);
        let (first, second) = (pool.take(40).expect("room"), pool.take(40).expect("room"));
        assert!(pool.take(40).is_none());
        pool.idle.give(first);
        assert_eq!(pool.take(30).expect("a used one").len(), 30);
        pool.idle.give(second);
        assert_eq!(pool.take(60).expect("the room of a smaller one").len(), 60);
        assert!(pool.take(1).is_none());
    }
}
