//! One thread's share of a plan: buffers that are used again for every chunk.

use bytemuck::Pod;

use super::{RunOptions, Sink};
use crate::methods::{Chunk, ElementKernel, StepRounding};
use crate::plan::{Action, TensorRef};
use crate::{
    DType, Error, MergeFault, MergePlan, Result, decode_f32, decode_f64, encode_f32, encode_f64,
};

/// Reads, combines and writes chunks of a plan's entries.
pub(super) struct Worker<'a> {
    plan: &'a MergePlan,
    sink: &'a dyn Sink,
    run: &'a RunOptions,
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
    members: &'a [TensorRef],
    base: Option<&'a TensorRef>,
    aside: &'a [TensorRef],
    kernel: &'a dyn ElementKernel,
    step: StepRounding,
}

impl<'a> Worker<'a> {
    pub(super) fn new(plan: &'a MergePlan, sink: &'a dyn Sink, run: &'a RunOptions) -> Self {
        Self {
            plan,
            sink,
            run,
            bytes: Vec::new(),
            single: Buffers::default(),
            double: Buffers::default(),
        }
    }

    /// Makes and writes elements `first..first + length` of an entry; returns the bytes written.
    pub(super) fn write(&mut self, entry: usize, first: usize, length: usize) -> Result<u64> {
        match &self.plan.entries[entry].action {
            Action::Copy(tensor) => self.copy(entry, tensor, first, length),
            Action::Elementwise {
                members,
                base,
                aside,
                kernel,
                step,
                is_double,
            } => {
                let combination = Combination {
                    members,
                    base: base.as_ref(),
                    aside,
                    kernel: kernel.as_ref(),
                    step: *step,
                };
                self.combine_either(entry, &combination, *is_double, first, length)
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

    /// Likewise for an entry that was looked at in passes, with the kernel that these gave.
    pub(super) fn write_surveyed(
        &mut self,
        entry: usize,
        kernel: &dyn ElementKernel,
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let Action::Survey {
            members,
            base,
            is_double,
            ..
        } = &self.plan.entries[entry].action
        else {
            unreachable!("only surveys have such a kernel");
        };
        let combination = Combination {
            members,
            base: base.as_ref(),
            aside: &[],
            kernel,
            step: StepRounding::None,
        };
        self.combine_either(entry, &combination, *is_double, first, length)
    }

    fn combine_either(
        &mut self,
        entry: usize,
        combination: &Combination<'_>,
        is_double: bool,
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let is_f64 = |tensor| self.dtype(tensor) == DType::F64;
        let mut inputs = combination.members.iter().chain(combination.base);
        match is_double || inputs.any(is_f64) {
            true => self.combine::<f64>(entry, combination, first, length),
            false => self.combine::<f32>(entry, combination, first, length),
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

    fn dtype(&self, tensor: &TensorRef) -> DType {
        // The plan refers to tensors that are there.
        let info = self.plan.sources[tensor.source].get(&tensor.key);
        info.map_or(DType::F32, |info| info.dtype)
    }

    fn copy(
        &mut self,
        entry: usize,
        tensor: &TensorRef,
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let (from, to) = (self.dtype(tensor), self.plan.entries[entry].info.dtype);
        if from == to {
            self.bytes.resize(length * from.size_bytes(), 0);
            let source = &self.plan.sources[tensor.source];
            source.read(&tensor.key, first, &mut self.bytes)?;
            if self.run.check_copies {
                self.check(entry, to, &self.bytes)?;
            }
            return self.put(entry, first, &self.bytes);
        }
        // f64 holds every value of every dtype that can be cast, so this rounds once.
        let mut out = std::mem::take(&mut self.double.out);
        out.resize(length, 0.0);
        let written = read(self.plan, tensor, first, &mut self.bytes, &mut out)
            .and_then(|()| self.write_values(entry, first, &out));
        self.double.out = out;
        written
    }

    fn combine<T: Computed>(
        &mut self,
        entry: usize,
        combination: &Combination<'_>,
        first: usize,
        length: usize,
    ) -> Result<u64> {
        let mut buffers = std::mem::take(T::buffers(self));
        let written = (|| {
            buffers.fill(combination, length, |tensor, out| {
                read(self.plan, tensor, first, &mut self.bytes, out)
            })?;
            buffers.combine(combination, first);
            self.write_values(entry, first, &buffers.out)
        })();
        *T::buffers(self) = buffers;
        written
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
    /// Reads the members, then the base, with `read`.
    fn fill(
        &mut self,
        combination: &Combination<'_>,
        length: usize,
        mut read: impl FnMut(&TensorRef, &mut [T]) -> Result<()>,
    ) -> Result<()> {
        let tensors = (combination.members.iter())
            .chain(combination.base)
            .chain(combination.aside);
        let n_tensors = tensors.clone().count();
        if self.members.len() < n_tensors {
            self.members.resize_with(n_tensors, Vec::new);
        }
        self.out.resize(length, T::zeroed());
        for (tensor, buffer) in tensors.zip(&mut self.members) {
            buffer.resize(length, T::zeroed());
            read(tensor, buffer)?;
        }
        Ok(())
    }

    fn combine(&mut self, combination: &Combination<'_>, first: usize) {
        let n_members = combination.members.len();
        let members: Vec<&[T]> = self.members[..n_members]
            .iter()
            .map(Vec::as_slice)
            .collect();
        let base = combination.base.map(|_| self.members[n_members].as_slice());
        let n_before = n_members + usize::from(base.is_some());
        let aside: Vec<&[T]> = self.members[n_before..n_before + combination.aside.len()]
            .iter()
            .map(Vec::as_slice)
            .collect();
        let chunk = Chunk {
            members: &members,
            base,
            aside: &aside,
            first,
        };
        T::run(combination, &chunk, &mut self.out);
    }
}

/// Reads and decodes elements `first..` of a tensor until `out` is full.
pub(super) fn read<T: Computed>(
    plan: &MergePlan,
    tensor: &TensorRef,
    first: usize,
    bytes: &mut Vec<u8>,
    out: &mut [T],
) -> Result<()> {
    let source = &plan.sources[tensor.source];
    let dtype = source.require(&tensor.key)?.dtype;
    if dtype == T::DTYPE {
        // Straight into place, without a second buffer.
        return source.read(&tensor.key, first, bytemuck::cast_slice_mut(out));
    }
    bytes.resize(out.len() * dtype.size_bytes(), 0);
    source.read(&tensor.key, first, bytes)?;
    T::decode(&tensor.key, dtype, bytes, out)
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
