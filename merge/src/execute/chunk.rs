//! One thread's share of a plan: buffers that are used again for every chunk.

use bytemuck::Pod;

use super::finite::is_finite;
use super::inputs::{Decoded, Inputs};
use super::survey::Surveyed;
use super::{Piece, RunOptions, Sink};
use crate::methods::{AnyChunk, ElementKernel, StepRounding};
use crate::plan::{Action, Entry, TensorRef, chunk_elements};
use crate::{DType, Error, MergeFault, MergePlan, Result, decode_f64, encode_f32, encode_f64};

/// Reads, combines and writes chunks of a plan's entries.
pub(super) struct Worker<'a> {
    plan: &'a MergePlan,
    sink: &'a dyn Sink,
    run: &'a RunOptions,
    raw: Vec<u8>,
    /// The bytes to write.
    bytes: Vec<u8>,
    decoded: Decoded,
    /// Results before they are rounded, in one of the two types that kernels compute in.
    single: Vec<f32>,
    double: Vec<f64>,
}

/// The settings that a kernel needs besides data.
pub(super) struct Combination<'a> {
    n_members: usize,
    has_base: bool,
    kernel: &'a dyn ElementKernel,
    step: StepRounding,
    /// Whether it computes in `f64`.
    is_double: bool,
}

/// A piece of an entry's inputs.
struct Raw<'a> {
    inputs: &'a Inputs<'a>,
    bytes: &'a [u8],
}

impl<'a> Worker<'a> {
    pub(super) fn new(plan: &'a MergePlan, sink: &'a dyn Sink, run: &'a RunOptions) -> Self {
        Self {
            plan,
            sink,
            run,
            raw: Vec::new(),
            bytes: Vec::new(),
            decoded: Decoded::default(),
            single: Vec::new(),
            double: Vec::new(),
        }
    }

    /// Makes and writes a piece; returns the bytes written.
    pub(super) fn write(&mut self, piece: Piece) -> Result<u64> {
        let Piece {
            entry,
            first,
            length,
        } = piece;
        match &self.plan.entries()[entry].action {
            Action::Copy(tensor) => self.copy(tensor, piece),
            Action::Elementwise {
                members,
                base,
                paired,
                kernel,
                step,
                is_double,
            } => {
                let tensors = members.iter().chain(base).chain(paired);
                let inputs = Inputs::new(self.plan, tensors, !self.run.allow_non_finite);
                let combination = Combination {
                    n_members: members.len(),
                    has_base: base.is_some(),
                    kernel: kernel.as_ref(),
                    step: *step,
                    is_double: *is_double || inputs.any_is(DType::F64),
                };
                let mut bytes = std::mem::take(&mut self.raw);
                bytes.resize(inputs.n_bytes(length), 0);
                inputs.read(first, length, &mut bytes)?;
                let raw = Raw {
                    inputs: &inputs,
                    bytes: &bytes,
                };
                let written = self.combine(piece, &combination, &raw);
                self.raw = bytes;
                written
            }
            Action::Agree(tensors) => self.agree(entry, tensors, first, length),
            Action::Generate(generator) => {
                let Entry { name, info, .. } = &self.plan.entries()[entry];
                let size = info.dtype.size_bytes();
                generator.fill(first, sized(&mut self.single, length));
                let bytes = sized(&mut self.bytes, length * size);
                encode_f32(name, info.dtype, &self.single, bytes)?;
                self.finish(entry, first)
            }
            Action::Whole { .. } | Action::Survey { .. } => {
                unreachable!("the caller merges whole tensors and surveys")
            }
        }
    }

    /// Likewise for an entry that was looked at in passes.
    pub(super) fn write_surveyed(&mut self, surveyed: &Surveyed<'_>, piece: Piece) -> Result<u64> {
        let combination = Combination {
            n_members: surveyed.n_members,
            has_base: surveyed.has_base,
            kernel: surveyed.kernel.as_ref(),
            step: StepRounding::None,
            is_double: surveyed.is_double,
        };
        let mut scratch = std::mem::take(&mut self.raw);
        let raw = Raw {
            inputs: &surveyed.kept.inputs,
            bytes: surveyed.kept.piece(piece.first, &mut scratch)?,
        };
        let written = self.combine(piece, &combination, &raw);
        self.raw = scratch;
        written
    }

