//! Operations that look at whole tensors, pass by pass, before they make the result element by element.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;

use crate::Result;
use crate::methods::{Chunk, ElementKernel, Overview, Real, Value};

/// A chunk in one of the types that kernels read.
pub enum AnyChunk<'a> {
    /// Read as bf16, computed in `f32`.
    Bf16(Chunk<'a, bf16>),
    /// In `f32`.
    F32(Chunk<'a, f32>),
    /// In `f64`.
    F64(Chunk<'a, f64>),
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

    /// The overview over all tensors that comes first, if it needs one.
    fn overview(&self) -> Option<Arc<dyn Overview>> {
        None
    }

    /// Whether it computes in `f64` whatever the inputs' dtype.
    fn is_double(&self) -> bool {
        false
    }

    /// The number of elements that must be in a chunk together.
    fn unit(&self) -> usize {
        1
    }

    /// The most bytes that it keeps between its passes for a tensor of `n_elements` elements.
    fn kept_bytes(&self, n_elements: usize) -> u64 {
        let _ = n_elements;
        0
    }
}

/// The notes of a pass on one chunk.
pub(in crate::methods) trait Look: Sync {
    /// The note.
    type Note: Send;

    /// Looks at a chunk.
    fn look<T: Real, V: Value<Real = T>>(&self, index: usize, chunk: &Chunk<'_, V>) -> Self::Note;
}

/// Notes that are kept at a time when they are added up.
const WAVE: usize = 512;

/// The note of every chunk, in order.
pub(in crate::methods) fn notes<L: Look>(data: &dyn Passes, look: &L) -> Result<Vec<L::Note>> {
    let mut all = Vec::with_capacity(data.n_chunks());
    in_order(data, look, |note| all.push(note))?;
    Ok(all)
}

/// Hands the notes over in the order of the chunks, a wave of them in memory at a time.
pub(in crate::methods) fn in_order<L: Look>(
    data: &dyn Passes,
    look: &L,
    mut take: impl FnMut(L::Note),
) -> Result<()> {
    for first in (0..data.n_chunks()).step_by(WAVE) {
        let wave = first..(first + WAVE).min(data.n_chunks());
        let places: Vec<Mutex<Option<L::Note>>> = wave.clone().map(|_| Mutex::new(None)).collect();
        data.visit(wave, 1, &|index, chunk| {
            let note = match chunk {
                AnyChunk::Bf16(chunk) => look.look(index, chunk),
                AnyChunk::F32(chunk) => look.look(index, chunk),
                AnyChunk::F64(chunk) => look.look(index, chunk),
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
pub(in crate::methods) fn sums<L: Look<Note = Vec<f64>>>(
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

/// The counts of a pass in a chunk.
pub(in crate::methods) trait Count: Sync {
    /// Adds to the counts.
    fn count<T: Real, V: Value<Real = T>>(
        &self,
        index: usize,
        chunk: &Chunk<'_, V>,
        counts: &mut [u64],
    );
}

/// Counts over the first of `parts` equal parts of all chunks. Integers add up to the same in any
/// order, so that each thread may have counts of its own.
pub(in crate::methods) fn tally(
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
            AnyChunk::Bf16(chunk) => count.count(index, chunk, &mut own),
            AnyChunk::F32(chunk) => count.count(index, chunk, &mut own),
            AnyChunk::F64(chunk) => count.count(index, chunk, &mut own),
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
