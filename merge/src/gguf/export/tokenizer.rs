//! The tokenizer of a model as the metadata of a GGUF file.
//!
//! Byte-level vocabularies come from `tokenizer.json`. Programs that run GGUF files know ways to cut texts into words by
//! names, so that only the patterns of [`PATTERNS`] are written. Vocabularies of SentencePiece come from
//! `tokenizer.model`, which alone has their scores.
//!
//! Source: `set_vocab` of the classes of llama.cpp's `convert_hf_to_gguf.py`, `SpecialVocab` of gguf-py.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{integer, sentencepiece};
use crate::beside::Companions;
use crate::io::GgufHead;
use crate::{ExportFault, Result};

/// The types of tokens in GGUF files.
pub(in crate::gguf) const NORMAL: i32 = 1;
pub(in crate::gguf) const CONTROL: i32 = 3;
pub(in crate::gguf) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;

/// Patterns that cut texts into words, with the name of each, and whether texts are composed (NFC) first.
pub(in crate::gguf) const PATTERNS: [(&str, &str, bool); 2] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
        true,
    ),
];

/// The name of the pattern that GPT-2 has, which `tokenizers` has in code.
pub(in crate::gguf) const OF_GPT2: &str = "gpt-2";

/// The name of the same where each digit is a word, as in SmolLM and Granite. Programs have several names for it.
pub(in crate::gguf) const OF_DIGITS: &str = "refact";

/// The most tokens: several times those of any model.
const MAX_TOKENS: usize = 1 << 22;

/// Special tokens: the setting of tokenizer_config.json, the entry.
const SPECIAL: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// Tokens in the order of their ids, with their types.
#[derive(Default)]
pub(super) struct Tokens {
    pub(super) texts: Vec<Vec<u8>>,
    pub(super) kinds: Vec<i32>,
}

impl Tokens {
    /// Fills up to this number of tokens with unused ones.
    pub(super) fn fill(&mut self, n_tokens: usize) {
        for id in self.texts.len()..n_tokens {
            self.texts.push(format!("[PAD{id}]").into_bytes());
            self.kinds.push(UNUSED);
        }
    }

    fn id(&self, text: &str) -> Option<usize> {
        self.texts.iter().position(|own| own == text.as_bytes())
    }
}

/// Writes the tokenizer beside the model at `path`.
///
/// # Errors
/// [`ExportFault::Tokenizer`] when there is none, or one of a kind that a GGUF file cannot hold.
pub(super) fn write(
    path: &Path,
    companions: &Companions,
    config: &Value,
    head: &mut GgufHead,
) -> Result<()> {
    let n_tokens = integer(config, "vocab_size").unwrap_or(0) as usize;
    let settings = companions.settings("tokenizer_config.json")?;
    let settings = settings.unwrap_or(Value::Null);
    let refused = |reason: &str| ExportFault::Tokenizer {
        path: path.into(),
        reason: reason.to_owned(),
    };
    let json = companions.text("tokenizer.json")?;
    let tokens = if let Some(content) = companions.0.get("tokenizer.model") {
        sentencepiece::write(path, &content.bytes()?, n_tokens, &settings, head)?
    } else if let Some((file, text)) = &json {
        write_bytes(file, text, n_tokens, head)?
    } else {
        let reason = "there is neither tokenizer.json nor tokenizer.model beside the weights";
        return Err(refused(reason).into());
    };
    head.i32s("tokenizer.ggml.token_type", &tokens.kinds);
    head.texts("tokenizer.ggml.tokens", &tokens.texts);
    for (setting, entry) in SPECIAL {
        let text = settings
            .get(setting)
            .and_then(|value| value.as_str().or_else(|| value.get("content")?.as_str()));
        let said = match text {
            Some(text) => tokens.id(text).map(|id| id as u32),
            None => first_integer(config, &format!("{setting}_id")),
        };
        if let Some(id) = said.filter(|&id| (id as usize) < tokens.texts.len()) {
            head.u32(entry, id);
        }
    }
    for side in ["bos", "eos"] {
        let said = settings
            .get(format!("add_{side}_token"))
            .and_then(Value::as_bool);
        let of_template = || begins_or_ends(json.as_ref()?, side, &settings);
        if let Some(adds) = said.or_else(of_template) {
            head.bool(&format!("tokenizer.ggml.add_{side}_token"), adds);
        }
    }
    let template = match companions.text("chat_template.jinja")? {
        Some((_, text)) => Some(text),
        None => settings
            .get("chat_template")
            .and_then(Value::as_str)
            .map(str::to_owned),
    };
    if let Some(template) = template {
        head.text("tokenizer.chat_template", &template);
    }
    Ok(())
}

