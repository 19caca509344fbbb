//! A tokenizer with the tokens of others, and with new ones.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::vocabulary::{Tokenizer, Vocabulary};
use super::{Companions, Content, bad, config};
use crate::Result;

/// The tokens of all, and the settings of those that the first lacks, in the order of their new ids.
pub(crate) struct Union {
    /// All tokens.
    pub(crate) vocabulary: Vocabulary,
    /// Entries of `added_tokens` for tokens that the first tokenizer lacks.
    added: Vec<Value>,
    /// The next new id.
    next: usize,
}

impl Union {
    /// The first tokenizer keeps its ids; tokens that others have besides get the next ones, other by
    /// other: first those of their models, then those that were added to them, each by id. At last come
    /// `new` tokens that none has.
    pub(crate) fn of<'a>(
        first: &Tokenizer,
        others: &[&Tokenizer],
        new: impl Iterator<Item = &'a str>,
    ) -> Self {
        let mut union = Self {
            vocabulary: first.vocabulary.clone(),
            added: Vec::new(),
            next: first.vocabulary.n_rows(),
        };
        for other in others {
            let settings = settings(&other.json);
            let tokens = other.vocabulary.by_id();
            let (late, early): (Vec<_>, Vec<_>) =
                (tokens.into_iter()).partition(|(_, token)| settings.contains_key(token));
            for (_, token) in early.into_iter().chain(late) {
                union.add(token, settings.get(token).copied());
            }
        }
        for token in new {
            union.add(token, None);
        }
        union
    }

    /// Gives a token the next id, unless it has one.
    fn add(&mut self, token: &str, settings: Option<&Value>) {
        if self.vocabulary.0.contains_key(token) {
            return;
        }
        let mut entry = settings.cloned().unwrap_or_else(|| {
            json!({
                "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": true, "special": false,
            })
        });
        entry["id"] = json!(self.next);
        self.added.push(entry);
        self.vocabulary.0.insert(token.to_owned(), self.next);
        self.next += 1;
    }

    /// The first tokenizer's files, with the other tokens added.
    pub(crate) fn extend(&self, first: &Tokenizer, companions: &mut Companions) -> Result<()> {
        if self.added.is_empty() {
            return Ok(());
        }
        let mut tokenizer = first.json.clone();
        match tokenizer
            .get_mut("added_tokens")
            .and_then(Value::as_array_mut)
        {
            Some(list) => list.extend(self.added.iter().cloned()),
            None => tokenizer["added_tokens"] = json!(self.added),
        }
        let text = Content::json(&tokenizer);
        companions.0.insert("tokenizer.json".into(), text);
        self.extend_table(companions, "tokenizer_config.json", |config, entry, id| {
            let mut entry = entry.clone();
            if let Some(entry) = entry.as_object_mut() {
                entry.shift_remove("id");
            }
            if let Some(table) = config.get_mut("added_tokens_decoder") {
                table[id.to_string()] = entry;
            }
        })?;
        self.extend_table(companions, "added_tokens.json", |table, entry, id| {
            if let Some(token) = entry["content"].as_str() {
                table[token] = json!(id);
            }
        })
    }

    /// Puts every added token into an object of another file, if that file is there.
    fn extend_table(
        &self,
        companions: &mut Companions,
        name: &str,
        put: impl Fn(&mut Value, &Value, u64),
    ) -> Result<()> {
        let Some((path, text)) = companions.text(name)? else {
            return Ok(());
        };
        let mut json = config::parsed(&text, &path)?;
        let is_table = json
            .get("added_tokens_decoder")
            .is_none_or(Value::is_object);
        if !is_table {
            return Err(bad(&path, "not an object").into());
        }
        for entry in &self.added {
            put(&mut json, entry, entry["id"].as_u64().unwrap_or_default());
        }
        companions.0.insert(name.to_owned(), Content::json(&json));
        Ok(())
    }
}

/// Added tokens and their settings.
fn settings(tokenizer: &Value) -> BTreeMap<&str, &Value> {
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    added
        .filter_map(|entry| Some((entry["content"].as_str()?, entry)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer(vocabulary: Value, added: Value) -> Tokenizer {
        let json = json!({"model": {"vocab": vocabulary}, "added_tokens": added});
        Tokenizer {
            vocabulary: Vocabulary::of_tokenizer(&json, "tokenizer.json".as_ref()).expect("valid"),
            json,
        }
    }

    #[test]
    fn a_union_keeps_the_firsts_ids_and_appends_what_it_lacks() {
        let first = tokenizer(json!({"a": 0, "b": 1}), json!([]));
        let special = json!([{"id": 0, "content": "<s>", "special": true}]);
        let second = tokenizer(json!({"b": 1, "d": 3, "c": 2}), special);
        let union = Union::of(&first, &[&second], ["a", "<new>"].into_iter());
        let expected = [
            (0, "a"),
            (1, "b"),
            (2, "c"),
            (3, "d"),
            (4, "<s>"),
            (5, "<new>"),
        ];
        assert_eq!(union.vocabulary.by_id(), expected);
        let config = json!({"added_tokens_decoder": {}}).to_string();
        let mut files = Companions::default();
        for (name, text) in [
            ("tokenizer_config.json", config),
            ("added_tokens.json", "{}".into()),
        ] {
            files.0.insert(name.into(), Content::Text(text));
        }
        union.extend(&first, &mut files).expect("extended");
        let read = |name: &str| -> Value {
            let (_, text) = files.text(name).expect("readable").expect("there");
            serde_json::from_str(&text).expect("JSON")
        };
        let written = Tokenizer::of(&files).expect("valid").expect("there");
        assert_eq!(written.vocabulary, union.vocabulary);
        assert_eq!(written.json["added_tokens"][2]["special"], true);
        let decoder = &read("tokenizer_config.json")["added_tokens_decoder"];
        assert_eq!(decoder["3"]["content"], "d");
        assert_eq!(decoder["3"].get("id"), None);
        assert_eq!(read("added_tokens.json")["<s>"], 4);
        assert_eq!(read("added_tokens.json")["<new>"], 5);
    }
}
