//! Broken text repaired, as open_clip and transformers' slow classes ask ftfy to: HTML entities, UTF-8 that was read as
//! Windows-1252, ligatures, full-width forms, curly quotes, control characters, composed characters.
//!
//! Speer 2019, "ftfy", <https://doi.org/10.5281/zenodo.2591652>. Of its repairs of misread text this knows the most usual
//! one, where a text as a whole was read as Windows-1252 or Latin-1; text that was misread in part, or through another
//! encoding, stays as it is.

use unicode_normalization_alignments::UnicodeNormalization;

/// Letters that are one character for typesetting or transliteration, and their replacements.
const LIGATURES: [(char, &str); 22] = [
    ('Ĳ', "IJ"),
    ('ĳ', "ij"),
    ('ŉ', "ʼn"),
    ('Ǳ', "DZ"),
    ('ǲ', "Dz"),
    ('ǳ', "dz"),
    ('Ǆ', "DŽ"),
    ('ǅ', "Dž"),
    ('ǆ', "dž"),
    ('Ǉ', "LJ"),
    ('ǈ', "Lj"),
    ('ǉ', "lj"),
    ('Ǌ', "NJ"),
    ('ǋ', "Nj"),
    ('ǌ', "nj"),
    ('ﬀ', "ff"),
    ('ﬁ', "fi"),
    ('ﬂ', "fl"),
    ('ﬃ', "ffi"),
    ('ﬄ', "ffl"),
    ('ﬅ', "ſt"),
    ('ﬆ', "st"),
];

/// The characters of Windows-1252 in place of the control characters from 0x80 on. Places without a character stand
/// for the byte itself.
const WINDOWS: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
    '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// Most rounds of repairs: a text may have been broken several times.
const MAX_ROUNDS: usize = 16;

/// The text with its broken parts repaired.
///
/// # Example
/// ```
/// use evaluate::text::repaired;
/// assert_eq!(repaired("a cafÃ© â€™"), "a café '");
/// ```
#[must_use]
pub fn repaired(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_ROUNDS {
        let next = round(&text);
        if next == text {
            break;
        }
        text = next;
    }
    text
}

fn round(text: &str) -> String {
    // A text with tags is HTML, whose entities have their meaning there.
    let text = match text.contains('<') {
        true => text.to_owned(),
        false => unescaped(text),
    };
    let text = reread(&text).unwrap_or(text);
    let mut repaired = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\u{80}'..='\u{9f}' => repaired.push(WINDOWS[character as usize - 0x80]),
            '\u{2bc}' | '\u{2018}'..='\u{201b}' => repaired.push('\''),
            '\u{201c}'..='\u{201f}' => repaired.push('"'),
            '\u{2028}' | '\u{2029}' => repaired.push('\n'),
            '\u{3000}' => repaired.push(' '),
            '\u{ff01}'..='\u{ffef}' => {
                repaired.extend(std::iter::once(character).nfkc().map(|(c, _)| c));
            }
            '\0'..='\u{8}'
            | '\u{b}'
            | '\u{e}'..='\u{1f}'
            | '\u{7f}'
            | '\u{206a}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffc}' => {}
            _ => match LIGATURES.iter().find(|(of, _)| *of == character) {
                Some((_, letters)) => repaired.push_str(letters),
                None => repaired.push(character),
            },
        }
    }
    let repaired = repaired.replace("\r\n", "\n").replace('\r', "\n");
    repaired.nfc().map(|(character, _)| character).collect()
}

/// The text as UTF-8 of the bytes that Windows-1252 has for its characters; none if it has no such bytes, they are no
/// UTF-8, or all are ASCII.
fn reread(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    let byte = |character: char| match character {
        '\0'..='\u{7f}' | '\u{a0}'..='\u{ff}' => Some(character as u8),
        _ => {
            let place = WINDOWS.iter().position(|of| *of == character)?;
            Some(0x80 + place as u8)
        }
    };
    let bytes: Option<Vec<u8>> = text.chars().map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// The text with its HTML entities resolved.
#[must_use]
pub fn unescaped(text: &str) -> String {
    html_escape::decode_html_entities(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_was_misread_twice_is_read_again_twice() {
        // "é" as UTF-8, read as Latin-1, twice.
        assert_eq!(repaired("cafÃƒÂ©"), "café");
        // A text that is right stays: é is no UTF-8 of its own.
        assert_eq!(repaired("café, 5 €"), "café, 5 €");
        assert_eq!(reread("plain"), None);
    }

    #[test]
    fn forms_quotes_and_controls_are_plain_afterwards() {
        assert_eq!(repaired("“ﬁt” ‘Ｗｉｄｅ’\u{feff}\0"), "\"fit\" 'Wide'");
        assert_eq!(repaired("e\u{301}\r\nﾊ"), "é\nハ");
    }

    #[test]
    fn entities_stay_in_texts_with_tags() {
        assert_eq!(repaired("a &amp;amp; b"), "a & b");
        assert_eq!(repaired("<b> &amp; b"), "<b> &amp; b");
    }
}