    /// Copies a tensor that must be the same in all members.
    fn agree(
        &mut self,
        entry: usize,
        tensors: &[TensorRef],
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let dtype = self.plan.entries()[entry].info.dtype;
        self.bytes.resize(dtype.bytes_of(length), 0);
        let mut other = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let source = &self.plan.sources()[tensor.source];
            if index == 0 {
                source.read(&tensor.key, first, &mut self.bytes)?;
                continue;
            }
            other.resize(self.bytes.len(), 0);
            source.read(&tensor.key, first, &mut other)?;
            if other != self.bytes {
                return Err(MergeFault::UnequalIntegers {
                    key: self.plan.entries()[entry].name.clone(),
                }
                .into());
            }
        }
        self.put(entry, first, &self.bytes)
    }

    fn copy(&mut self, tensor: &TensorRef, piece: Piece) -> Result<u64> {
        let Piece {
            entry,
            first,
            length,
        } = piece;
        let to = self.plan.entries()[entry].info.dtype;
        let is_cast = (self.plan.sources()[tensor.source].require(&tensor.key)?).dtype != to;
        let is_checked = !self.run.allow_non_finite && (is_cast || self.run.check_copies);
        let inputs = Inputs::new(self.plan, std::iter::once(tensor), is_checked);
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(inputs.n_bytes(length), 0);
        inputs.read(first, length, &mut raw)?;
        let written = if !is_cast {
            self.put(entry, first, &raw)
        } else {
            // f64 holds every value of every dtype that can be cast, so this rounds once.
            let mut decoded = std::mem::take(&mut self.decoded);
            let buffers = &mut decoded.double;
            let values = inputs.decode(&raw, length, 0..length, buffers, decode_f64)?;
            let written = self.write_values(entry, first, values[0]);
            self.decoded = decoded;
            written
        };
        self.raw = raw;
        written
    }

    /// Chunk after chunk, so that values do not leave the core's own cache.
    fn combine(
        &mut self,
        piece: Piece,
        combination: &Combination<'_>,
        raw: &Raw<'_>,
    ) -> Result<u64> {
        let Entry { name, info, .. } = &self.plan.entries()[piece.entry];
        let &Combination {
            n_members,
            has_base,
            kernel,
            step,
            is_double,
        } = combination;
        let size = info.dtype.size_bytes();
        let chunk_elements = chunk_elements(kernel.unit());
        let bytes = sized(&mut self.bytes, piece.length * size);
        for (index, out) in bytes.chunks_mut(chunk_elements * size).enumerate() {
            let (start, n) = (index * chunk_elements, out.len() / size);
            let decoded = &mut self.decoded;
            let range = start..start + n;
            let tensors = raw
                .inputs
                .tensors(raw.bytes, piece.length, range, is_double, decoded)?;
            match tensors.chunk(n_members, has_base, piece.first + start) {
                AnyChunk::Bf16(chunk) => {
                    kernel.combine_bf16(&chunk, step, sized(&mut self.single, n))?;
                }
                AnyChunk::F32(chunk) => {
                    kernel.combine_f32(&chunk, step, sized(&mut self.single, n))?;
                }
                AnyChunk::F64(chunk) => {
                    kernel.combine_f64(&chunk, step, sized(&mut self.double, n))?;
                }
            }
            match is_double {
                true => encode_f64(name, info.dtype, &self.double, out)?,
                false => encode_f32(name, info.dtype, &self.single, out)?,
            }
        }
        self.finish(piece.entry, piece.first)
    }

    /// Rounds and writes results.
    pub(super) fn write_values(
        &mut self,
        entry: usize,
        first: usize,
        values: &[f64],
    ) -> Result<u64> {
        let Entry { name, info, .. } = &self.plan.entries()[entry];
        let bytes = sized(&mut self.bytes, values.len() * info.dtype.size_bytes());
        encode_f64(name, info.dtype, values, bytes)?;
        self.finish(entry, first)
    }

    /// Checks and writes the bytes that were made.
    fn finish(&self, entry: usize, first: usize) -> Result<u64> {
        self.check(entry, self.plan.entries()[entry].info.dtype, &self.bytes)?;
        self.put(entry, first, &self.bytes)
    }

    fn check(&self, entry: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
        if self.run.allow_non_finite || is_finite(dtype, bytes) {
            return Ok(());
        }
        Err(Error::NonFinite {
            key: self.plan.entries()[entry].name.clone(),
        })
    }

    fn put(&self, entry: usize, first: usize, bytes: &[u8]) -> Result<u64> {
        let dtype = self.plan.entries()[entry].info.dtype;
        self.sink
            .write(entry, dtype.bytes_of(first) as u64, bytes)?;
        Ok(bytes.len() as u64)
    }
}

/// The buffer with `n` elements; its first elements stay.
fn sized<T: Pod>(buffer: &mut Vec<T>, n: usize) -> &mut [T] {
    buffer.resize(n, T::zeroed());
    buffer
}
