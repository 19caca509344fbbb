//! One thread's share of a plan: buffers that are used again for every chunk.

use bytemuck::Pod;

use super::inputs::Inputs;
use super::survey::Surveyed;
use super::{Piece, RunOptions, Sink};
use crate::methods::{Chunk, ElementKernel, StepRounding};
use crate::plan::{Action, Entry, TensorRef, chunk_elements};
use crate::{
    DType, Error, MergeFault, MergePlan, Result, decode_f32, decode_f64, encode_f32, encode_f64,
};

/// Reads, combines and writes chunks of a plan's entries.
pub(super) struct Worker<'a> {
    plan: &'a MergePlan,
    sink: &'a dyn Sink,
    run: &'a RunOptions,
    raw: Vec<u8>,
    bytes: Vec<u8>,
    single: Buffers<f32>,
    double: Buffers<f64>,
}

/// Decoded members (the base last) and the result, in one of the two types that kernels know.
pub(super) struct Buffers<T> {
    members: Vec<Vec<T>>,
    out: Vec<T>,
}

impl<T> Default for Buffers<T> {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            out: Vec::new(),
        }
    }
}

/// The two types that chunks are computed in, each with its own buffers.
pub(super) trait Computed: Pod {
    /// The dtype whose bytes these are.
    const DTYPE: DType;

    fn buffers<'w>(worker: &'w mut Worker<'_>) -> &'w mut Buffers<Self>;
    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()>;
    fn encode(key: &str, dtype: DType, values: &[Self], out: &mut [u8]) -> Result<()>;
    fn run(combination: &Combination<'_>, chunk: &Chunk<'_, Self>, out: &mut [Self]);
}

impl Computed for f32 {
    const DTYPE: DType = DType::F32;

    fn buffers<'w>(worker: &'w mut Worker<'_>) -> &'w mut Buffers<Self> {
        &mut worker.single
    }

    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()> {
        decode_f32(key, dtype, bytes, out)
    }

    fn encode(key: &str, dtype: DType, values: &[Self], out: &mut [u8]) -> Result<()> {
        encode_f32(key, dtype, values, out)
    }

    fn run(combination: &Combination<'_>, chunk: &Chunk<'_, Self>, out: &mut [Self]) {
        combination.kernel.combine_f32(chunk, combination.step, out);
    }
}

impl Computed for f64 {
    const DTYPE: DType = DType::F64;

    fn buffers<'w>(worker: &'w mut Worker<'_>) -> &'w mut Buffers<Self> {
        &mut worker.double
    }

    fn decode(key: &str, dtype: DType, bytes: &[u8], out: &mut [Self]) -> Result<()> {
        decode_f64(key, dtype, bytes, out)
    }

    fn encode(key: &str, dtype: DType, values: &[Self], out: &mut [u8]) -> Result<()> {
        encode_f64(key, dtype, values, out)
    }

    fn run(combination: &Combination<'_>, chunk: &Chunk<'_, Self>, out: &mut [Self]) {
        combination.kernel.combine_f64(chunk, combination.step, out);
    }
}

