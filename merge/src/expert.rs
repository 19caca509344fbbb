//! Experts: the modalities that a copy of some weights serves.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The modality, or the routed slot, that one copy of a block's weights serves.
///
/// The order of the variants is the order in which published code walks experts; sums in limited
/// precision depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Expert {
    /// Image tokens.
    Vision,
    /// Text tokens.
    Language,
    /// Image and text tokens together, in fusion blocks.
    VisionLanguage,
    /// The n-th expert of a router that picks by score.
    Routed(u16),
}

impl fmt::Display for Expert {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vision => f.write_str("vision"),
            Self::Language => f.write_str("language"),
            Self::VisionLanguage => f.write_str("vision_language"),
            Self::Routed(index) => write!(f, "routed_{index}"),
        }
    }
}

impl FromStr for Expert {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let routed = || text.strip_prefix("routed_")?.parse().ok();
        match text {
            "vision" => Ok(Self::Vision),
            "language" => Ok(Self::Language),
            "vision_language" => Ok(Self::VisionLanguage),
            _ => routed().map(Self::Routed).ok_or_else(|| {
                format!(
                    "unknown expert `{text}`, expected `vision`, `language`, `vision_language` or `routed_<n>`"
                )
            }),
        }
    }
}

impl Serialize for Expert {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Expert {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expert_is_read_as_it_is_written() {
        let routed = [0, 31, u16::MAX].map(Expert::Routed);
        let known = [Expert::Vision, Expert::Language, Expert::VisionLanguage];
        for expert in known.into_iter().chain(routed) {
            assert_eq!(expert.to_string().parse(), Ok(expert));
            let json = serde_json::to_string(&expert).expect("JSON");
            assert_eq!(json, format!("\"{expert}\""));
        }
        for text in ["Vision", "routed", "routed_", "routed_-1", "routed_65536"] {
            assert!(text.parse::<Expert>().is_err(), "{text}");
        }
    }
}
