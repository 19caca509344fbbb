//! Reads stored tensors that lie beside each other, and keeps those that are soon read again.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Checkpoint, DType, Result, TensorInfo, decode_f32};

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) key: String,
    pub(super) info: TensorInfo,
    /// Whether bytes are exponents, as scales of microscaling formats are.
    pub(super) is_exponent: bool,
}

impl Stored {
    /// The tensor `key`, if it is there.
    pub(super) fn of(source: &Checkpoint, key: &str) -> Option<Self> {
        let info = source.get(key)?.clone();
        Some(Self {
            key: key.to_owned(),
            is_exponent: false,
            info,
        })
    }

    /// Scales, of which bytes are exponents.
    pub(super) fn scales(source: &Checkpoint, key: &str) -> Option<Self> {
        let stored = Self::of(source, key)?;
        Some(Self {
            is_exponent: matches!(stored.info.dtype, DType::U8 | DType::F8E8M0),
            ..stored
        })
    }

    /// Its sizes.
    pub(super) fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    /// Its dtype and shape, for messages.
    pub(super) fn in_words(&self) -> String {
        format!("`{}` ({} {:?})", self.key, self.info.dtype, self.info.shape)
    }

    /// `n` bytes from the one on that element `first` begins with.
    pub(super) fn bytes(&self, source: &Checkpoint, first: usize, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        source.read(&self.key, first, &mut bytes)?;
        Ok(bytes)
    }

    /// Elements `first..` as numbers.
    pub(super) fn fill(&self, source: &Checkpoint, first: usize, out: &mut [f32]) -> Result<()> {
        let dtype = match self.is_exponent {
            true => DType::F8E8M0,
            false => self.info.dtype,
        };
        let bytes = self.bytes(source, first, self.info.dtype.bytes_of(out.len()))?;
        decode_f32(&self.key, dtype, &bytes, out)
    }

    /// `n` elements from `first` on as numbers.
    pub(super) fn floats(&self, source: &Checkpoint, first: usize, n: usize) -> Result<Vec<f32>> {
        let mut values = vec![0.0; n];
        self.fill(source, first, &mut values)?;
        Ok(values)
    }

    /// `n` elements of I64 from `first` on.
    pub(super) fn integers(&self, source: &Checkpoint, first: usize, n: usize) -> Result<Vec<i64>> {
        let bytes = self.bytes(source, first, n * size_of::<i64>())?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers
            .iter()
            .map(|&bytes| i64::from_le_bytes(bytes))
            .collect())
    }

    /// The one element, or the first.
    pub(super) fn number(&self, source: &Checkpoint) -> Result<f32> {
        Ok(self.floats(source, 0, 1)?[0])
    }
}

/// The keys of tensors, and those of others that belong to them.
pub(super) fn keys_of<'a>(
    stored: impl Iterator<Item = &'a Stored>,
    others: &'a [String],
) -> Vec<&'a str> {
    let others = others.iter().map(String::as_str);
    stored
        .map(|stored| stored.key.as_str())
        .chain(others)
        .collect()
}

/// A part of a stored tensor: its key, its number, its words.
type Part = (String, usize, Arc<Vec<u32>>);

/// Parts of stored tensors that several reads need, by their key and number.
#[derive(Default)]
pub(super) struct Kept(Mutex<VecDeque<Part>>);

/// The number of parts that are kept: as many as threads are likely to be at.
pub(super) const N_KEPT: usize = 8;

impl Kept {
    /// The part, read by `read` unless it was used a short while ago.
    pub(super) fn part(
        &self,
        key: &str,
        number: usize,
        read: impl FnOnce() -> Result<Vec<u32>>,
    ) -> Result<Arc<Vec<u32>>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &&Part| known.0 == key && known.1 == number;
        if let Some((.., part)) = lock().iter().find(is_it) {
            return Ok(Arc::clone(part));
        }
        let part = Arc::new(read()?);
        let mut kept = lock();
        let n_kept = N_KEPT.max(rayon::current_num_threads());
        while kept.len() >= n_kept {
            kept.pop_front();
        }
        kept.push_back((key.to_owned(), number, Arc::clone(&part)));
        Ok(part)
    }
}

/// Calls `body` with each row that elements `first..` of a tensor of rows of `width` lie in: the row, the
/// column that its part begins with, and the part.
pub(super) fn each_row(
    width: usize,
    first: usize,
    out: &mut [f32],
    mut body: impl FnMut(usize, usize, &mut [f32]),
) {
    let (mut at, mut rest) = (first, out);
    while !rest.is_empty() {
        let (row, column) = (at / width, at % width);
        let (part, after) = rest.split_at_mut((width - column).min(rest.len()));
        at += part.len();
        body(row, column, part);
        rest = after;
    }
}
