//! Numbers and strings as the opcodes of a pickle spell them.

use super::{LINE_LIMIT_BYTES, Machine, Step};
use crate::io::torch::fault::PickleFault;
use crate::io::torch::literal::{integer_from_bytes, integer_from_text, unescape_unicode};
use crate::io::torch::value::Value;

impl Machine<'_, '_> {
    pub(super) fn integer(&mut self, opcode: u8) -> Step {
        let value = match opcode {
            b'J' => Value::Integer(i32::from_le_bytes(self.stream.array()?).into()),
            b'K' => Value::Integer(self.stream.byte()?.into()),
            b'M' => Value::Integer(u16::from_le_bytes(self.stream.array()?).into()),
            b'I' | b'L' => {
                let line = self.stream.line(LINE_LIMIT_BYTES)?;
                let text = str::from_utf8(line).map_err(|_| PickleFault::BadNumber)?;
                match text {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    text => integer_from_text(text.trim().trim_end_matches('L'))?,
                }
            }
            _ => {
                let length = self.length(opcode)?;
                integer_from_bytes(self.take(length)?)
            }
        };
        let small = match value {
            Value::Integer(value) => usize::try_from(value).ok().filter(|value| *value < 256),
            _ => None,
        };
        match small {
            None => self.push(value),
            Some(small) => {
                let id = match self.small[small] {
                    Some(id) => id,
                    None => self.arena.add(value)?,
                };
                self.small[small] = Some(id);
                self.push_id(id)
            }
        }
    }

    /// A decimal number on a line, as memo slots have it in protocol 0.
    pub(super) fn decimal(&mut self) -> Result<u64, PickleFault> {
        let line = self.stream.line(LINE_LIMIT_BYTES)?;
        let text = str::from_utf8(line).map_err(|_| PickleFault::BadNumber)?;
        text.trim().parse().map_err(|_| PickleFault::BadNumber)
    }

    /// The length that precedes the bytes of an item, 1, 4 or 8 bytes of it.
    pub(super) fn length(&mut self, opcode: u8) -> Result<u64, PickleFault> {
        match opcode {
            b'C' | b'U' | 0x8c | 0x8a => self.stream.byte().map(u64::from),
            b'B' | b'X' => Ok(u32::from_le_bytes(self.stream.array()?).into()),
            // These two are signed.
            b'T' | 0x8b => u64::try_from(i32::from_le_bytes(self.stream.array()?))
                .map_err(|_| PickleFault::NegativeLength),
            _ => Ok(u64::from_le_bytes(self.stream.array()?)),
        }
    }

    /// The next bytes, which must not be more than values may take.
    fn take(&mut self, length: u64) -> Result<&[u8], PickleFault> {
        let is_too_much = length > self.arena.n_left() && length <= self.stream.n_left();
        match is_too_much {
            false => self.stream.take(length),
            true => Err(PickleFault::TooMuchMemory {
                limit: self.arena.limit_bytes(),
            }),
        }
    }

    pub(super) fn text(&mut self, opcode: u8) -> Step {
        let bytes = if opcode == b'V' {
            self.stream.line(LINE_LIMIT_BYTES)?
        } else {
            let length = self.length(opcode)?;
            self.take(length)?
        };
        let text = str::from_utf8(bytes).map_err(|_| PickleFault::NotUtf8)?;
        let text = match opcode {
            b'V' => unescape_unicode(text),
            _ => text.into(),
        };
        self.push(Value::Text(text))
    }

    /// Python 2's `str`: text if it is UTF-8, as torch takes it, else bytes.
    pub(super) fn byte_or_text_string(&mut self, opcode: u8) -> Step {
        let bytes = if opcode == b'S' {
            let line = self.stream.line(LINE_LIMIT_BYTES)?.trim_ascii();
            match line {
                [b'\'', inner @ .., b'\''] | [b'"', inner @ .., b'"'] => inner,
                _ => return Err(PickleFault::BadNumber),
            }
        } else {
            let length = self.length(opcode)?;
            self.take(length)?
        };
        let value = match str::from_utf8(bytes) {
            Ok(text) => Value::Text(text.into()),
            Err(_) => Value::Bytes,
        };
        self.push(value)
    }
}