/// A setting that is a whole number, or a list of them.
fn first_integer(config: &Value, key: &str) -> Option<u32> {
    let value = config.get(key)?;
    let value = value.as_array().map_or(Some(value), |list| list.first())?;
    u32::try_from(value.as_u64()?).ok()
}

/// Whether the template of tokenizer.json puts the token before, or behind, every text.
fn begins_or_ends(json: &(PathBuf, String), side: &str, settings: &Value) -> Option<bool> {
    let parsed: Value = serde_json::from_str(&json.1).ok()?;
    let processor = parsed.get("post_processor")?;
    let steps = match processor.get("processors").and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    };
    let template = steps
        .into_iter()
        .find(|step| step["type"] == "TemplateProcessing")?;
    let single = template.get("single")?.as_array()?;
    let token = settings.get(format!("{side}_token"))?;
    let token = token.as_str().or_else(|| token.get("content")?.as_str())?;
    let step = match side {
        "bos" => single.first()?,
        _ => single.last()?,
    };
    Some(step["SpecialToken"]["id"] == token)
}

/// Writes a byte-level vocabulary.
fn write_bytes(file: &Path, text: &str, n_tokens: usize, head: &mut GgufHead) -> Result<Tokens> {
    let refused = |reason: String| -> crate::Error {
        ExportFault::Tokenizer {
            path: file.into(),
            reason,
        }
        .into()
    };
    let json: Value = serde_json::from_str(text).map_err(|fault| refused(fault.to_string()))?;
    let model = &json["model"];
    if model["type"] != "BPE" || model["byte_fallback"] == Value::Bool(true) {
        return Err(refused(
            "it is no byte-level BPE, and there is no tokenizer.model with scores".into(),
        ));
    }
    let pattern = pattern_of(&json).ok_or_else(|| {
        refused("texts are cut into words in a way that has no name in GGUF files".into())
    })?;
    let tokens = tokens_of(&json, n_tokens, &refused)?;
    let merges = merges_of(model).ok_or_else(|| refused("its merges are no pairs".into()))?;
    head.text("tokenizer.ggml.model", "gpt2");
    head.text("tokenizer.ggml.pre", pattern);
    head.texts("tokenizer.ggml.merges", &merges);
    Ok(tokens)
}

/// The tokens of a CLIP, which are all that a GGUF file has of its tokenizer.
///
/// # Errors
/// [`ExportFault::Tokenizer`].
pub(super) fn of_clip(path: &Path, companions: &Companions) -> Result<Tokens> {
    let refused_at = |file: &Path, reason: String| -> crate::Error {
        ExportFault::Tokenizer {
            path: file.into(),
            reason,
        }
        .into()
    };
    let parse = |file: &Path, text: &str| -> Result<Value> {
        serde_json::from_str(text).map_err(|fault| refused_at(file, fault.to_string()))
    };
    let (file, json) = if let Some((file, text)) = companions.text("tokenizer.json")? {
        let json = parse(&file, &text)?;
        (file, json)
    } else if let Some((file, text)) = companions.text("vocab.json")? {
        let vocabulary = parse(&file, &text)?;
        (file, json!({ "model": { "vocab": vocabulary } }))
    } else {
        let reason = "there is neither tokenizer.json nor vocab.json beside the weights";
        return Err(refused_at(path, reason.into()));
    };
    tokens_of(&json, 0, &|reason| refused_at(&file, reason))
}

