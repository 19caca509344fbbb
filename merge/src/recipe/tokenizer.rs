//! The tokens of a merge, and the rows of embeddings that they get.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::reference::ModelName;

/// The tokenizer of the output, if vocabularies differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenizerSource {
    /// `base`: the base's tokens, or those of the first model if there is no base.
    Base,
    /// `union`: the tokens of all models.
    #[default]
    Union,
    /// The tokens of this model.
    Model(PathBuf),
}

impl Serialize for TokenizerSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Base => serializer.serialize_str("base"),
            Self::Union => serializer.serialize_str("union"),
            Self::Model(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for TokenizerSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = ModelName::deserialize(deserializer)?.path;
        Ok(match path.to_str() {
            Some("base") => Self::Base,
            Some("union") => Self::Union,
            // As older recipes of mergekit have it.
            Some(text) => match text.strip_prefix("model:") {
                Some(rest) if !path.exists() => Self::Model(rest.into()),
                _ => Self::Model(path),
            },
            None => Self::Model(path),
        })
    }
}

/// mergekit's `tokenizer`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerSettings {
    /// The tokens of the output.
    #[serde(default)]
    pub source: TokenizerSource,
    /// The sources of single tokens' rows. Tokens that the tokenizer lacks are added to it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, TokenRule>,
    /// Embeddings get further rows, each the mean of all, until their number is a multiple of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_to_multiple_of: Option<usize>,
}

/// The source of a token's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRule {
    /// For models that lack the token, or for all with `force`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<TokenSource>,
    /// Whether models that have the token get the row, too.
    #[serde(default)]
    pub force: bool,
}

/// A row of embeddings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenSource {
    /// `{kind: zero}`, or `{kind: model_token}` with a model and one of its tokens or its number.
    Kind(TokenKind),
    /// The token's own row in this model.
    Model(ModelName),
}

/// A row that is named by its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TokenKind {
    /// Zeros.
    Zero {},
    /// The row of another token.
    ModelToken {
        /// The model that has it.
        model: ModelName,
        /// The token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Or its number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token_id: Option<usize>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_of_mergekit_are_read() {
        let yaml = "source: {path: org/a, revision: v1}\ntokens:\n  <s>: {source: org/b, force: true}\n  <x>: {source: \
                    {kind: zero}}\n  <y>:\n    source: {kind: model_token, model: org/a, token: <s>}\n\
                    pad_to_multiple_of: 64\n";
        let settings: TokenizerSettings = serde_saphyr::from_str(yaml).expect("settings");
        assert_eq!(settings.source, TokenizerSource::Model("org/a@v1".into()));
        assert_eq!(settings.pad_to_multiple_of, Some(64));
        assert!(settings.tokens["<s>"].force);
        assert_eq!(
            settings.tokens["<x>"].source,
            Some(TokenSource::Kind(TokenKind::Zero {}))
        );
        assert!(matches!(
            &settings.tokens["<y>"].source,
            Some(TokenSource::Kind(TokenKind::ModelToken { token: Some(token), .. })) if token == "<s>"
        ));
        let older: TokenizerSource = serde_saphyr::from_str("model:some/where").expect("a source");
        assert_eq!(older, TokenizerSource::Model("some/where".into()));
    }
}
