//! Messages of protocol buffers, read field by field from bytes. No length goes beyond the bytes.

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Field<'b> {
    /// A whole number, of any of the types that are written with seven bits a byte.
    Integer(u64),
    /// Eight bytes.
    Wide([u8; 8]),
    /// A string, bytes, packed numbers or a message.
    Bytes(&'b [u8]),
    /// Four bytes.
    Narrow([u8; 4]),
}

/// The fields of a message, each with its number; `None` in place of bytes that are no field, after which nothing comes.
pub(crate) struct Fields<'b> {
    rest: &'b [u8],
}

impl<'b> Fields<'b> {
    /// Those of a message in these bytes.
    pub(crate) const fn new(message: &'b [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, n_bytes: u64) -> Option<&'b [u8]> {
        let n_bytes = usize::try_from(n_bytes).ok()?;
        let (taken, rest) = self.rest.split_at_checked(n_bytes)?;
        self.rest = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'b>)> {
        let tag = varint(&mut self.rest)?;
        let value = match tag & 7 {
            0 => Field::Integer(varint(&mut self.rest)?),
            1 => Field::Wide(self.take(8)?.try_into().ok()?),
            2 => {
                let n_bytes = varint(&mut self.rest)?;
                Field::Bytes(self.take(n_bytes)?)
            }
            5 => Field::Narrow(self.take(4)?.try_into().ok()?),
            // Groups, which no format that is read has.
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = Option<(u64, Field<'b>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// The number at the beginning of `bytes`, which are those behind it afterwards.
pub(crate) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (position, &byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has the last bit.
        if position == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * position);
        if byte & 0x80 == 0 {
            *bytes = &bytes[position + 1..];
            return Some(number);
        }
    }
    None
}

/// Appends a number as [`varint`] reads it: small ones take one byte.
pub(crate) fn put_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_lies_end_the_message() {
        // Field 1 is 300, field 2 the bytes "ab", field 3 is 1.0 in f32.
        let message = [
            0x08, 0xac, 0x02, 0x12, 2, b'a', b'b', 0x1d, 0, 0, 0x80, 0x3f,
        ];
        let fields: Vec<_> = Fields::new(&message).collect();
        assert_eq!(fields[0], Some((1, Field::Integer(300))));
        assert_eq!(fields[1], Some((2, Field::Bytes(b"ab"))));
        assert_eq!(fields[2], Some((3, Field::Narrow(1.0f32.to_le_bytes()))));
        for message in [&[0x12, 3, b'a'][..], &[0x08, 0x80], &[0x0b], &[0xff; 11]] {
            let fields: Vec<_> = Fields::new(message).collect();
            assert_eq!(fields, [None], "{message:?}");
        }
    }

    #[test]
    fn numbers_are_read_as_they_are_put() {
        let numbers = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        let mut bytes = Vec::new();
        for number in numbers {
            put_varint(number, &mut bytes);
        }
        assert_eq!(bytes.len(), 1 + 1 + 1 + 2 + 2 + 5 + 10);
        let mut rest = &bytes[..];
        for number in numbers {
            assert_eq!(varint(&mut rest), Some(number));
        }
        assert_eq!(varint(&mut rest), None);
    }
}
