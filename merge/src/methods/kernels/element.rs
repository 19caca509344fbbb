//! Element-wise kernels: the arithmetic of a chunk, written once for `f32` and `f64`.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

use half::{bf16, f16};

use crate::Result;
use crate::dtype::bf16_to_f32;
use crate::methods::Masks;

/// A number as it is stored. Kernels widen it where they read it, so that bf16 tensors need no decoded
/// copies.
pub trait Value: Copy + Send + Sync + 'static {
    /// The type it is computed in.
    type Real: Real;

    /// Widens, which is exact.
    fn real(self) -> Self::Real;
}

impl Value for bf16 {
    type Real = f32;
    // `to_f32` would look for NaNs, too, which those who check results find.
    #[inline(always)]
    fn real(self) -> f32 {
        bf16_to_f32(self.to_bits())
    }
}

impl Value for f32 {
    type Real = Self;
    #[inline(always)]
    fn real(self) -> Self {
        self
    }
}

impl Value for f64 {
    type Real = Self;
    #[inline(always)]
    fn real(self) -> Self {
        self
    }
}

/// Stored numbers, widened one after the other.
#[inline(always)]
pub(in crate::methods) fn reals<V: Value>(values: &[V]) -> impl Iterator<Item = V::Real> + Clone {
    values.iter().map(|&value| value.real())
}

/// Writes stored numbers to `out`, widened.
#[inline(always)]
pub(in crate::methods) fn widen<V: Value>(values: &[V], out: &mut [V::Real]) {
    for (out, value) in out.iter_mut().zip(reals(values)) {
        *out = value;
    }
}

/// The two types that kernels compute in.
pub trait Real:
    Value<Real = Self>
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + Default
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Bits of a value without its sign: exponent and mantissa.
    const MAGNITUDE_BITS: u32;
    /// Those of the mantissa.
    const MANTISSA_BITS: u32;
    /// The value as `f64`.
    fn to_f64(self) -> f64;
    /// The value without its sign.
    #[must_use]
    fn abs(self) -> Self;
    /// The bits of the value without its sign, which are ordered like the values themselves.
    fn magnitude(self) -> u64;
    /// The magnitude's bits except for the lowest `shift`, of which no more than 32 may be left.
    fn upper_bits(self, shift: u32) -> u32;
    /// Whether the magnitude's bits lie between two numbers, both included.
    fn is_within(self, low: u64, high: u64) -> bool;
    /// The value where all bits of `mask` are set, zero where none is. A choice between the two would
    /// become a write that skips elements, which whoever reads them next must wait for.
    #[must_use]
    fn and(self, mask: u32) -> Self;
    /// Rounds a coefficient of a recipe to this type.
    fn from_f64(value: f64) -> Self;
    /// Rounds to bf16 and back.
    #[must_use]
    fn through_bf16(self) -> Self;
    /// Rounds to f16 and back.
    #[must_use]
    fn through_f16(self) -> Self;
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MAGNITUDE_BITS: u32 = 31;
    const MANTISSA_BITS: u32 = 23;
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn magnitude(self) -> u64 {
        u64::from(self.to_bits() & 0x7fff_ffff)
    }
    #[inline(always)]
    fn upper_bits(self, shift: u32) -> u32 {
        (self.to_bits() & 0x7fff_ffff) >> shift
    }
    // In 32 bits, so that twice as many elements fit into a vector.
    #[inline(always)]
    fn is_within(self, low: u64, high: u64) -> bool {
        let key = self.to_bits() & 0x7fff_ffff;
        let cut = |bits: u64| bits.min(u64::from(u32::MAX)) as u32;
        key >= cut(low) && key <= cut(high)
    }
    #[inline(always)]
    fn and(self, mask: u32) -> Self {
        Self::from_bits(self.to_bits() & mask)
    }
    #[inline]
    fn from_f64(value: f64) -> Self {
        value as Self
    }
    #[inline]
    fn through_bf16(self) -> Self {
        bf16::from_f32(self).to_f32()
    }
    #[inline]
    fn through_f16(self) -> Self {
        f16::from_f32(self).to_f32()
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const MAGNITUDE_BITS: u32 = 63;
    const MANTISSA_BITS: u32 = 52;
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn magnitude(self) -> u64 {
        self.to_bits() & !(1 << 63)
    }
    #[inline(always)]
    fn upper_bits(self, shift: u32) -> u32 {
        (self.magnitude() >> shift) as u32
    }
    #[inline(always)]
    fn is_within(self, low: u64, high: u64) -> bool {
        (low..=high).contains(&self.magnitude())
    }
    #[inline(always)]
    fn and(self, mask: u32) -> Self {
        Self::from_bits(self.to_bits() & (u64::from(mask) << 32 | u64::from(mask)))
    }
    #[inline]
    fn from_f64(value: f64) -> Self {
        value
    }
    #[inline]
    fn through_bf16(self) -> Self {
        bf16::from_f64(self).to_f64()
    }
    #[inline]
    fn through_f16(self) -> Self {
        f16::from_f64(self).to_f64()
    }
}

