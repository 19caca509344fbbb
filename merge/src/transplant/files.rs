//! The files beside a model with other tokens: the donor's tokenizer, and configurations that name the donor's ids.

use serde_json::{Map, Value, json};

use super::tokens::{ROLES, Token, Tokens};
use crate::beside::experts::Said;
use crate::model_config;

/// Ids that every configuration says, for a class may have others where it says none.
const ALWAYS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Settings of generation that list several ids of tokens.
const LISTS: [&str; 2] = ["suppress_tokens", "begin_suppress_tokens"];

/// Settings of generation that hold ids within other lists.
const NESTED: [&str; 4] = [
    "bad_words_ids",
    "force_words_ids",
    "forced_decoder_ids",
    "sequence_bias",
];

/// The tokens of both models, and the donor's configurations.
pub(super) struct Ids<'a> {
    pub(super) model: &'a Tokens,
    pub(super) donor: &'a Tokens,
    pub(super) config: &'a Value,
    pub(super) generation: &'a Value,
    /// Rows of the output.
    pub(super) n_rows: usize,
}

/// Whether a setting is the id of a token, or a list of such.
fn is_id(key: &str) -> bool {
    ["_token_id", "_token_ids", "_token_index"]
        .iter()
        .any(|end| key.ends_with(end))
}

fn role_of(key: &str) -> Option<&'static str> {
    let role = key.strip_suffix("_id")?;
    ROLES.into_iter().find(|known| *known == role)
}

impl Ids<'_> {
    /// The ids in a value, an integer or a list of them; negative ones stand for none.
    fn each(
        &self,
        value: &Value,
        new: &dyn Fn(usize) -> Result<Value, String>,
    ) -> Result<Value, String> {
        match value {
            Value::Null => Ok(Value::Null),
            Value::Array(ids) => ids.iter().map(|id| self.each(id, new)).collect(),
            id => match (id.as_u64(), id.as_i64()) {
                (Some(id), _) => new(usize::try_from(id).unwrap_or(usize::MAX)),
                (None, Some(_)) => Ok(id.clone()),
                _ => Err(format!("`{id}` is no id of a token")),
            },
        }
    }

    /// Checks ids that the donor's configuration gives.
    fn checked(&self, key: &str, value: &Value) -> Result<Value, String> {
        self.each(value, &|id| match id < self.n_rows {
            true => Ok(json!(id)),
            false => Err(format!(
                "the donor's `{key}` is {id}, beyond the {} rows of its tokens",
                self.n_rows
            )),
        })
    }

    /// The donor's ids of a special token: those of its configuration for writing texts where `is_generation`, else those of
    /// its configuration, else those of its tokenizer.
    fn of_role(&self, key: &str, is_generation: bool) -> Result<Option<Value>, String> {
        let said = self.generation.get(key).filter(|_| is_generation);
        let said = said.or_else(|| model_config::setting(self.config, key));
        if let Some(said) = said.filter(|said| !said.is_null()) {
            return self.checked(key, said).map(Some);
        }
        let own = role_of(key).and_then(|role| self.donor.id_of_role(role));
        Ok(own.map(|id| json!(id)))
    }

    /// The donor's id of the token that has an id in the model.
    fn translated(&self, key: &str, id: usize) -> Result<Value, String> {
        let Some(token) = self.model.token(id) else {
            return Err(format!(
                "`{key}` is {id}, which is no token of the model's tokenizer"
            ));
        };
        match self.donor.same(token, self.model, &|_| true) {
            Some((id, _)) => Ok(json!(id)),
            None => Err(format!(
                "`{key}` is {id}, the token `{}`, which the donor's tokenizer lacks; add it to the donor's tokenizer.json",
                token.shown()
            )),
        }
    }

    /// Makes the ids of a model's configuration the donor's.
    pub(super) fn configure(&self, config: &mut Value) -> Result<Said, String> {
        let mut keys = Vec::new();
        let Some(top) = config.as_object_mut() else {
            return Err("not an object".to_owned());
        };
        self.configure_part(top, "", &mut keys)?;
        let parts = top.iter_mut().filter(|(key, _)| key.ends_with("_config"));
        for (name, part) in parts {
            if let Some(part) = part.as_object_mut() {
                self.configure_part(part, &format!("{name}."), &mut keys)?;
            }
        }
        Ok(Said {
            keys,
            notes: Vec::new(),
        })
    }

    fn configure_part(
        &self,
        part: &mut Map<String, Value>,
        place: &str,
        changed: &mut Vec<String>,
    ) -> Result<(), String> {
        if part.contains_key("vocab_size") {
            for key in ALWAYS {
                part.entry(key).or_insert(Value::Null);
            }
        }
        for (key, value) in part.iter_mut().filter(|(key, _)| is_id(key)) {
            let new = match role_of(key) {
                Some(_) => self.of_role(key, false)?.unwrap_or(Value::Null),
                None => self.each(value, &|id| self.translated(key, id))?,
            };
            if *value != new {
                *value = new;
                changed.push(format!("{place}{key}"));
            }
        }
        Ok(())
    }

    /// The configuration for writing texts, and notes on what it loses; `None` if none is needed.
    pub(super) fn generation(
        &self,
        own: Option<Value>,
    ) -> Result<Option<(Value, Vec<String>)>, String> {
        let mut config = match own {
            Some(Value::Object(own)) => own,
            Some(_) => return Err("not an object".to_owned()),
            None if self.generation.is_object() => Map::new(),
            None => return Ok(None),
        };
        let mut notes = Vec::new();
        for key in ALWAYS {
            config.entry(key).or_insert(Value::Null);
        }
        let mut lost = Vec::new();
        for (key, value) in &mut config {
            if role_of(key).is_some() {
                *value = self.of_role(key, true)?.unwrap_or(Value::Null);
            } else if NESTED.contains(&key.as_str()) && !value.is_null() {
                lost.push(key.clone());
            } else if is_id(key) || LISTS.contains(&key.as_str()) {
                match self.each(value, &|id| self.translated(key, id)) {
                    Ok(new) => *value = new,
                    Err(reason) => {
                        notes.push(format!("generation_config.json: {reason}; it is left out"));
                        lost.push(key.clone());
                    }
                }
            }
        }
        config.retain(|key, value| !value.is_null() && !lost.contains(key));
        let nested = lost.iter().filter(|key| NESTED.contains(&key.as_str()));
        notes.extend(nested.map(|key| {
            format!("generation_config.json: `{key}` holds ids of the model's own tokens; it is left out")
        }));
        Ok(Some((Value::Object(config), notes)))
    }
}

/// Whether the special tokens of a configuration are those of the tokenizer, as far as both say.
pub(super) fn contradiction(config: &Value, tokens: &Tokens) -> Option<String> {
    ROLES.iter().find_map(|role| {
        let id = model_config::setting(config, &format!("{role}_id"))?.as_u64()?;
        let token = tokens.token(usize::try_from(id).ok()?)?;
        let said = tokens.roles.get(role)?;
        let is_same = *token == Token::Special(said.clone());
        (!is_same).then(|| {
            format!(
                "the donor's config.json says that `{role}_id` is {id}, which is `{}`; its tokenizer says `{said}`. \
                 The output has both, as the donor",
                token.shown()
            )
        })
    })
}
