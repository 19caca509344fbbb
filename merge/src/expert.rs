//! Whom a copy of some weights serves.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The modality, or the routed slot, that one copy of a block's weights serves.
///
/// The order of the variants is the order in which published code walks experts; sums in limited
/// precision depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
