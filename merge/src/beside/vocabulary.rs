//! The tokens of a model, and the row of its embeddings for each.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Companions, Content, bad};
use crate::{Result, io};

/// No vocabulary is larger; an id beyond would only make rows of nothing.
const MAX_TOKENS: u64 = 1 << 24;

/// Ids that no token has, beside four for each that one has: embeddings have a row for each.
const MAX_HOLES: usize = 1 << 16;

/// The tokens of a model and their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Vocabulary(pub(crate) BTreeMap<String, usize>);

impl Vocabulary {
    /// Of a `tokenizer.json`, added tokens included.
    pub(crate) fn of_tokenizer(tokenizer: &Value, path: &std::path::Path) -> Result<Self> {
        let bad = |reason: String| bad(path, reason);
        let mut tokens = BTreeMap::new();
        match &tokenizer["model"]["vocab"] {
            Value::Object(vocabulary) => {
                for (token, id) in vocabulary {
                    let id =
                        valid(id).ok_or_else(|| bad(format!("the id of {token:?} is {id}")))?;
                    tokens.insert(token.clone(), id);
                }
            }
            Value::Array(pairs) => {
                for (id, pair) in pairs.iter().enumerate() {
                    let Some(token) = pair[0].as_str() else {
                        return Err(bad(format!("token {id} has no text")).into());
                    };
                    tokens.insert(token.to_owned(), id);
                }
            }
            _ => return Err(bad("no `model.vocab` in it".into()).into()),
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            match (added["content"].as_str(), valid(&added["id"])) {
                (Some(token), Some(id)) => tokens.insert(token.to_owned(), id),
                _ => return Err(bad(format!("not an added token: {added}")).into()),
            };
        }
        let n_rows = tokens.values().max().map_or(0, |last| last + 1);
        if n_rows > MAX_HOLES + 4 * tokens.len() {
            let n = tokens.len();
            return Err(bad(format!("{n} tokens have ids up to {}", n_rows - 1)).into());
        }
        Ok(Self(tokens))
    }

    /// Rows that embeddings of these tokens need.
    pub(crate) fn n_rows(&self) -> usize {
        self.0.values().max().map_or(0, |last| last + 1)
    }

    /// The tokens by their ids.
    pub(crate) fn by_id(&self) -> Vec<(usize, &str)> {
        let mut tokens: Vec<(usize, &str)> = (self.0.iter())
            .map(|(token, &id)| (id, token.as_str()))
            .collect();
        tokens.sort_unstable();
        tokens
    }

    /// The difference of two vocabularies, as a clause; `None` if there is none.
    fn difference(&self, other: &Self) -> Option<String> {
        let all = self.0.keys().chain(other.0.keys());
        let differs = |token: &&String| self.0.get(*token) != other.0.get(*token);
        let different: std::collections::BTreeSet<&String> = all.filter(differs).collect();
        let first = different.first()?;
        let said = |vocabulary: &Self| match vocabulary.0.get(*first) {
            Some(id) => format!("has the id {id}"),
            None => "is missing".to_owned(),
        };
        let n = different.len();
        Some(format!(
            "`{first}` {} in the one and {} in the other ({n} token{} differ)",
            said(self),
            said(other),
            if n == 1 { "" } else { "s" },
        ))
    }
}

fn valid(id: &Value) -> Option<usize> {
    let id = id.as_u64().filter(|&id| id < MAX_TOKENS)?;
    usize::try_from(id).ok()
}

/// A model's `tokenizer.json`.
#[derive(Clone, Debug)]
pub(crate) struct Tokenizer {
    /// Its contents.
    pub(crate) json: Value,
    /// Its tokens.
    pub(crate) vocabulary: Vocabulary,
}

impl Tokenizer {
    /// That of a model, if it has one.
    pub(crate) fn of(companions: &Companions) -> Result<Option<Self>> {
        let Some((path, text)) = companions.text("tokenizer.json")? else {
            return Ok(None);
        };
        let json: Value =
            serde_json::from_str(&text).map_err(|error| bad(&path, error.to_string()))?;
        let vocabulary = Vocabulary::of_tokenizer(&json, &path)?;
        Ok(Some(Self { json, vocabulary }))
    }
}

/// Files that hold a vocabulary, the better known first.
const HOLDERS: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
];

/// The difference of two models' vocabularies, by the best file that both have.
pub(crate) fn difference(one: &Companions, other: &Companions) -> Result<Option<String>> {
    let both = |name: &&&str| one.0.contains_key(**name) && other.0.contains_key(**name);
    let Some(&name) = HOLDERS.iter().find(both) else {
        return Ok(None);
    };
    if is_same(&one.0[name], &other.0[name])? {
        return Ok(None);
    }
    match name {
        "tokenizer.json" => match (Tokenizer::of(one)?, Tokenizer::of(other)?) {
            (Some(one), Some(other)) => Ok(one.vocabulary.difference(&other.vocabulary)),
            _ => Ok(None),
        },
        _ => Ok(Some(format!("their {name} is not the same"))),
    }
}

/// Whether two files have the same bytes.
fn is_same(one: &Content, other: &Content) -> Result<bool> {
    if let (Content::Copy(one), Content::Copy(other)) = (one, other) {
        if one == other {
            return Ok(true);
        }
        if io::open_bytes(one)?.n_bytes() != io::open_bytes(other)?.n_bytes() {
            return Ok(false);
        }
    }
    Ok(one.bytes()? == other.bytes()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vocabulary(tokenizer: &Value) -> Result<Vocabulary> {
        Vocabulary::of_tokenizer(tokenizer, std::path::Path::new("tokenizer.json"))
    }

    #[test]
    fn tokens_are_read_from_every_kind_of_model() {
        let added = json!([{"id": 2, "content": "<x>"}]);
        let words = json!({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": added});
        let pieces = json!({"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": added});
        let words = vocabulary(&words).expect("a vocabulary");
        assert_eq!(words, vocabulary(&pieces).expect("a vocabulary"));
        assert_eq!(words.by_id(), [(0, "a"), (1, "b"), (2, "<x>")]);
        assert_eq!(words.n_rows(), 3);
    }

    #[test]
    fn ids_that_no_embedding_could_have_are_refused() {
        for id in [json!(-1), json!(1.5), json!("7"), json!(1_u64 << 40)] {
            let said = vocabulary(&json!({"model": {"vocab": {"a": id}}}));
            assert!(said.expect_err("refused").to_string().contains("\"a\""));
        }
        assert!(vocabulary(&json!({})).is_err());
        assert!(vocabulary(&json!({"model": {"vocab": [[1]]}})).is_err());
    }

    #[test]
    fn a_difference_is_told_by_its_first_token() {
        let of = |pairs: &[(&str, usize)]| {
            Vocabulary(pairs.iter().map(|&(t, id)| (t.to_owned(), id)).collect())
        };
        let (one, other) = (of(&[("a", 0), ("b", 1)]), of(&[("a", 0), ("c", 1)]));
        assert_eq!(one.difference(&one), None);
        assert_eq!(
            one.difference(&other).expect("different"),
            "`b` has the id 1 in the one and is missing in the other (2 tokens differ)"
        );
    }
}
