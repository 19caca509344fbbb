//! Rows of numbers in few bytes, for a checkpoint may list a million places.

use crate::io::protobuf::{put_varint, varint};

/// Bytes of a part, of which memory is taken at a time.
const PART_BYTES: usize = 1 << 20;

/// Rows, each of as many numbers as it needs.
#[derive(Default)]
pub(super) struct Rows {
    parts: Vec<Vec<u8>>,
    scratch: Vec<u8>,
}

impl Rows {
    /// Adds a row and gives its number. Rows take less than four gigabytes.
    pub(super) fn push(&mut self, numbers: impl Iterator<Item = u64>) -> u32 {
        self.scratch.clear();
        numbers.for_each(|number| put_varint(number, &mut self.scratch));
        let is_full = |part: &Vec<u8>| part.len() + self.scratch.len() > PART_BYTES;
        if self.parts.last().is_none_or(is_full) {
            self.parts.push(Vec::with_capacity(PART_BYTES));
        }
        let number = self.n_bytes();
        if let Some(part) = self.parts.last_mut() {
            part.extend_from_slice(&self.scratch);
        }
        number as u32
    }

    /// The bytes that parts which are full take, and those of the last one.
    pub(super) fn n_bytes(&self) -> usize {
        let last = self.parts.last().map_or(0, Vec::len);
        self.parts.len().saturating_sub(1) * PART_BYTES + last
    }

    /// The numbers of a row, and of what comes behind it.
    pub(super) fn numbers(&self, row: u32) -> impl Iterator<Item = u64> + '_ {
        let (part, at) = (row as usize / PART_BYTES, row as usize % PART_BYTES);
        let mut rest = self.parts.get(part).and_then(|part| part.get(at..));
        std::iter::from_fn(move || varint(rest.as_mut()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_their_numbers_in_every_part() {
        let mut rows = Rows::default();
        let row = |number: u64| [number, number * number, 7];
        let numbers: Vec<u32> = (0..400_000)
            .map(|n| rows.push(row(n).into_iter()))
            .collect();
        assert!(rows.parts.len() > 2);
        for (n, number) in numbers.into_iter().enumerate() {
            let found: Vec<u64> = rows.numbers(number).take(3).collect();
            assert_eq!(found, row(n as u64));
        }
    }
}