/// The rounding of each single product and sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StepRounding {
    /// Nothing: only the final result is rounded, once.
    #[default]
    None,
    /// It is rounded to bf16, as published code does that merges bf16 tensors.
    Bf16,
    /// It is rounded to f16, likewise.
    F16,
}

/// The same elements of every member of a group.
pub struct Chunk<'a, V> {
    /// One slice per member, all of the same length.
    pub members: &'a [&'a [V]],
    /// The base's elements, where the method needs a base.
    pub base: Option<&'a [V]>,
    /// For each member the elements of its side tensor, e.g. of its Fisher information; empty where
    /// the method needs none.
    pub paired: &'a [&'a [V]],
    /// Position of the first element in the tensor, row-major.
    pub first: usize,
}

/// An element-wise method, generic over the type it reads and the one it computes in.
pub trait Elementwise: Send + Sync {
    /// The number of elements that must be in a chunk together, e.g. those of a row: chunks begin at multiples of it.
    fn unit(&self) -> usize {
        1
    }

    /// The elements of each task, for methods that keep them.
    fn masks(&self) -> Option<&dyn Masks> {
        None
    }

    /// Refuses numbers of a chunk that the method has no meaning for, before they are combined.
    ///
    /// # Errors
    /// Names the first such number.
    fn check<T: Real, V: Value<Real = T>>(&self, chunk: &Chunk<'_, V>) -> Result<()> {
        let _ = chunk;
        Ok(())
    }

    /// Writes the merged elements to `out`; `step` rounds the result of each product and sum.
    fn combine<T: Real, V: Value<Real = T>>(
        &self,
        chunk: &Chunk<'_, V>,
        step: impl Fn(T) -> T,
        out: &mut [T],
    );
}

/// An element-wise method behind a pointer: an [`Elementwise`] one, which fails in its check only, or one that may fail
/// otherwise.
pub trait ElementKernel: Send + Sync {
    /// As [`Elementwise::unit`].
    fn unit(&self) -> usize;

    /// As [`Elementwise::masks`].
    fn masks(&self) -> Option<&dyn Masks>;

    /// Combines in `f32`.
    ///
    /// # Errors
    /// When a method refuses a number of the chunk, or one that was added at run time fails.
    fn combine_f32(
        &self,
        chunk: &Chunk<'_, f32>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()>;

    /// Combines bf16 tensors, in `f32`.
    ///
    /// # Errors
    /// As [`ElementKernel::combine_f32`].
    fn combine_bf16(
        &self,
        chunk: &Chunk<'_, bf16>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()>;

    /// Combines in `f64`.
    ///
    /// # Errors
    /// As [`ElementKernel::combine_f32`].
    fn combine_f64(
        &self,
        chunk: &Chunk<'_, f64>,
        step: StepRounding,
        out: &mut [f64],
    ) -> Result<()>;
}

impl<K: Elementwise> ElementKernel for K {
    fn unit(&self) -> usize {
        Elementwise::unit(self)
    }

    fn masks(&self) -> Option<&dyn Masks> {
        Elementwise::masks(self)
    }

    fn combine_f32(
        &self,
        chunk: &Chunk<'_, f32>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.check(chunk)?;
        dispatch(self, chunk, step, out);
        Ok(())
    }

    fn combine_bf16(
        &self,
        chunk: &Chunk<'_, bf16>,
        step: StepRounding,
        out: &mut [f32],
    ) -> Result<()> {
        self.check(chunk)?;
        dispatch(self, chunk, step, out);
        Ok(())
    }

    fn combine_f64(
        &self,
        chunk: &Chunk<'_, f64>,
        step: StepRounding,
        out: &mut [f64],
    ) -> Result<()> {
        self.check(chunk)?;
        dispatch(self, chunk, step, out);
        Ok(())
    }
}

/// Runs a kernel with the widest vectors of the processor at hand. The same operations in the same
/// order give the same bits whatever the width.
fn dispatch<T: Real, V: Value<Real = T>>(
    kernel: &impl Elementwise,
    chunk: &Chunk<'_, V>,
    step: StepRounding,
    out: &mut [T],
) {
    crate::vectorized(
        #[inline(always)]
        || match step {
            StepRounding::None => kernel.combine(chunk, |x| x, out),
            StepRounding::Bf16 => kernel.combine(chunk, T::through_bf16, out),
            StepRounding::F16 => kernel.combine(chunk, T::through_f16, out),
        },
    );
}
