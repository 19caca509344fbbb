//! The tokens of a model by what they mean, whatever their spelling.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Value;

use crate::beside::Companions;
use crate::beside::byte_alphabet::bytes_of;
use crate::beside::vocabulary::Tokenizer;
use crate::{Result, TransplantFault};

/// The settings that name special tokens, the first that fits decides.
pub(super) const ROLES: [&str; 7] = [
    "eos_token",
    "bos_token",
    "unk_token",
    "pad_token",
    "mask_token",
    "sep_token",
    "cls_token",
];

/// The beginning of a word in vocabularies of SentencePiece.
const WORD_START: char = '▁';

/// The meaning of a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Token {
    /// These bytes of a text.
    Text(Vec<u8>),
    /// One byte, where no other token has the text: `<0x0A>`.
    Byte(u8),
    /// No text: the token that is written so.
    Special(String),
}

impl Token {
    /// The token as a person reads it.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Byte(byte) => format!("<0x{byte:02X}>"),
            Self::Special(text) => text.clone(),
        }
    }

    /// The text, of a token that is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(bytes) => std::str::from_utf8(bytes).ok(),
            Self::Byte(_) | Self::Special(_) => None,
        }
    }

    /// The token of the same single byte on the other of the two ways to have one.
    fn other_way(&self) -> Option<Self> {
        match self {
            Self::Text(bytes) => match bytes[..] {
                [byte] => Some(Self::Byte(byte)),
                _ => None,
            },
            Self::Byte(byte) => Some(Self::Text(vec![*byte])),
            Self::Special(_) => None,
        }
    }

    /// Shorter beginnings of a text, the longest first; none that is nothing but spaces.
    fn prefixes(&self) -> impl Iterator<Item = Self> {
        let text = self.text().unwrap_or_default();
        let ends = text.char_indices().skip(1).map(|(at, _)| at);
        let ends: Vec<usize> = ends.collect();
        (ends.into_iter().rev())
            .map(|end| &text[..end])
            .take_while(|prefix| !prefix.trim().is_empty())
            .map(|prefix| Self::Text(prefix.as_bytes().to_vec()))
    }
}

/// The way in which a vocabulary spells the bytes of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte.
    Bytes,
    /// `▁` for a space, `<0x0A>` for a byte.
    SentencePiece,
    /// `##` before what goes on with a word.
    WordPiece,
    /// As they are.
    Plain,
}

impl Spelling {
    fn of(tokenizer: &Value) -> Self {
        if tokenizer["model"]["type"] == "WordPiece" {
            return Self::WordPiece;
        }
        let parts = ["decoder", "pre_tokenizer", "normalizer"];
        let any = |is_it: &dyn Fn(&Value) -> bool| {
            (parts.iter()).any(|part| steps(&tokenizer[*part]).into_iter().any(is_it))
        };
        if any(&|step| step["type"] == "ByteLevel") {
            return Self::Bytes;
        }
        let marks_words = |step: &Value| {
            let is = |key: &str| {
                step[key]
                    .as_str()
                    .is_some_and(|text| text.contains(WORD_START))
            };
            step["type"] == "Metaspace"
                || is("content")
                || is("prepend")
                || step["pattern"]["String"]
                    .as_str()
                    .is_some_and(|text| text.contains(WORD_START))
        };
        match any(&marks_words) {
            true => Self::SentencePiece,
            false => Self::Plain,
        }
    }

    fn token(self, text: &str) -> Token {
        match self {
            Self::Bytes => Token::Text(bytes_of(text)),
            Self::SentencePiece => match byte_of(text) {
                Some(byte) => Token::Byte(byte),
                None => Token::Text(text.replace(WORD_START, " ").into_bytes()),
            },
            Self::WordPiece => match text.strip_prefix("##") {
                Some(rest) if !rest.is_empty() => Token::Text(rest.as_bytes().to_vec()),
                _ => Token::Text(format!(" {text}").into_bytes()),
            },
            Self::Plain => Token::Text(text.as_bytes().to_vec()),
        }
    }
}

/// A step of a tokenizer, and those in it: sequences hold lists, which hold no sequences.
fn steps(part: &Value) -> Vec<&Value> {
    let lists = ["decoders", "pretokenizers", "normalizers"];
    let inner = lists.iter().filter_map(|list| part[*list].as_array());
    std::iter::once(part).chain(inner.flatten()).collect()
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_two = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_two)
}

