//! Bounds the growth of a text under the rules of a `tokenizer.json`: a stranger's file must not turn a caption into
//! gigabytes, nor end the program.

use serde_json::Value;

/// Characters that the normalizers and pre-tokenizers together may make of one. Published ones make at most
/// eighteen, by compatibility forms.
const MAX_GROWTH: f64 = 64.0;

/// Tokens that are put around every text. Published tokenizers put four.
const MAX_SPECIAL_IDS: usize = 1024;

/// Parts that a normalizer or a pre-tokenizer may have, at any depth.
const MAX_PARTS: usize = 1000;

/// Refuses files that make texts longer than any published one does, and files whose parts do not fit each other.
///
/// # Errors
/// The fault, in words.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    // Asked first, for the library ends the program where a decoder is no JSON.
    let file: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let mut growth = 1.0;
    let mut n_parts = 0;
    let mut open: Vec<&Value> = [file.get("normalizer"), file.get("pre_tokenizer")]
        .into_iter()
        .flatten()
        .collect();
    while let Some(part) = open.pop() {
        n_parts += 1;
        if n_parts > MAX_PARTS {
            return Err(format!("its normalizer has more than {MAX_PARTS} parts"));
        }
        for list in ["normalizers", "pretokenizers"] {
            open.extend(items(part, list));
        }
        let text = |key: &str| {
            part.get(key)
                .and_then(Value::as_str)
                .map_or(0, |text| text.chars().count())
        };
        growth *= match part.get("type").and_then(Value::as_str) {
            // A pattern may fit a single character, or nothing before each.
            Some("Replace") => {
                let pattern = part
                    .get("pattern")
                    .and_then(|pattern| pattern.get("String")?.as_str());
                let n_replaced = pattern.map_or(1, |pattern| pattern.chars().count().max(1));
                (text("content") as f64 / n_replaced as f64).max(1.0)
            }
            // A table of replacements for single characters, in base64.
            Some("Precompiled") => longest_replacement(part).max(1.0),
            // Once for each text, which may have a single character.
            Some("Prepend") => 1.0 + text("prepend") as f64,
            _ => 1.0,
        };
    }
    if growth > MAX_GROWTH {
        return Err(format!(
            "its normalizer may make texts {growth:.0} times as long, at most {MAX_GROWTH} are taken"
        ));
    }
    let processor = file.get("post_processor");
    let n_ids = processor.map_or(Ok(0), |processor| special_ids(processor, 0))?;
    if n_ids > MAX_SPECIAL_IDS {
        return Err(format!(
            "its template puts {n_ids} tokens around a text, at most {MAX_SPECIAL_IDS} are taken"
        ));
    }
    Ok(())
}

/// Characters of the longest replacement in the table of sentencepiece: behind the length of an index (4 bytes)
/// and the index are the replacements, each with a zero at its end.
fn longest_replacement(part: &Value) -> f64 {
    let text = (part.get("precompiled_charsmap")).and_then(Value::as_str);
    let table = text.map(decoded).unwrap_or_default();
    let Some((length, rest)) = table.split_first_chunk() else {
        return 1.0;
    };
    let replacements = rest.get(u32::from_le_bytes(*length) as usize..);
    let pieces = replacements.unwrap_or_default().split(|byte| *byte == 0);
    let n_chars = |piece: &[u8]| piece.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    pieces.map(n_chars).max().unwrap_or(0) as f64
}

/// The bytes of a text in base64; characters that it does not have are passed over.
fn decoded(text: &str) -> Vec<u8> {
    let value = |byte| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bytes, mut bits, mut n_bits) = (Vec::with_capacity(text.len() / 4 * 3), 0_u32, 0);
    for value in text.bytes().filter_map(value) {
        bits = (bits << 6) | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
        }
    }
    bytes
}

/// The items of the list `key` of a part; none where there is no list.
fn items<'a>(part: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    let list = part.get(key).and_then(Value::as_array);
    list.into_iter().flatten()
}

