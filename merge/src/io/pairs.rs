//! JSON objects of strings as they stand in a file: serde's maps would let the last duplicate win.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{Error, Result};

/// An object of strings, in order and with duplicates.
#[derive(Default)]
pub(super) struct StringPairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for StringPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringPairsVisitor)
    }
}

struct StringPairsVisitor;

impl<'de> Visitor<'de> for StringPairsVisitor {
    type Value = StringPairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StringPairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(StringPairs(pairs))
    }
}

impl StringPairs {
    /// The pairs as a map. Errors name the object `within` the file.
    pub(super) fn into_map(self, path: &Path, within: &str) -> Result<BTreeMap<String, String>> {
        let mut map = BTreeMap::new();
        for (key, value) in self.0 {
            if map.contains_key(&key) {
                return Err(Error::DuplicateKey {
                    path: path.into(),
                    key: format!("{within}.{key}"),
                });
            }
            map.insert(key, value);
        }
        Ok(map)
    }
}
