//! Whose tokens a merge has.

use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How vocabularies that differ become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    /// `base`: the base's tokens, or those of the first model if there is no base.
    Base,
    /// `union`: the tokens of all models.
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
        Ok(match String::deserialize(deserializer)?.as_str() {
            "base" => Self::Base,
            "union" => Self::Union,
            path => Self::Model(path.into()),
        })
    }
}
