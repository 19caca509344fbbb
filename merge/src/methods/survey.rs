//! Operations that look at whole tensors, pass by pass, before they make the result element by element.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::masks::{WORD, expand, keep};
use super::selection::BLOCK;
use super::{Chunk, ElementKernel, Real};
use crate::Result;

/// A chunk in one of the two types that kernels compute in.
pub enum AnyChunk<'a> {
    /// In `f32`.
    Single(Chunk<'a, f32>),
    /// In `f64`.
    Double(Chunk<'a, f64>),
}

/// The data of a group, chunk by chunk.
pub trait Passes: Sync {
    /// Number of chunks.
    fn n_chunks(&self) -> usize;

    /// Elements of a chunk; only the last may have fewer.
    fn chunk_elements(&self) -> usize;

    /// Elements of the tensor.
    fn n_elements(&self) -> usize;

    /// Whether chunks come in `f64`.
    fn is_double(&self) -> bool;

    /// Calls `see` with the first of `parts` equal parts of each chunk of the range and the chunk's
    /// number, on all cores and in any order.
    ///
    /// # Errors
    /// When a checkpoint cannot be read, or the user stops it.
    fn visit(
        &self,
        chunks: Range<usize>,
        parts: usize,
        see: &(dyn Fn(usize, &AnyChunk<'_>) + Sync),
    ) -> Result<()>;
}

/// An operation that looks at its data first.
pub trait Survey: Send + Sync {
    /// Looks at the data; returns the kernel that makes the result.
    ///
    /// # Errors
    /// When the data cannot be read or admit no result.
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>>;

    /// How many elements must be in a chunk together.
    fn unit(&self) -> usize {
        1
    }

    /// Most bytes that it keeps between its passes for a tensor of so many elements.
    fn kept_bytes(&self, n_elements: usize) -> u64 {
        let _ = n_elements;
        0
    }
}

/// What a pass notes of one chunk.
pub(super) trait Look: Sync {
    /// The note.
    type Note: Send;

    /// Looks at a chunk.
    fn look<T: Real>(&self, index: usize, chunk: &Chunk<'_, T>) -> Self::Note;
}

/// Notes that are kept at a time when they are added up.
const WAVE: usize = 512;

/// The note of every chunk, in order.
pub(super) fn notes<L: Look>(data: &dyn Passes, look: &L) -> Result<Vec<L::Note>> {
    let mut all = Vec::with_capacity(data.n_chunks());
    in_order(data, look, |note| all.push(note))?;
    Ok(all)
}

/// Hands the notes over in the order of the chunks, a wave of them in memory at a time.
pub(super) fn in_order<L: Look>(
    data: &dyn Passes,
    look: &L,
    mut take: impl FnMut(L::Note),
) -> Result<()> {
    for first in (0..data.n_chunks()).step_by(WAVE) {
        let wave = first..(first + WAVE).min(data.n_chunks());
        let places: Vec<Mutex<Option<L::Note>>> = wave.clone().map(|_| Mutex::new(None)).collect();
        data.visit(wave, 1, &|index, chunk| {
            let note = match chunk {
                AnyChunk::Single(chunk) => look.look(index, chunk),
                AnyChunk::Double(chunk) => look.look(index, chunk),
            };
            *places[index - first]
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(note);
        })?;
        for place in places {
            if let Some(note) = place.into_inner().unwrap_or_else(PoisonError::into_inner) {
                take(note);
            }
        }
    }
    Ok(())
}

/// Sums of `f64`, chunk after chunk, so that they do not depend on the threads.
pub(super) fn sums<L: Look<Note = Vec<f64>>>(
    data: &dyn Passes,
    n: usize,
    look: &L,
) -> Result<Vec<f64>> {
    let mut total = vec![0.0; n];
    in_order(data, look, |note| {
        for (total, term) in total.iter_mut().zip(note) {
            *total += term;
        }
    })?;
    Ok(total)
}

/// What a pass counts in a chunk.
pub(super) trait Count: Sync {
    /// Adds to the counts.
    fn count<T: Real>(&self, index: usize, chunk: &Chunk<'_, T>, counts: &mut [u64]);
}

/// Counts over the first of `parts` equal parts of all chunks. Integers add up to the same in any
/// order, so that each thread may have counts of its own.
pub(super) fn tally(
    data: &dyn Passes,
    parts: usize,
    n: usize,
    count: &impl Count,
) -> Result<Vec<u64>> {
    let idle: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());
    data.visit(0..data.n_chunks(), parts, &|index, chunk| {
        let own = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut own = own.unwrap_or_else(|| vec![0; n]);
        match chunk {
            AnyChunk::Single(chunk) => count.count(index, chunk, &mut own),
            AnyChunk::Double(chunk) => count.count(index, chunk, &mut own),
        }
        idle.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(own);
    })?;
    let mut total = vec![0; n];
    for counts in idle.into_inner().unwrap_or_else(PoisonError::into_inner) {
        for (total, count) in total.iter_mut().zip(counts) {
            *total += count;
        }
    }
    Ok(total)
}

/// Running sums of a sum, whose order is the same for any width of the processor's vectors.
const LANES: usize = 16;

/// `Σ f(k)` in `f64`.
#[inline(always)]
pub(super) fn lanes(n: usize, f: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let whole = n - n % LANES;
    for first in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += f(first + lane);
        }
    }
    for index in whole..n {
        sums[index - whole] += f(index);
    }
    sums.iter().sum()
}

/// `Σ f(aₖ, bₖ)` likewise, without a look at bounds. One sum at a time: of several at once compilers
/// make steps of single elements.
#[inline(always)]
fn lanes_of<T: Copy>(a: &[T], b: &[T], f: impl Fn(T, T) -> f64) -> f64 {
    let mut sums = [0.0; LANES];
    let (a_whole, a_rest) = a.as_chunks::<LANES>();
    let (b_whole, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_whole.iter().zip(b_whole) {
        for (sum, (&a, &b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f(a, b);
        }
    }
    for (sum, (&a, &b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += f(a, b);
    }
    sums.iter().sum()
}

/// The product `a · b` in `f64`.
pub(super) fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    crate::vectorized(
        #[inline(always)]
        || lanes_of(a, b, |a, b| a.to_f64() * b.to_f64()),
    )
}

/// Sums of the magnitudes of `a − b` in `f64`: of all, and of those whose bit in `words` is set.
pub(super) fn masked_magnitudes<T: Real>(a: &[T], b: &[T], words: &[u32]) -> [f64; 2] {
    let mut sums = [[0.0; LANES]; 2];
    let mut flags = [0; BLOCK];
    crate::vectorized(
        #[inline(always)]
        || {
            let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
            for ((a, b), words) in blocks.zip(words.chunks(BLOCK / WORD)) {
                let flags = &mut flags[..a.len()];
                expand(words, flags);
                let (whole, rest) = a.as_chunks::<LANES>();
                let n_whole = whole.len() * LANES;
                let others = b.as_chunks::<LANES>().0.iter();
                let places = whole.iter().zip(others).zip(flags.as_chunks::<LANES>().0);
                for ((a, b), flags) in places {
                    add_magnitudes(&mut sums, a, b, flags);
                }
                add_magnitudes(&mut sums, rest, &b[n_whole..], &flags[n_whole..]);
            }
        },
    );
    sums.map(|sums| sums.iter().sum())
}

/// Adds one difference to each running sum.
#[inline(always)]
fn add_magnitudes<T: Real>(sums: &mut [[f64; LANES]; 2], a: &[T], b: &[T], flags: &[u8]) {
    let [before, after] = sums;
    for (lane, (&a, &b)) in a.iter().zip(b).enumerate() {
        let magnitude = (a - b).abs().to_f64();
        before[lane] += magnitude;
        after[lane] += keep(magnitude, flags[lane]);
    }
}

/// The sum of magnitudes in `f64`.
pub(super) fn magnitudes<T: Real>(values: &[T]) -> f64 {
    crate::vectorized(
        #[inline(always)]
        || lanes_of(values, values, |value, _| value.abs().to_f64()),
    )
}
