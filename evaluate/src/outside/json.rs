//! JSON as Python writes it, and numbers in it.

use std::borrow::Cow;

use serde_json::{Map, Value};

use crate::error::OutsideFault;

/// The most keys that a message names.
const MAX_NAMED: usize = 8;

/// The most values that are looked through for keys to name: the file may be anything.
const MAX_LOOKED_AT: usize = 10_000;

/// Words that Python's `json` writes for floating point values that JSON lacks.
const NO_NUMBERS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// JSON of a text. Where Python wrote `NaN` or `Infinity`, the value is a string of that name, so that it is no number
/// and a message can name it.
///
/// # Errors
/// When the text is no JSON.
pub fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|fault| match quoted(text) {
        Cow::Owned(quoted) => serde_json::from_str(&quoted),
        Cow::Borrowed(_) => Err(fault),
    })
}

/// A text with quotes around the words of [`NO_NUMBERS`] that are not in a string.
fn quoted(text: &str) -> Cow<'_, str> {
    if !NO_NUMBERS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text;
    let (mut is_string, mut is_escaped) = (false, false);
    while let Some(c) = rest.chars().next() {
        let word = NO_NUMBERS.iter().find(|&&word| rest.starts_with(word));
        if let (false, Some(word)) = (is_string, word) {
            out.extend(["\"", word, "\""]);
            rest = &rest[word.len()..];
            continue;
        }
        is_string ^= c == '"' && !is_escaped;
        is_escaped = is_string && c == '\\' && !is_escaped;
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

/// The value under a path of keys with dots between them. A key may hold dots itself, and an index stands for an element
/// of a list.
#[must_use]
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    if path.is_empty() {
        return Some(value);
    }
    let parts: Vec<&str> = path.split('.').collect();
    find(value, &parts)
}

/// As [`at`], in the fields of an object.
#[must_use]
pub fn at_fields<'a>(fields: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let parts: Vec<&str> = path.split('.').collect();
    find_in(fields, &parts)
}

fn find_in<'a>(fields: &'a Map<String, Value>, parts: &[&str]) -> Option<&'a Value> {
    (1..=parts.len()).find_map(|n| {
        let inner = fields.get(&parts[..n].join("."))?;
        find(inner, &parts[n..])
    })
}

fn find<'a>(value: &'a Value, parts: &[&str]) -> Option<&'a Value> {
    if parts.is_empty() {
        return Some(value);
    }
    match value {
        Value::Object(map) => find_in(map, parts),
        Value::Array(list) => find(list.get(parts[0].parse::<usize>().ok()?)?, &parts[1..]),
        _ => None,
    }
}

/// The number under a path of keys, as [`at`] finds it. Without a path the JSON is a number, or an object with one number
/// in it. `origin` says in messages where the JSON comes from.
///
/// # Errors
/// [`OutsideFault::NoKey`] with the nearest keys, [`OutsideFault::NoNumber`] for NaN, infinities and everything else that
/// is no number, [`OutsideFault::SeveralNumbers`] without a path.
pub fn number(value: &Value, path: Option<&str>, origin: &str) -> Result<f64, OutsideFault> {
    let origin = || origin.to_owned();
    let found = match path {
        Some(path) => at(value, path).ok_or_else(|| OutsideFault::NoKey {
            origin: origin(),
            key: path.to_owned(),
            known: nearest(path, numbers(value)),
        })?,
        None if value.is_object() => {
            let mut known = numbers(value);
            if known.len() != 1 {
                known.truncate(MAX_NAMED);
                return Err(OutsideFault::SeveralNumbers {
                    origin: origin(),
                    known: known.join(", "),
                });
            }
            at(value, &known[0]).unwrap_or(value)
        }
        None => value,
    };
    let number = found.as_f64().filter(|number| number.is_finite());
    number.ok_or_else(|| OutsideFault::NoNumber {
        origin: origin(),
        key: path
            .map(|path| format!(" under `{path}`"))
            .unwrap_or_default(),
        found: match found {
            Value::String(word) if NO_NUMBERS.contains(&word.as_str()) => word.clone(),
            Value::Object(_) => "an object".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            other => other.to_string().chars().take(80).collect(),
        },
    })
}

/// Paths of all numbers.
fn numbers(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![(String::new(), value)];
    for _ in 0..MAX_LOOKED_AT {
        let Some((path, value)) = rest.pop() else {
            break;
        };
        let inner = |key: &str| match path.is_empty() {
            true => key.to_owned(),
            false => format!("{path}.{key}"),
        };
        match value {
            Value::Number(_) => found.push(path),
            Value::Object(map) => {
                let of_map = map.iter().rev();
                rest.extend(of_map.map(|(key, value)| (inner(key), value)));
            }
            _ => {}
        }
    }
    found
}

/// Those that are most like a path.
fn nearest(path: &str, mut known: Vec<String>) -> String {
    // Most of all those that go on where it ends.
    known.sort_by_key(|other| {
        let goes_on = other.starts_with(path);
        (!goes_on, strsim::damerau_levenshtein(path, other))
    });
    known.truncate(MAX_NAMED);
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_may_hold_dots_and_commas() {
        let value = parse(r#"{"results": {"a.b": {"acc,none": 0.5}, "a": {"c": 1}, "l": [3, 4]}}"#);
        let value = value.expect("JSON");
        let found = |path| number(&value, Some(path), "it").map_err(|fault| fault.to_string());
        assert_eq!(found("results.a.b.acc,none"), Ok(0.5));
        assert_eq!(found("results.a.c"), Ok(1.0));
        assert_eq!(found("results.l.1"), Ok(4.0));
        assert_eq!(
            found("results.a.b.acc"),
            Err(
                "it: has no `results.a.b.acc`; its numbers are results.a.b.acc,none, results.a.c"
                    .to_owned()
            )
        );
    }

    #[test]
    fn one_number_needs_no_key_and_several_do() {
        let found = |text| number(&parse(text).expect("JSON"), None, "it");
        assert_eq!(found("0.25").ok(), Some(0.25));
        assert_eq!(found(r#"{"name": "x", "score": 3}"#).ok(), Some(3.0));
        let fault = found(r#"{"a": 1, "b": {"c": 2}}"#).expect_err("refused");
        assert!(fault.to_string().contains("a, b.c"), "{fault}");
    }

    #[test]
    fn nan_is_no_number_but_a_text_that_says_so_is_a_text() {
        let value = parse(r#"{"a": NaN, "b": "NaN \" NaN", "c": [-Infinity, 1]}"#).expect("JSON");
        assert_eq!(value["b"], "NaN \" NaN");
        let fault = number(&value, Some("a"), "it").expect_err("refused");
        assert_eq!(
            fault.to_string(),
            "it: has NaN under `a`, which is no finite number"
        );
        assert!(number(&value, Some("c.0"), "it").is_err());
        assert_eq!(number(&value, Some("c.1"), "it").ok(), Some(1.0));
        assert!(parse("{NaN").is_err());
    }
}