/// Tokens that a post-processor adds: of each piece of its templates those of the special token, which it must
/// have, for the library ends the program where it looks for one in vain.
fn special_ids(processor: &Value, depth: usize) -> Result<usize, String> {
    // Published ones are a sequence at most; a deeper list hides something.
    if depth > 4 {
        return Err("its post-processor has too many levels".to_owned());
    }
    let mut n_ids = 0_usize;
    for inner in items(processor, "processors") {
        n_ids = n_ids.saturating_add(special_ids(inner, depth + 1)?);
    }
    let tokens = processor.get("special_tokens");
    let ids_of = |id: &str| tokens?.get(id)?.get("ids")?.as_array();
    let mut longest = 0_usize;
    for template in ["single", "pair"] {
        let mut own = 0_usize;
        for piece in items(processor, template) {
            let special = piece
                .get("SpecialToken")
                .and_then(|token| token.get("id")?.as_str());
            if let Some(id) = special {
                let ids = ids_of(id);
                let ids = ids.ok_or_else(|| {
                    format!("its template has `{id}`, which is no special token of it")
                })?;
                own = own.saturating_add(ids.len());
            }
        }
        longest = longest.max(own);
    }
    Ok(n_ids.saturating_add(longest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check_file(file: &Value) -> Result<(), String> {
        check(file.to_string().as_bytes())
    }

    #[test]
    fn a_tokenizer_that_multiplies_texts_is_refused() {
        let replace =
            json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"});
        let nine =
            json!({"normalizer": {"type": "Sequence", "normalizers": vec![replace.clone(); 9]}});
        let said = check_file(&nine).expect_err("refused");
        assert!(said.contains("times as long"), "{said}");
        let llama = json!({"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]}});
        assert_eq!(check_file(&llama), Ok(()));
        let tokens = json!({"post_processor": {"type": "TemplateProcessing",
            "single": vec![json!({"SpecialToken": {"id": "a", "type_id": 0}}); 100],
            "special_tokens": {"a": {"id": "a", "ids": vec![1; 1000], "tokens": []}}}});
        let said = check_file(&tokens).expect_err("refused");
        assert!(said.contains("100000 tokens"), "{said}");
        // However deep it is hidden.
        let mut hidden = tokens["post_processor"].clone();
        for _ in 0..6 {
            hidden = json!({"type": "Sequence", "processors": [hidden]});
        }
        assert!(check_file(&json!({"post_processor": hidden})).is_err());
    }

    #[test]
    fn what_would_end_the_program_is_refused() {
        // Found by mutation: a decoder that is no JSON, and a token that the template has alone.
        let said = check(br#"{"decoder": {ull, "model": {}}"#).expect_err("refused");
        assert!(said.contains("key must be a string"), "{said}");
        let template = |id: &str| {
            json!({"post_processor": {"type": "TemplateProcessing", "pair": [],
                "single": [{"SpecialToken": {"id": id, "type_id": 0}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}}})
        };
        assert_eq!(check_file(&template("[CLS]")), Ok(()));
        let said = check_file(&template("lCLS]")).expect_err("refused");
        assert!(said.contains("`lCLS]`"), "{said}");
    }

    #[test]
    fn a_table_of_characters_with_a_long_replacement_is_refused() {
        // An index of no bytes, then `ab` and `c`.
        let table = |text: &str| json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}});
        assert_eq!(decoded("AAAAAGFiAGMA"), b"\0\0\0\0ab\0c\0");
        assert_eq!(check_file(&table("AAAAAGFiAGMA")), Ok(()));
        let long = format!("AAAAAGFi{}AGMA", "YWFh".repeat(100));
        let said = check_file(&table(&long)).expect_err("refused");
        assert!(said.contains("302 times as long"), "{said}");
        assert_eq!(check_file(&table("")), Ok(()));
    }
}
