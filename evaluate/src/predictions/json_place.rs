//! Locates a fault in a JSON file by its row, id and key.

/// Keys that name an entry of a list, in the order in which they are looked for.
const IDS: [&str; 4] = ["question_id", "image_id", "identifier", "id"];

/// Containers that are looked at; whatever is deeper within those counts as part of them.
const MAX_OPEN: usize = 16;

/// A container that is open at the fault.
enum Open {
    /// A list, with the number of the item.
    List(usize),
    /// An object, with the last key and where the object begins.
    Object(String, usize),
}

/// A place in a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The item of the outermost list, from 0.
    pub(super) row: Option<usize>,
    /// Its id: key and value.
    pub(super) id: Option<(String, String)>,
    /// The key whose value is wrong.
    pub(super) key: Option<String>,
    /// A number that JSON does not have stands here.
    pub(super) is_not_a_number: bool,
}

impl Place {
    /// The place that a JSON error names by line and column, both from 1.
    pub(super) fn of(text: &str, line: usize, column: usize) -> Self {
        let start: usize = (text.split_inclusive('\n').take(line.saturating_sub(1)))
            .map(str::len)
            .sum();
        let at = (start + column.saturating_sub(1)).min(text.len());
        let open = open_at(&text.as_bytes()[..at]);
        let row = open.iter().find_map(|open| match open {
            Open::List(row) => Some(*row),
            Open::Object(..) => None,
        });
        let objects = open.iter().filter_map(|open| match open {
            Open::Object(key, start) => Some((key.clone(), *start)),
            Open::List(_) => None,
        });
        let objects: Vec<(String, usize)> = objects.collect();
        let id = objects
            .iter()
            .rev()
            .find_map(|(_, start)| id_of(&text[*start..]));
        let near = text
            .as_bytes()
            .get(at.saturating_sub(9)..)
            .unwrap_or_default();
        let near = &near[..near.len().min(18)];
        let has = |word: &[u8]| near.windows(word.len()).any(|part| part == word);
        Self {
            row,
            id,
            key: objects
                .last()
                .map(|(key, _)| key.clone())
                .filter(|key| !key.is_empty()),
            is_not_a_number: has(b"NaN") || has(b"Infinity"),
        }
    }

    /// The place as the beginning of a sentence.
    pub(super) fn in_words(&self) -> String {
        let row = self.row.map(|row| format!("row {row}"));
        let id = self.id.as_ref().map(|(key, id)| format!("{key} {id}"));
        let entry = match (row, id) {
            (Some(row), Some(id)) => format!("{row} ({id}): "),
            (Some(only), None) | (None, Some(only)) => format!("{only}: "),
            (None, None) => String::new(),
        };
        match &self.key {
            Some(key) => format!("{entry}`{key}`: "),
            None => entry,
        }
    }
}