/// The tokens of tokenizer.json, filled up to `n_tokens`.
fn tokens_of(
    json: &Value,
    n_tokens: usize,
    refused: &dyn Fn(String) -> crate::Error,
) -> Result<Tokens> {
    let no_vocabulary = || refused("it has no vocabulary".into());
    let model = &json["model"];
    let vocabulary = model["vocab"].as_object().ok_or_else(no_vocabulary)?;
    let mut by_id: BTreeMap<usize, (&str, i32)> = BTreeMap::new();
    for (token, id) in vocabulary {
        let id = id
            .as_u64()
            .map(|id| id as usize)
            .filter(|&id| id < MAX_TOKENS);
        let id =
            id.ok_or_else(|| refused(format!("the id of `{token}` is no number of a token")))?;
        if by_id.insert(id, (token, NORMAL)).is_some() {
            return Err(refused(format!("two tokens have the id {id}")));
        }
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let id = added["id"]
            .as_u64()
            .map(|id| id as usize)
            .filter(|&id| id < MAX_TOKENS);
        let (Some(id), Some(token)) = (id, added["content"].as_str()) else {
            return Err(refused("an added token has no id or no text".into()));
        };
        let is_control = added["special"] == Value::Bool(true) || looks_special(token);
        let kind = if is_control { CONTROL } else { USER_DEFINED };
        by_id.insert(id, (token, kind));
    }
    let n_known = by_id.keys().last().map_or(0, |last| last + 1);
    if n_tokens > 0 && n_known > n_tokens {
        return Err(refused(format!(
            "it has {n_known} tokens, and config.json has {n_tokens} as `vocab_size`"
        )));
    }
    let mut tokens = Tokens::default();
    for (id, (token, kind)) in by_id {
        tokens.fill(id);
        tokens.texts.push(token.as_bytes().to_vec());
        tokens.kinds.push(kind);
    }
    tokens.fill(n_tokens.min(MAX_TOKENS));
    Ok(tokens)
}

/// Pairs of tokens, each joined by a space, which no token of bytes has.
fn merges_of(model: &Value) -> Option<Vec<String>> {
    let merges = model["merges"].as_array()?.iter();
    merges
        .map(|merge| match merge {
            Value::String(pair) => Some(pair.clone()),
            Value::Array(pair) => match pair.as_slice() {
                [one, other] => Some(format!("{} {}", one.as_str()?, other.as_str()?)),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Whether a token that is not marked as special is written like one.
pub(super) fn looks_special(token: &str) -> bool {
    token.starts_with("<|") && token.ends_with("|>")
}

/// The name of the way in which texts are cut into words.
fn pattern_of(json: &Value) -> Option<&'static str> {
    let is_composed = match &json["normalizer"] {
        Value::Null => false,
        normalizer if normalizer["type"] == "NFC" => true,
        _ => return None,
    };
    let cutter = &json["pre_tokenizer"];
    let steps = match cutter["pretokenizers"].as_array() {
        Some(steps) => steps.iter().collect(),
        None => vec![cutter],
    };
    let is_bytes = |step: &Value, uses_pattern: bool| {
        let uses = step["use_regex"].as_bool().unwrap_or(true);
        step["type"] == "ByteLevel"
            && step["add_prefix_space"] == Value::Bool(false)
            && uses == uses_pattern
    };
    match steps.as_slice() {
        [bytes] if is_bytes(bytes, true) && !is_composed => Some(OF_GPT2),
        [digits, bytes]
            if digits["type"] == "Digits"
                && digits["individual_digits"] == Value::Bool(true)
                && is_bytes(bytes, true)
                && !is_composed =>
        {
            Some(OF_DIGITS)
        }
        [split, bytes] if is_bytes(bytes, false) => {
            let is_plain = split["type"] == "Split"
                && split["behavior"] == "Isolated"
                && split["invert"] == Value::Bool(false);
            let found = PATTERNS.iter().find(|(pattern, _, composed)| {
                split["pattern"]["Regex"] == **pattern && *composed == is_composed
            });
            found.filter(|_| is_plain).map(|(_, name, _)| *name)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_cut_texts_are_known_by_their_patterns() {
        let bytes = |uses: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": uses});
        let of = |pattern: &str, normalizer: Value| {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
            });
            let steps = json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]});
            pattern_of(&json!({"normalizer": normalizer, "pre_tokenizer": steps}))
        };
        assert_eq!(of(PATTERNS[0].0, Value::Null), Some("llama-bpe"));
        assert_eq!(of(PATTERNS[1].0, json!({"type": "NFC"})), Some("qwen2"));
        assert_eq!(of(PATTERNS[1].0, Value::Null), None, "another program");
        assert_eq!(of(r"\s+", Value::Null), None);
        let plain = json!({"normalizer": null, "pre_tokenizer": bytes(true)});
        assert_eq!(pattern_of(&plain), Some(OF_GPT2));
        let digits = |single: bool| {
            let steps = [
                json!({"type": "Digits", "individual_digits": single}),
                bytes(true),
            ];
            let steps = json!({"type": "Sequence", "pretokenizers": steps});
            pattern_of(&json!({"normalizer": null, "pre_tokenizer": steps}))
        };
        assert_eq!(digits(true), Some(OF_DIGITS));
        assert_eq!(digits(false), None);
    }
}
