//! Bytes as printable characters: how byte-level vocabularies spell their tokens.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The character of each byte. Bytes that Latin-1 prints stand for themselves; the others, in order,
/// for the characters from U+0100 on: a space is `Ġ`, a new line `Ċ`.
static CHARACTERS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut next = 0x100;
    std::array::from_fn(|byte| {
        let byte = byte as u8;
        match is_printed(byte) {
            true => char::from(byte),
            false => {
                let character = char::from_u32(next).unwrap_or_default();
                next += 1;
                character
            }
        }
    })
});

static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let bytes = CHARACTERS.iter().zip(0..=255);
    bytes.map(|(&character, byte)| (character, byte)).collect()
});

fn is_printed(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that a token spells; a character that stands for no byte gives its UTF-8.
///
/// # Example
/// ```
/// use merge::beside::byte_alphabet::bytes_of;
/// assert_eq!(bytes_of("Ġcaf\u{c3}\u{a9}"), " café".as_bytes());
/// ```
#[must_use]
pub fn bytes_of(token: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        match BYTES.get(&character) {
            Some(&byte) => bytes.push(byte),
            None => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The characters of all bytes in the order of GPT-2's ids: those that stand for themselves first.
pub fn in_order_of_gpt2() -> impl Iterator<Item = char> {
    let of = |printed: bool| {
        let bytes = (0..=255_u8).filter(move |&byte| is_printed(byte) == printed);
        bytes.map(|byte| CHARACTERS[usize::from(byte)])
    };
    of(true).chain(of(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        for byte in 0..=255_u8 {
            let token = CHARACTERS[usize::from(byte)].to_string();
            assert_eq!(bytes_of(&token), [byte]);
        }
        assert_eq!(CHARACTERS[usize::from(b' ')], 'Ġ');
        assert_eq!(CHARACTERS[usize::from(b'\n')], 'Ċ');
        assert_eq!(bytes_of("Ġcaf\u{c3}\u{a9}"), " café".as_bytes());
        let ordered: Vec<char> = in_order_of_gpt2().collect();
        assert_eq!((ordered.len(), ordered[0], ordered[188]), (256, '!', 'Ā'));
    }
}