/// The tokens of a model, and the special ones by their settings.
pub(super) struct Tokens {
    /// Each with its id, by id.
    pub(super) all: Vec<(usize, Token)>,
    /// Rows that a table needs for them.
    pub(super) n_rows: usize,
    /// The special token of each setting of [`ROLES`].
    pub(super) roles: BTreeMap<&'static str, String>,
    ids: HashMap<Token, usize>,
}

/// The way in which a token of the donor was found among the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The same bytes.
    Bytes,
    /// A special token of the same text or setting.
    Special,
    /// The same single byte, in another way.
    Byte,
    /// The beginning of its text.
    Prefix,
}

impl Tokens {
    /// Those that files beside a model say.
    pub(super) fn of(model: &Path, companions: &Companions) -> Result<Self> {
        let Some(tokenizer) = Tokenizer::of(companions)? else {
            return Err(TransplantFault::NoTokenizer { path: model.into() }.into());
        };
        let mut roles = BTreeMap::new();
        for file in ["tokenizer_config.json", "special_tokens_map.json"] {
            let Some(settings) = companions.settings(file)? else {
                continue;
            };
            for role in ROLES {
                let said = &settings[role];
                if let Some(text) = said.as_str().or_else(|| said["content"].as_str()) {
                    roles.entry(role).or_insert_with(|| text.to_owned());
                }
            }
        }
        let added: HashMap<&str, bool> = (tokenizer.json["added_tokens"].as_array().into_iter())
            .flatten()
            .filter_map(|entry| Some((entry["content"].as_str()?, entry["special"] == true)))
            .collect();
        let spelling = Spelling::of(&tokenizer.json);
        let meaning = |text: &str| {
            let is_special = roles.values().any(|role| role.as_str() == text);
            match added.get(text) {
                Some(true) => Token::Special(text.to_owned()),
                _ if is_special => Token::Special(text.to_owned()),
                // Added tokens are texts; the marks of words in them are made by the normalizer.
                Some(false) if spelling != Spelling::SentencePiece => {
                    Token::Text(text.as_bytes().to_vec())
                }
                _ => spelling.token(text),
            }
        };
        let mut all: Vec<(usize, Token)> = Vec::new();
        let mut last: Option<(usize, &str)> = None;
        for (id, text) in tokenizer.vocabulary.by_id() {
            if let Some((_, first)) = last.filter(|(known, _)| *known == id) {
                return Err(TransplantFault::TwoTokens {
                    path: model.into(),
                    id,
                    first: first.to_owned(),
                    second: text.to_owned(),
                }
                .into());
            }
            last = Some((id, text));
            all.push((id, meaning(text)));
        }
        let mut ids = HashMap::with_capacity(all.len());
        for (id, token) in &all {
            ids.entry(token.clone()).or_insert(*id);
        }
        Ok(Self {
            n_rows: tokenizer.vocabulary.n_rows(),
            all,
            roles,
            ids,
        })
    }

    /// The id of a token.
    pub(super) fn id(&self, token: &Token) -> Option<usize> {
        self.ids.get(token).copied()
    }

    /// The id of the special token of a setting.
    pub(super) fn id_of_role(&self, role: &str) -> Option<usize> {
        let text = self.roles.get(role)?;
        self.id(&Token::Special(text.clone()))
    }

    /// The token with an id.
    pub(super) fn token(&self, id: usize) -> Option<&Token> {
        let place = self.all.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(&self.all[place].1)
    }

    /// The id of the token here that means what `token` of `donor` means, among those that `is_known`.
    pub(super) fn same(
        &self,
        token: &Token,
        donor: &Self,
        is_known: &dyn Fn(usize) -> bool,
    ) -> Option<(usize, Found)> {
        let own = |token: &Token| self.id(token).filter(|&id| is_known(id));
        let Token::Special(text) = token else {
            return own(token).map(|id| (id, Found::Bytes));
        };
        let by_role = || {
            let mut roles = ROLES
                .iter()
                .filter(|role| donor.roles.get(*role) == Some(text));
            roles.find_map(|role| self.id_of_role(role).filter(|&id| is_known(id)))
        };
        own(token).or_else(by_role).map(|id| (id, Found::Special))
    }

