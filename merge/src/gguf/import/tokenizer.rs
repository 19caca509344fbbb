//! tokenizer.json and tokenizer_config.json.
//!
//! Source: the form of tokenizers' `tokenizer.json`; llama.cpp's `llama-vocab.cpp` for the meaning of names.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::{bytes, file, sentencepiece};
use crate::Result;
use crate::beside::Companion;
use crate::gguf::export::{CONTROL, NORMAL, USER_DEFINED};
use crate::gguf::value;
use crate::io::PlainValue;
use crate::io::gguf::Arrays;

/// The reader of the arrays, for messages.
pub(super) const WANTED: &str = "tokenizer.json";

/// Special tokens: the setting, the entry.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
];

/// Files, and notes on what they lack.
#[derive(Default)]
pub(super) struct Made {
    pub(super) files: Vec<Companion>,
    pub(super) notes: Vec<String>,
}

/// A kind of vocabulary that is written.
pub(super) struct Kind {
    /// Its part of tokenizer.json, without the tokens that are added and put around texts.
    pub(super) parts: Value,
    /// Whether a token begins each text unless the metadata say so.
    pub(super) begins: bool,
}

/// A vocabulary that is not written, and why.
pub(super) struct Unwritten(pub(super) String);

/// The files of the tokenizer; a note where none are written.
///
/// # Errors
/// When an array cannot be read or is of another type.
pub(super) fn files(arrays: &Arrays, facts: &Facts<'_>) -> Result<Made> {
    let missing = |why: String| Made {
        files: Vec::new(),
        notes: vec![format!(
            "no tokenizer is written, for {why}: take the files of the model that the file was made of"
        )],
    };
    let kind = match value(facts.info(), "tokenizer.ggml.model") {
        Some(PlainValue::Text(kind)) => kind.as_str(),
        _ => "no_vocab",
    };
    let Some(tokens) = arrays.texts("tokenizer.ggml.tokens", WANTED)? else {
        return Ok(missing("the file has no tokens".into()));
    };
    let kinds = arrays.integers("tokenizer.ggml.token_type", WANTED)?;
    let kinds = kinds.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
    if kinds.len() != tokens.len() {
        let found = format!("has {} numbers for {} tokens", kinds.len(), tokens.len());
        return Err(facts.wrong("tokenizer.ggml.token_type", &found));
    }
    let vocabulary = Vocabulary { tokens, kinds };
    let special = vocabulary.special(facts)?;
    let made = match kind {
        "gpt2" => bytes::parts(arrays, facts, &vocabulary)?,
        "llama" => sentencepiece::parts(arrays, facts, &vocabulary, special.get("unk_token"))?,
        other => Err(Unwritten(format!(
            "its vocabulary is of the kind `{other}`"
        ))),
    };
    let Kind { mut parts, begins } = match made {
        Ok(kind) => kind,
        Err(Unwritten(why)) => return Ok(missing(why)),
    };
    let adds = |side: &str, default: bool| match value(
        facts.info(),
        &format!("tokenizer.ggml.add_{side}_token"),
    ) {
        Some(PlainValue::Bool(adds)) => *adds,
        _ => default,
    };
    let before = special.get("bos_token").filter(|_| adds("bos", begins));
    let behind = special.get("eos_token").filter(|_| adds("eos", false));
    parts["version"] = json!("1.0");
    parts["truncation"] = Value::Null;
    parts["padding"] = Value::Null;
    parts["added_tokens"] = vocabulary.added();
    parts["post_processor"] = vocabulary.around(before, behind);
    let mut settings = Map::from_iter([
        (
            "tokenizer_class".to_owned(),
            json!("PreTrainedTokenizerFast"),
        ),
        ("clean_up_tokenization_spaces".to_owned(), json!(false)),
        (
            "model_max_length".to_owned(),
            json!(facts.count("context_length")?),
        ),
    ]);
    settings.extend(special);
    if let Some(template) = arrays.text("tokenizer.chat_template")? {
        settings.insert("chat_template".to_owned(), json!(template));
    }
    Ok(Made {
        files: vec![
            file("tokenizer.json", &parts),
            file("tokenizer_config.json", &Value::Object(settings)),
        ],
        notes: Vec::new(),
    })
}

/// Tokens in the order of their ids, with their types.
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) kinds: Vec<i32>,
}

impl Vocabulary {
    /// The tokens of some types, each with its id.
    pub(super) fn of_kinds(&self, wanted: &'static [i32]) -> impl Iterator<Item = (usize, &str)> {
        let tokens = self.tokens.iter().zip(&self.kinds).enumerate();
        let chosen = tokens.filter(move |(_, (_, kind))| wanted.contains(kind));
        chosen.map(|(id, (token, _))| (id, token.as_str()))
    }

    /// The ids of the tokens of some types.
    pub(super) fn ids(&self, wanted: &'static [i32]) -> BTreeMap<&str, usize> {
        self.of_kinds(wanted)
            .map(|(id, token)| (token, id))
            .collect()
    }

    /// The tokens that the metadata name, by their settings.
    fn special(&self, facts: &Facts<'_>) -> Result<Map<String, Value>> {
        let mut special = Map::new();
        for (setting, entry) in SPECIAL {
            let key = format!("tokenizer.ggml.{entry}");
            let id = match value(facts.info(), &key) {
                None => continue,
                Some(PlainValue::Integer(id)) => usize::try_from(*id).ok(),
                Some(_) => None,
            };
            let token = id.and_then(|id| self.tokens.get(id));
            let token = token.ok_or_else(|| facts.wrong(&key, "is no number of a token"))?;
            special.insert(setting.to_owned(), json!(token));
        }
        Ok(special)
    }

    /// Tokens that are found in texts before these are cut into words.
    fn added(&self) -> Value {
        let tokens = self.of_kinds(&[CONTROL, USER_DEFINED]).map(|(id, token)| {
            json!({
                "id": id,
                "content": token,
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": self.kinds[id] == CONTROL,
            })
        });
        tokens.collect()
    }

    /// The step that puts tokens before and behind every text.
    fn around(&self, before: Option<&Value>, behind: Option<&Value>) -> Value {
        if before.is_none() && behind.is_none() {
            return Value::Null;
        }
        let special = |token: &Value| json!({ "SpecialToken": { "id": token, "type_id": 0 } });
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let one = |name: &str| -> Vec<Value> {
            let first = before.map(special).into_iter();
            first
                .chain([text(name)])
                .chain(behind.map(special))
                .collect()
        };
        let mut ids = Map::new();
        for token in before.into_iter().chain(behind) {
            let name = token.as_str().unwrap_or_default();
            let id = self.tokens.iter().position(|own| own == name);
            ids.insert(
                name.to_owned(),
                json!({ "id": name, "ids": [id], "tokens": [name] }),
            );
        }
        let pair = [one("A"), one("B")].concat();
        json!({
            "type": "TemplateProcessing",
            "single": one("A"),
            "pair": pair,
            "special_tokens": ids,
        })
    }
}
