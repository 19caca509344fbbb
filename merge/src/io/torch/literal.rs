//! Integers and strings as the opcodes of a pickle spell them.

use super::fault::PickleFault;
use super::value::Value;

/// Bytes of the largest integer whose digits are kept.
const INTEGER_LIMIT_BYTES: usize = 128;

/// An integer in decimal.
pub(crate) fn integer_from_text(text: &str) -> Result<Value, PickleFault> {
    if let Ok(value) = text.parse() {
        return Ok(Value::Integer(value));
    }
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    match is_number && digits.len() <= 3 * INTEGER_LIMIT_BYTES {
        true => Ok(Value::BigInteger(text.into())),
        false => Err(PickleFault::BadNumber),
    }
}

/// A little-endian two's complement integer of any length.
pub(crate) fn integer_from_bytes(bytes: &[u8]) -> Value {
    let is_negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let fill = if is_negative { 0xff } else { 0 };
    if bytes.len() <= 8 {
        let mut eight = [fill; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        return Value::Integer(i64::from_le_bytes(eight));
    }
    if bytes.len() > INTEGER_LIMIT_BYTES {
        // No checkpoint needs its digits.
        return Value::Bytes;
    }
    // The magnitude, in words of 32 bits.
    let mut words = vec![0u32; bytes.len().div_ceil(4)];
    for (index, word) in words.iter_mut().enumerate() {
        let byte = |n: usize| u32::from(*bytes.get(4 * index + n).unwrap_or(&fill));
        *word = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
    }
    if is_negative {
        let mut carry = true;
        for word in &mut words {
            (*word, carry) = (!*word).overflowing_add(carry.into());
        }
    }
    // Digits in groups of nine, the last group first.
    let mut groups = Vec::new();
    while words.iter().any(|&word| word != 0) {
        let mut rest = 0u64;
        for word in words.iter_mut().rev() {
            let value = rest << 32 | u64::from(*word);
            *word = (value / 1_000_000_000) as u32;
            rest = value % 1_000_000_000;
        }
        groups.push(rest);
    }
    let mut text = String::from(if is_negative { "-" } else { "" });
    for (index, group) in groups.iter().rev().enumerate() {
        text += &match index {
            0 => group.to_string(),
            _ => format!("{group:09}"),
        };
    }
    match text.parse() {
        Ok(value) => Value::Integer(value),
        Err(_) if text.is_empty() => Value::Integer(0),
        Err(_) => Value::BigInteger(text.into()),
    }
}

/// Undoes the escapes `\uXXXX` and `\UXXXXXXXX` of protocol 0's strings; text that is no such escape
/// stays as it is.
pub(crate) fn unescape_unicode(text: &str) -> Box<str> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let n_digits = match rest.as_bytes().get(1) {
            Some(b'u') => 4,
            Some(b'U') => 8,
            _ => 0,
        };
        let escaped = rest
            .get(2..2 + n_digits)
            .filter(|digits| !digits.is_empty())
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(char::from_u32);
        match escaped {
            Some(character) => {
                plain.push(character);
                rest = &rest[2 + n_digits..];
            }
            None => {
                plain.push('\\');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    plain.into()
}
