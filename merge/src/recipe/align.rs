//! `align`: what of transformers is brought into the order of the base or the first model.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// The permutations to look for, and their measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Align {
    /// The measure by which things are compared.
    pub by: AlignBy,
    /// The parts to bring into order.
    pub of: Vec<AlignPart>,
}

/// The measure by which things of two models are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlignBy {
    /// Inner products of their weights: Git Re-Basin.
    Weights,
    /// Correlations of what layers read of the same tokens, from the files `activations` of each model.
    Activations,
}

/// The parts of a transformer that may stand in another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlignPart {
    /// Hidden units of feed-forward networks.
    Units,
    /// Attention heads.
    Heads,
    /// The residual stream.
    Width,
}

/// All of them.
const ALL: [AlignPart; 3] = [AlignPart::Units, AlignPart::Heads, AlignPart::Width];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    #[serde(default = "weights")]
    by: AlignBy,
    #[serde(default = "all")]
    of: Vec<AlignPart>,
}

fn weights() -> AlignBy {
    AlignBy::Weights
}

fn all() -> Vec<AlignPart> {
    ALL.into()
}

impl<'de> Deserialize<'de> for Align {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrMap;

        impl<'de> Visitor<'de> for WordOrMap {
            type Value = Align;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "`weights`, `activations`, or `{ by: weights, of: [units, heads, width] }`",
                )
            }

            fn visit_str<E: serde::de::Error>(self, word: &str) -> Result<Align, E> {
                let by = AlignBy::deserialize(StrDeserializer::new(word))?;
                Ok(Align { by, of: all() })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Align, A::Error> {
                let Map { by, mut of } = Map::deserialize(MapAccessDeserializer::new(map))?;
                if of.is_empty() {
                    return Err(serde::de::Error::custom("`align.of` names nothing"));
                }
                of.sort_unstable();
                of.dedup();
                Ok(Align { by, of })
            }
        }

        deserializer.deserialize_any(WordOrMap)
    }
}