    /// The id of the token of the same single byte that is spelled otherwise.
    pub(super) fn same_byte(
        &self,
        token: &Token,
        is_known: &dyn Fn(usize) -> bool,
    ) -> Option<(usize, Found)> {
        let id = self.id(&token.other_way()?).filter(|&id| is_known(id))?;
        Some((id, Found::Byte))
    }

    /// The id of the longest beginning of a token's text.
    pub(super) fn longest_prefix(
        &self,
        token: &Token,
        is_known: &dyn Fn(usize) -> bool,
    ) -> Option<(usize, Found)> {
        let mut prefixes = token.prefixes();
        let id = prefixes.find_map(|prefix| self.id(&prefix).filter(|&id| is_known(id)))?;
        Some((id, Found::Prefix))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::beside::Content;

    fn tokens(tokenizer: Value, settings: Value) -> Result<Tokens> {
        let mut files = Companions::default();
        for (name, json) in [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", settings),
        ] {
            let text = Content::Text(json.to_string());
            files.0.insert(name.to_owned(), text);
        }
        Tokens::of(Path::new("model"), &files)
    }

    fn bytes() -> Tokens {
        let tokenizer = json!({
            "decoder": {"type": "ByteLevel"},
            "added_tokens": [{"id": 5, "content": "<|end|>", "special": true}],
            "model": {"type": "BPE", "vocab": {"a": 0, "Ġcaf\u{c3}\u{a9}": 1, "Ċ": 2, "Ġhell": 3, "\u{c3}": 4}},
        });
        tokens(tokenizer, json!({"eos_token": "<|end|>"})).expect("tokens")
    }

    fn pieces() -> Tokens {
        let tokenizer = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "added_tokens": [{"id": 0, "content": "</s>", "special": true}],
            "model": {"type": "BPE", "vocab": {"</s>": 0, "▁café": 1, "<0x0A>": 2, "▁hello": 3, "<0xC3>": 4, "a": 5}},
        });
        tokens(tokenizer, json!({"eos_token": {"content": "</s>"}})).expect("tokens")
    }

    #[test]
    fn tokens_are_the_same_by_their_bytes_and_special_ones_by_their_settings() {
        let (own, donor) = (bytes(), pieces());
        let known = |_| true;
        let same = |text: &str, id: usize| {
            let (found, token) = donor
                .all
                .iter()
                .find(|(found, _)| *found == id)
                .expect(text);
            assert_eq!(*found, id);
            own.same(token, &donor, &known)
        };
        assert_eq!(same("</s>", 0), Some((5, Found::Special)));
        assert_eq!(same("▁café", 1), Some((1, Found::Bytes)));
        assert_eq!(same("<0x0A>", 2), None);
        assert_eq!(same("a", 5), Some((0, Found::Bytes)));
        assert_eq!(
            own.same(&Token::Text(b"a".to_vec()), &donor, &|_| false),
            None
        );
    }

    #[test]
    fn bytes_and_beginnings_are_found_where_they_are_asked_for() {
        let (own, donor) = (bytes(), pieces());
        let known = |_| true;
        let new_line = donor.token(2).expect("there");
        assert_eq!(own.same_byte(new_line, &known), Some((2, Found::Byte)));
        assert_eq!(
            donor.same_byte(&Token::Text(vec![b'\n']), &known),
            Some((2, Found::Byte))
        );
        let hello = donor.token(3).expect("there");
        assert_eq!(own.longest_prefix(hello, &known), Some((3, Found::Prefix)));
        let word = Token::Text(b" xyz".to_vec());
        assert_eq!(own.longest_prefix(&word, &known), None);
    }

    #[test]
    fn words_and_what_goes_on_with_them_are_told_apart() {
        let tokenizer =
            json!({"model": {"type": "WordPiece", "vocab": {"play": 0, "##ing": 1, "##": 2}}});
        let own = tokens(tokenizer, json!({})).expect("tokens");
        assert_eq!(own.token(0).expect("there").text(), Some(" play"));
        assert_eq!(own.token(1).expect("there").text(), Some("ing"));
        assert_eq!(own.token(2).expect("there").text(), Some(" ##"));
    }

    #[test]
    fn two_tokens_with_one_id_are_refused_by_name() {
        let twice = json!({"model": {"type": "BPE", "vocab": {"a": 7, "b": 7}}});
        let Err(error) = tokens(twice, json!({})) else {
            panic!("accepted");
        };
        assert_eq!(
            error.to_string(),
            "model: `a` and `b` of its tokenizer both have the id 7"
        );
    }
}
