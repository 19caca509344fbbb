//! The types of elements of a GGUF file.

use super::blocks::{self, Decode};
use crate::DType;

/// The types as which elements are read.
#[derive(Clone, Copy)]
pub(crate) enum Reading {
    /// Elements as they are stored.
    Plain(DType),
    /// Numbers in f32, computed of blocks.
    Blocks(Decode),
    /// Known by name and size alone.
    NameOnly,
}

/// A type of elements. Elements come in blocks, which a row is a whole number of.
#[derive(Clone, Copy)]
pub(crate) struct ElementType {
    /// Its number in files.
    pub(crate) id: u32,
    /// Its name in ggml.
    pub(crate) name: &'static str,
    /// Elements of a block.
    pub(crate) n_elements: usize,
    /// Bytes of a block.
    pub(crate) n_bytes: usize,
    /// How it is read.
    pub(crate) reading: Reading,
}

impl std::fmt::Debug for ElementType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl ElementType {
    /// The type with this number in files.
    pub(crate) fn of(id: u32) -> Option<&'static Self> {
        TYPES.iter().find(|kind| kind.id == id)
    }

    /// The type whose elements are stored as those of `dtype`.
    pub(crate) fn plain_of(dtype: DType) -> Option<&'static Self> {
        let is_it = |kind: &&Self| matches!(kind.reading, Reading::Plain(own) if own == dtype);
        TYPES.iter().find(is_it)
    }

    /// The dtype that elements are read as: codes in f32.
    pub(crate) const fn dtype(&self) -> DType {
        match self.reading {
            Reading::Plain(dtype) => dtype,
            Reading::Blocks(_) | Reading::NameOnly => DType::F32,
        }
    }

    /// Whether elements are codes.
    pub(crate) const fn is_quantized(&self) -> bool {
        !matches!(self.reading, Reading::Plain(_))
    }

    /// Bytes of a number of elements, a whole number of blocks; `None` beyond 64 bits.
    pub(crate) fn bytes_of(&self, n_elements: u64) -> Option<u64> {
        (n_elements / self.n_elements as u64).checked_mul(self.n_bytes as u64)
    }
}

/// The name of a type that is known by name and size alone; `None` if its elements are read.
pub(crate) fn name_only(name: &str) -> Option<&'static str> {
    let mut known = TYPES.iter();
    let kind = known.find(|kind| kind.name == name)?;
    matches!(kind.reading, Reading::NameOnly).then_some(kind.name)
}

const fn plain(id: u32, name: &'static str, dtype: DType) -> ElementType {
    ElementType {
        id,
        name,
        n_elements: 1,
        n_bytes: dtype.size_bytes(),
        reading: Reading::Plain(dtype),
    }
}

const fn coded(
    id: u32,
    name: &'static str,
    n_elements: usize,
    n_bytes: usize,
    decode: Decode,
) -> ElementType {
    ElementType {
        id,
        name,
        n_elements,
        n_bytes,
        reading: Reading::Blocks(decode),
    }
}

const fn named(id: u32, name: &'static str, n_elements: usize, n_bytes: usize) -> ElementType {
    ElementType {
        id,
        name,
        n_elements,
        n_bytes,
        reading: Reading::NameOnly,
    }
}

/// The number of [`Q8_0`](blocks::q8_0) in files.
pub(crate) const Q8_0: u32 = 8;

/// All types, with the sizes that ggml gives their blocks. Numbers that are missing were of types that ggml has removed.
const TYPES: [ElementType; 34] = [
    plain(0, "F32", DType::F32),
    plain(1, "F16", DType::F16),
    coded(2, "Q4_0", 32, 18, blocks::q4_0),
    coded(3, "Q4_1", 32, 20, blocks::q4_1),
    coded(6, "Q5_0", 32, 22, blocks::q5_0),
    coded(7, "Q5_1", 32, 24, blocks::q5_1),
    coded(Q8_0, "Q8_0", 32, 34, blocks::q8_0),
    named(9, "Q8_1", 32, 36),
    coded(10, "Q2_K", 256, 84, blocks::q2_k),
    coded(11, "Q3_K", 256, 110, blocks::q3_k),
    coded(12, "Q4_K", 256, 144, blocks::q4_k),
    coded(13, "Q5_K", 256, 176, blocks::q5_k),
    coded(14, "Q6_K", 256, 210, blocks::q6_k),
    coded(15, "Q8_K", 256, 292, blocks::q8_k),
    named(16, "IQ2_XXS", 256, 66),
    named(17, "IQ2_XS", 256, 74),
    named(18, "IQ3_XXS", 256, 98),
    named(19, "IQ1_S", 256, 50),
    coded(20, "IQ4_NL", 32, 18, blocks::iq4_nl),
    named(21, "IQ3_S", 256, 110),
    named(22, "IQ2_S", 256, 82),
    coded(23, "IQ4_XS", 256, 136, blocks::iq4_xs),
    plain(24, "I8", DType::I8),
    plain(25, "I16", DType::I16),
    plain(26, "I32", DType::I32),
    plain(27, "I64", DType::I64),
    plain(28, "F64", DType::F64),
    named(29, "IQ1_M", 256, 56),
    plain(30, "BF16", DType::BF16),
    coded(34, "TQ1_0", 256, 54, blocks::tq1_0),
    coded(35, "TQ2_0", 256, 66, blocks::tq2_0),
    coded(39, "MXFP4", 32, 17, blocks::mxfp4),
    named(40, "NVFP4", 64, 36),
    named(41, "Q1_0", 128, 18),
];