/// The lists and objects that are open after some bytes.
fn open_at(bytes: &[u8]) -> Vec<Open> {
    let mut open: Vec<Open> = Vec::new();
    let (mut at, mut n_deeper) = (0, 0_usize);
    while at < bytes.len() {
        match bytes[at] {
            b'[' | b'{' if open.len() == MAX_OPEN => n_deeper += 1,
            b']' | b'}' if n_deeper > 0 => n_deeper -= 1,
            b'[' => open.push(Open::List(0)),
            b'{' => open.push(Open::Object(String::new(), at)),
            b']' | b'}' => {
                open.pop();
            }
            b',' if n_deeper == 0 => {
                if let Some(Open::List(row)) = open.last_mut() {
                    *row += 1;
                }
            }
            b'"' if n_deeper > 0 => {
                at = string_end(bytes, at);
                continue;
            }
            b'"' => {
                let end = string_end(bytes, at);
                // A string that the text breaks off ends behind it.
                let rest = bytes.get(end..).unwrap_or_default();
                let is_key = rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b':');
                if let (true, Some(Open::Object(key, _))) = (is_key, open.last_mut()) {
                    let inner = &bytes[at + 1..end - 1];
                    *key = String::from_utf8_lossy(inner).into_owned();
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    open
}

/// The place after the string that begins at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() {
        match bytes[end] {
            b'\\' => end += 2,
            b'"' => return end + 1,
            _ => end += 1,
        }
    }
    bytes.len().max(at + 2)
}

/// The most of an id that is shown.
const MAX_ID_BYTES: usize = 80;

/// The id in an object that begins a text, where it has one at its own level.
fn id_of(object: &str) -> Option<(String, String)> {
    let bytes = object.as_bytes();
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut depth, mut at) = (0_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => break,
            b'}' | b']' => depth -= 1,
            b'"' => {
                let end = string_end(bytes, at).min(bytes.len());
                let rest = object.get(end..)?.trim_start();
                let key = object.get(at + 1..end.saturating_sub(1))?;
                if let (1, Some(value), true) = (depth, rest.strip_prefix(':'), IDS.contains(&key))
                {
                    let value = value.trim_start();
                    let n = value.find([',', '}', '\n']).unwrap_or(value.len());
                    let shown = &value[..value.floor_char_boundary(n.min(MAX_ID_BYTES))];
                    found.push((key.to_owned(), shown.trim().to_owned()));
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    IDS.iter()
        .find_map(|id| found.iter().find(|(key, _)| key == id).cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str, at: &str) -> String {
        let column = text.find(at).expect("it is there") + 1;
        Place::of(text, 1, column).in_words()
    }

    #[test]
    fn an_entry_is_named_by_row_id_and_key() {
        let list = r#"[{"question_id": 7, "answer": "a, b"}, {"answer": NaN, "question_id": 8}]"#;
        assert_eq!(words(list, "NaN"), "row 1 (question_id 8): `answer`: ");
        let nested = r#"{"info": [1], "annotations": [{"id": 3, "answers": [{"answer": 2}]}]}"#;
        assert_eq!(words(nested, "2}"), "row 0 (id 3): `answer`: ");
        assert_eq!(words(r#"[["a/b", "c"], ["d", NaN]]"#, "NaN"), "row 1: ");
        assert!(Place::of(list, 1, list.find("NaN").expect("there") + 1).is_not_a_number);
    }

    #[test]
    fn a_long_id_is_cut_between_two_letters() {
        let list = format!(r#"[{{"id": "a{}", "x": NaN}}]"#, "é".repeat(100));
        let said = words(&list, "NaN");
        assert_eq!(said, format!("row 0 (id \"a{}): `x`: ", "é".repeat(39)));
    }

    #[test]
    fn a_place_below_a_million_levels_is_found_at_once() {
        let begun = std::time::Instant::now();
        for (level, end) in [(r#"{"a":"#, "}"), ("[", "]")] {
            let deep = format!(
                r#"[{{"id": 1, "x": {}1{}, "y": NaN}}, {{"id": 2, "x": {}"#,
                level.repeat(1_000_000),
                end.repeat(1_000_000),
                level.repeat(1_000_000),
            );
            assert_eq!(words(&deep, "NaN"), "row 0 (id 1): `y`: ");
            let last = Place::of(&deep, 1, deep.len()).in_words();
            assert!(last.starts_with("row 1 (id 2): "), "{last}");
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(20));
    }

    #[test]
    fn damaged_text_has_a_place_too() {
        for text in ["", "{", "\"", "[\"\\", "{\"a", "]]]", "{\"a\":\"\\"] {
            for column in 0..text.len() + 3 {
                for line in [1, 9] {
                    let words = Place::of(text, line, column).in_words();
                    let is_whole = words.is_empty() || words.ends_with(": ");
                    assert!(is_whole, "{text:?}, {line}:{column}: {words:?}");
                }
            }
        }
    }
}