/// What a kernel needs besides data.
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
            single: Buffers::default(),
            double: Buffers::default(),
        }
    }

    /// Makes and writes a piece; returns the bytes written.
    pub(super) fn write(&mut self, piece: Piece) -> Result<u64> {
        let Piece {
            entry,
            first,
            length,
        } = piece;
        match &self.plan.entries[entry].action {
            Action::Copy(tensor) => self.copy(tensor, piece),
            Action::Elementwise {
                members,
                base,
                aside,
                kernel,
                step,
                is_double,
            } => {
                let tensors = members.iter().chain(base).chain(aside);
                let inputs = Inputs::new(self.plan, tensors);
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
                let written = self.combine_either(piece, &combination, &raw);
                self.raw = bytes;
                written
            }
            Action::Agree(tensors) => self.agree(entry, tensors, first, length),
            Action::Generate(generator) => {
                let mut out = std::mem::take(&mut self.single.out);
                out.resize(length, 0.0);
                generator.fill(first, &mut out);
                let written = self.write_values(entry, first, &out);
                self.single.out = out;
                written
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
        let written = self.combine_either(piece, &combination, &raw);
        self.raw = scratch;
        written
    }

    fn combine_either(
        &mut self,
        piece: Piece,
        combination: &Combination<'_>,
        raw: &Raw<'_>,
    ) -> Result<u64> {
        match combination.is_double {
            true => self.combine::<f64>(piece, combination, raw),
            false => self.combine::<f32>(piece, combination, raw),
        }
    }

    /// Copies a tensor that must be the same in all members.
    fn agree(
        &mut self,
        entry: usize,
        tensors: &[TensorRef],
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let size = self.plan.entries[entry].info.dtype.size_bytes();
        self.bytes.resize(length * size, 0);
        let mut other = Vec::new();
        for (index, tensor) in tensors.iter().enumerate() {
            let source = &self.plan.sources[tensor.source];
            if index == 0 {
                source.read(&tensor.key, first, &mut self.bytes)?;
                continue;
            }
            other.resize(self.bytes.len(), 0);
            source.read(&tensor.key, first, &mut other)?;
            if other != self.bytes {
                return Err(MergeFault::UnequalIntegers {
                    key: self.plan.entries[entry].name.clone(),
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
        let inputs = Inputs::new(self.plan, std::iter::once(tensor));
        let to = self.plan.entries[entry].info.dtype;
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(inputs.n_bytes(length), 0);
        inputs.read(first, length, &mut raw)?;
        let written = if inputs.any_is(to) {
            if self.run.check_copies {
                self.check(entry, to, &raw)?;
            }
            self.put(entry, first, &raw)
        } else {
            // f64 holds every value of every dtype that can be cast, so this rounds once.
            let mut values = std::mem::take(&mut self.double.members);
            inputs.decode(&raw, length, 0..length, &mut values)?;
            let written = self.write_values::<f64>(entry, first, &values[0]);
            self.double.members = values;
            written
        };
        self.raw = raw;
        written
    }

    /// Chunk after chunk, so that decoded values do not leave the core's own cache.
    fn combine<T: Computed>(
        &mut self,
        piece: Piece,
        combination: &Combination<'_>,
        raw: &Raw<'_>,
    ) -> Result<u64> {
        let Entry { name, info, .. } = &self.plan.entries[piece.entry];
        let size = info.dtype.size_bytes();
        let mut buffers = std::mem::take(T::buffers(self));
        self.bytes.resize(piece.length * size, 0);
        let chunk_elements = chunk_elements(combination.kernel.unit());
        for start in (0..piece.length).step_by(chunk_elements) {
            let range = start..(start + chunk_elements).min(piece.length);
            let out = &mut self.bytes[range.start * size..range.end * size];
            let n = range.len();
            raw.inputs
                .decode(raw.bytes, piece.length, range, &mut buffers.members)?;
            buffers.out.resize(n, T::zeroed());
            buffers.combine(combination, raw.inputs.len(), piece.first + start);
            T::encode(name, info.dtype, &buffers.out, out)?;
        }
        *T::buffers(self) = buffers;
        self.check(piece.entry, info.dtype, &self.bytes)?;
        self.put(piece.entry, piece.first, &self.bytes)
    }

    /// Rounds and writes results.
    pub(super) fn write_values<T: Computed>(
        &mut self,
        entry: usize,
        first: usize,
        values: &[T],
    ) -> Result<u64> {
        let to = self.plan.entries[entry].info.dtype;
        if to == T::DTYPE {
            let bytes = bytemuck::cast_slice(values);
            self.check(entry, to, bytes)?;
            return self.put(entry, first, bytes);
        }
        self.bytes.resize(values.len() * to.size_bytes(), 0);
        T::encode(&self.plan.entries[entry].name, to, values, &mut self.bytes)?;
        self.check(entry, to, &self.bytes)?;
        self.put(entry, first, &self.bytes)
    }

    fn check(&self, entry: usize, dtype: DType, bytes: &[u8]) -> Result<()> {
        if self.run.allow_non_finite || is_finite(dtype, bytes) {
            return Ok(());
        }
        Err(Error::NonFinite {
            key: self.plan.entries[entry].name.clone(),
        })
    }

    fn put(&self, entry: usize, first: usize, bytes: &[u8]) -> Result<u64> {
        let size = self.plan.entries[entry].info.dtype.size_bytes();
        self.sink.write(entry, (first * size) as u64, bytes)?;
        Ok(bytes.len() as u64)
    }
}

impl<T: Computed> Buffers<T> {
    /// Combines a chunk of so many tensors: members, base, and what stands aside.
    fn combine(&mut self, combination: &Combination<'_>, n_tensors: usize, first: usize) {
        let tensors = self.members[..n_tensors].iter().map(Vec::as_slice);
        let tensors: Vec<&[T]> = tensors.collect();
        let (members, others) = tensors.split_at(combination.n_members);
        let (base, aside) = others.split_at(usize::from(combination.has_base));
        let chunk = Chunk {
            members,
            base: base.first().copied(),
            aside,
            first,
        };
        T::run(combination, &chunk, &mut self.out);
    }
}

/// Whether no element is infinite or NaN; other dtypes than floats always are finite.
fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
    match dtype {
        DType::F64 => exponents_below(bytes, 0x7ff0_0000_0000_0000u64),
        DType::F32 => exponents_below(bytes, 0x7f80_0000u32),
        DType::F16 => exponents_below(bytes, 0x7c00u16),
        DType::BF16 => exponents_below(bytes, 0x7f80u16),
        DType::F8E5M2 => exponents_below(bytes, 0x7cu8),
        // This form has no infinities, and NaN is the one pattern with all bits set.
        DType::F8E4M3 => bytes.iter().all(|byte| byte & 0x7f != 0x7f),
        _ => true,
    }
}

/// Whether in no word all bits of `mask`, a format's exponent, are set. Looks at whole blocks
/// without branching, which compilers turn into vector instructions.
fn exponents_below<W>(bytes: &[u8], mask: W) -> bool
where
    W: Pod + std::ops::BitAnd<Output = W> + PartialEq,
{
    const BLOCK: usize = 1024;
    crate::vectorized(
        #[inline(always)]
        || {
            let any_hit = |words: &[W]| {
                let hits = words.iter().map(|&word| word & mask == mask);
                hits.fold(false, |any, hit| any | hit)
            };
            let any_hit = |block: &[u8]| match bytemuck::try_cast_slice(block) {
                Ok(words) => any_hit(words),
                Err(_) => any_hit(&bytemuck::allocation::pod_collect_to_vec::<u8, W>(block)),
            };
            !bytes.chunks(BLOCK).any(any_hit)
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn infinities_and_nans_are_found_in_every_float_dtype() {
        let cases: [(DType, &[u8], &[u8]); 6] = [
            (DType::F64, &1.0f64.to_le_bytes(), &f64::NAN.to_le_bytes()),
            (
                DType::F32,
                &f32::MAX.to_le_bytes(),
                &f32::INFINITY.to_le_bytes(),
            ),
            (DType::F16, &[0xff, 0x7b], &[0x00, 0x7c]),
            (DType::BF16, &[0x7f, 0x7f], &[0x80, 0xff]),
            (DType::F8E5M2, &[0x7b], &[0xfc]),
            (DType::F8E4M3, &[0x7e], &[0xff]),
        ];
        for (dtype, fine, bad) in cases {
            assert!(is_finite(dtype, fine), "{dtype}");
            let mut long = fine.repeat(700);
            long.extend_from_slice(bad);
            assert!(!is_finite(dtype, &long), "{dtype}");
        }
        assert!(is_finite(DType::I64, &[0xff; 16]));
    }
}
