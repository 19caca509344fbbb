//! The numbered values of a pickle, which it refers to later.

use std::collections::HashMap;

use super::byte_stream::ByteStream;
use super::fault::PickleFault;
use super::value::Id;

/// Numbers of values that a pickle may have where it is looked through first.
const MOST_SLOTS: usize = 1 << 28;

/// Values by number: those that are numbered in a row, as all but odd pickles have them, and others.
#[derive(Default)]
pub(super) struct Memo {
    in_a_row: Vec<Id>,
    n_in_a_row: usize,
    /// Those with odd numbers and, where only recalled values are kept, that too.
    others: HashMap<u64, Id>,
    n_odd: usize,
    recalled: Option<Recalled>,
}

impl Memo {
    /// One that keeps only recalled values.
    pub(super) fn of_recalled(recalled: Recalled) -> Self {
        Self {
            recalled: Some(recalled),
            ..Self::default()
        }
    }

    /// How many numbers are set.
    pub(super) fn len(&self) -> u64 {
        (self.n_in_a_row + self.n_odd) as u64
    }

    /// The value of a number.
    pub(super) fn get(&self, slot: u64) -> Option<Id> {
        let in_a_row = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.in_a_row.get(slot));
        in_a_row.or_else(|| self.others.get(&slot)).copied()
    }

    /// Sets a number and gives the bytes that it takes; `None` where nothing refers to it.
    pub(super) fn set(&mut self, slot: u64, id: Id) -> Option<usize> {
        let at = usize::try_from(slot).unwrap_or(usize::MAX);
        let is_next = at == self.n_in_a_row && !self.others.contains_key(&slot);
        let is_in_a_row = at < self.n_in_a_row || is_next;
        self.n_in_a_row += usize::from(is_next);
        match &self.recalled {
            Some(recalled) if is_in_a_row && !recalled.has(slot) => return None,
            None if is_next => {
                self.in_a_row.push(id);
                return Some(2 * size_of::<Id>());
            }
            None if is_in_a_row => {
                self.in_a_row[at] = id;
                return Some(0);
            }
            _ => {}
        }
        Some(match self.others.insert(slot, id) {
            Some(_) => 0,
            // A hash map of 16-byte entries, at worst half full.
            None => {
                self.n_odd += usize::from(!is_in_a_row);
                40
            }
        })
    }
}

/// The numbers that a pickle refers to, of those that are set before.
pub(super) struct Recalled {
    bits: Vec<u64>,
}

impl Recalled {
    /// Those of a pickle, which is looked through without building anything. A fault in it ends the look: who reads the
    /// pickle meets it.
    pub(super) fn of(stream: &mut ByteStream<'_>) -> Result<Self, PickleFault> {
        let (mut recalled, mut n_set) = (Self { bits: Vec::new() }, 0usize);
        loop {
            match next(stream) {
                Ok(Step::Set) if n_set == MOST_SLOTS => {
                    return Err(PickleFault::TooManyObjects {
                        limit: MOST_SLOTS as u64,
                    });
                }
                Ok(Step::Set) => n_set += 1,
                Ok(Step::Recall(slot)) => match usize::try_from(slot) {
                    Ok(slot) if slot < n_set => recalled.note(slot),
                    // An odd number, and those are kept.
                    _ => {}
                },
                Ok(Step::Other) => {}
                Ok(Step::Stop) | Err(_) => return Ok(recalled),
            }
        }
    }

    fn note(&mut self, slot: usize) {
        if slot / 64 >= self.bits.len() {
            self.bits.resize(slot / 64 + 1, 0);
        }
        self.bits[slot / 64] |= 1 << (slot % 64);
    }

    fn has(&self, slot: u64) -> bool {
        let bits = usize::try_from(slot / 64)
            .ok()
            .and_then(|at| self.bits.get(at));
        bits.is_some_and(|bits| bits >> (slot % 64) & 1 == 1)
    }
}

/// The effect of an opcode on the numbers.
enum Step {
    Set,
    Recall(u64),
    Other,
    Stop,
}

/// Passes over an opcode and its argument.
fn next(stream: &mut ByteStream<'_>) -> Result<Step, PickleFault> {
    let number = |line: &[u8]| str::from_utf8(line).ok()?.trim().parse::<u64>().ok();
    let n_bytes = match stream.byte()? {
        b'.' => return Ok(Step::Stop),
        b'g' => {
            let slot = number(stream.line(64)?).ok_or(PickleFault::BadNumber)?;
            return Ok(Step::Recall(slot));
        }
        b'h' => return Ok(Step::Recall(stream.byte()?.into())),
        b'j' => return Ok(Step::Recall(u32::from_le_bytes(stream.array()?).into())),
        0x94 => return Ok(Step::Set),
        b'q' => {
            stream.byte()?;
            return Ok(Step::Set);
        }
        b'r' => {
            stream.array::<4>()?;
            return Ok(Step::Set);
        }
        b'p' => {
            stream.line(64)?;
            return Ok(Step::Set);
        }
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' => {
            stream.line(u64::MAX)?;
            0
        }
        b'c' | b'i' => {
            stream.line(u64::MAX)?;
            stream.line(u64::MAX)?;
            0
        }
        b'K' | 0x80 | 0x82 => 1,
        b'M' | 0x83 => 2,
        b'J' | 0x84 => 4,
        b'G' | 0x95 => 8,
        b'C' | b'U' | 0x8c | 0x8a => stream.byte()?.into(),
        b'B' | b'T' | b'X' | 0x8b => u32::from_le_bytes(stream.array()?).into(),
        0x8d | 0x8e | 0x96 => u64::from_le_bytes(stream.array()?),
        _ => 0,
    };
    stream.skip(n_bytes)?;
    Ok(Step::Other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::read_at::ReadAt;

    #[test]
    fn only_numbers_that_are_recalled_are_kept() {
        // Two strings, each numbered; the second is recalled, and what looks like an opcode within a string is none.
        let bytes = b"\x80\x04\x8c\x02h\x00\x94\x8c\x01b\x94h\x01.".to_vec();
        let mut stream = ByteStream::new(&bytes, 0, bytes.n_bytes(), u64::MAX);
        let recalled = Recalled::of(&mut stream).expect("read");
        assert!(!recalled.has(0));
        assert!(recalled.has(1));
        let mut memo = Memo::of_recalled(recalled);
        assert_eq!(memo.set(0, Id::TRUE), None);
        assert!(memo.set(1, Id::FALSE).is_some());
        assert!(memo.set(9, Id::NONE).is_some());
        assert_eq!(memo.len(), 3);
        assert_eq!(memo.get(0), None);
        assert_eq!(memo.get(1), Some(Id::FALSE));
        assert_eq!(memo.get(9), Some(Id::NONE));
    }

    #[test]
    fn numbers_count_the_same_whether_all_are_kept_or_few() {
        let order = [0, 1, 1, 3, 2, 3, 4, 5, 100, 6];
        let mut all = Memo::default();
        let mut few = Memo::of_recalled(Recalled { bits: Vec::new() });
        for slot in order {
            all.set(slot, Id::NONE);
            few.set(slot, Id::NONE);
            assert_eq!(all.len(), few.len(), "{slot}");
        }
        assert_eq!(all.len(), 8);
    }
}
