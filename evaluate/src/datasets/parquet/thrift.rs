//! Thrift's compact protocol, as footers and page headers of parquet files have it: read into a tree, whatever it says.
//!
//! Specification: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

/// Why a header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The bytes end within it.
    Short,
    /// It is none.
    Damaged,
}

/// Structs in structs, at most.
const MAX_DEPTH: usize = 24;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Flag(bool),
    Integer(i64),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    /// Fields with their numbers, in the order of the file.
    Struct(Box<[(i64, Value)]>),
    /// A map or a floating point number, which no field that is read has.
    Other,
}

impl Value {
    /// A field of a struct.
    pub(super) fn field(&self, id: i64) -> Option<&Self> {
        match self {
            Self::Struct(fields) => {
                let mut fields = fields.iter().rev();
                let found = fields.find(|(number, _)| *number == id);
                found.map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// A whole number in a field.
    pub(super) fn integer(&self, id: i64) -> Option<i64> {
        match self.field(id)? {
            Self::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// A number that is not negative in a field.
    pub(super) fn count(&self, id: i64) -> Option<u64> {
        u64::try_from(self.integer(id)?).ok()
    }

    /// A text in a field.
    pub(super) fn text(&self, id: i64) -> Option<String> {
        match self.field(id)? {
            Self::Bytes(bytes) => String::from_utf8(bytes.clone()).ok(),
            _ => None,
        }
    }

    /// A list in a field.
    pub(super) fn list(&self, id: i64) -> Option<&[Self]> {
        match self.field(id)? {
            Self::List(values) => Some(values),
            _ => None,
        }
    }
}

/// Reads a struct, and how many bytes it takes. Memory is at most some tens of bytes for each of them.
pub(super) fn read(bytes: &[u8]) -> Result<(Value, usize), Fault> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.structure(0)?;
    Ok((value, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.bytes.get(self.at).copied().ok_or(Fault::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Fault::Damaged)
    }

    /// A signed number, its sign in the lowest bit.
    fn integer(&mut self) -> Result<i64, Fault> {
        let number = self.varint()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    fn take(&mut self, n: u64) -> Result<&[u8], Fault> {
        let n = usize::try_from(n).map_err(|_| Fault::Damaged)?;
        let end = self.at.checked_add(n).ok_or(Fault::Damaged)?;
        let bytes = self.bytes.get(self.at..end).ok_or(Fault::Short)?;
        self.at = end;
        Ok(bytes)
    }

    fn structure(&mut self, depth: usize) -> Result<Value, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::Damaged);
        }
        let mut fields = Vec::new();
        let mut id = 0_i64;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Ok(Value::Struct(fields.into()));
            }
            id = match header >> 4 {
                0 => self.integer()?,
                step => id.saturating_add(i64::from(step)),
            };
            let value = match header & 0x0f {
                1 => Value::Flag(true),
                2 => Value::Flag(false),
                kind => self.value(kind, depth)?,
            };
            fields.push((id, value));
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Result<Value, Fault> {
        Ok(match kind {
            // In lists a flag is a byte.
            1 | 2 => Value::Flag(self.byte()? == 1),
            3 => Value::Integer(i64::from(self.byte()? as i8)),
            4..=6 => Value::Integer(self.integer()?),
            7 => {
                self.take(8)?;
                Value::Other
            }
            8 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?.to_vec())
            }
            9 | 10 => {
                let header = self.byte()?;
                let n = match header >> 4 {
                    15 => self.varint()?,
                    n => u64::from(n),
                };
                if n > (self.bytes.len() - self.at) as u64 {
                    return Err(Fault::Short);
                }
                let values = (0..n).map(|_| self.value(header & 0x0f, depth + 1));
                Value::List(values.collect::<Result<_, _>>()?)
            }
            11 => {
                let n = self.varint()?;
                if n > (self.bytes.len() - self.at) as u64 {
                    return Err(Fault::Short);
                }
                let kinds = if n > 0 { self.byte()? } else { 0 };
                for _ in 0..n {
                    self.value(kinds >> 4, depth + 1)?;
                    self.value(kinds & 0x0f, depth + 1)?;
                }
                Value::Other
            }
            12 => self.structure(depth + 1)?,
            _ => return Err(Fault::Damaged),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_is_read_and_damage_is_told_from_an_early_end() {
        // 1: i32 21; 2: binary "ab"; 3: list<i32> [1, -1]; 20 (long form): true; 21: struct {}.
        let bytes = [
            0x15, 42, 0x18, 2, b'a', b'b', 0x19, 0x25, 2, 1, 0x01, 40, 0x1c, 0, 0,
        ];
        let (value, n) = read(&bytes).expect("read");
        assert_eq!(n, bytes.len());
        assert_eq!(value.integer(1), Some(21));
        assert_eq!(value.text(2).as_deref(), Some("ab"));
        let list = [Value::Integer(1), Value::Integer(-1)];
        assert_eq!(value.list(3), Some(&list[..]));
        assert_eq!(value.field(20), Some(&Value::Flag(true)));
        assert_eq!(value.field(21), Some(&Value::Struct(Box::default())));
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Err(Fault::Short), "{end}");
        }
        assert_eq!(read(&[0x1f]), Err(Fault::Damaged));
        assert_eq!(read(&[0x1c; 1000]), Err(Fault::Damaged));
        // A list of two thousand million items in six bytes.
        assert_eq!(
            read(&[0x19, 0xf5, 0xff, 0xff, 0xff, 0x07]),
            Err(Fault::Short)
        );
    }
}
