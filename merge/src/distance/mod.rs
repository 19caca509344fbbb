//! Distances between weights: those of the experts of one checkpoint, or of two checkpoints.
//!
//! [`expert_pairs`] or [`checkpoint_pairs`] say which tensors are compared, [`measure`] compares
//! them: per tensor, per module, per block and pooled. Pooled means that tensors are concatenated,
//! never that averages are averaged, so a TSSD threshold is one over all that is pooled.
//!
//! For `a` and `b` of `n` elements:
//!
//! | metric | formula | range |
//! |---|---|---|
//! | L2 | `‖a − b‖` | `≥ 0`, in units of the weights |
//! | cosine dissimilarity | `1 − a·b / (‖a‖ ‖b‖)`; undefined when `a` or `b` is zero | `[0, 2]` |
//! | SSD, soft sign dissimilarity | `1 − meanᵢ |aᵢ + bᵢ| / (|aᵢ| + |bᵢ|)` | `[0, 1]` |
//! | TSSD(k), truncated SSD | SSD once all but the share `k` of largest magnitude are set to zero, in `a` and in `b` independently | `[0, 1]` |
//!
//! Pairs with `|aᵢ| + |bᵢ| = 0` are left out of the mean; if none remains, SSD is 0. The share `k`
//! keeps `round(k n)` elements, at least one, and all that tie with the smallest of them.
//!
//! **SSD and TSSD are reconstructions.** They follow the known facts of "An Empirical Study of
//! Multimodal Model Merging" (arXiv 2304.14933), whose equations were not at hand: they have not
//! been checked against the paper, and no `k` is the paper's. With a seed, `a` and `b` are modality
//! vectors (weights minus seed); without one they are raw weights ([`Operands`] says which).
//!
//! Everything accumulates in `f64` in an order that does not depend on the number of threads.

pub mod heat_map;
mod measure;
mod pairs;
pub mod report;
mod sums;
mod threshold;

pub use measure::{Distance, DistanceOptions, Grain, measure};
pub use pairs::{Comparison, Pair, PairSet, Skipped, checkpoint_pairs, expert_pairs};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::{Error, Result};

/// The note beside every SSD or TSSD value that a person sees.
pub const RECONSTRUCTION_NOTE: &str =
    "SSD and TSSD as reconstructed; not checked against the paper (arXiv 2304.14933)";

/// The share of elements that TSSD keeps, in `(0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Keep(f64);

impl Keep {
    /// Checks a share.
    ///
    /// # Errors
    /// [`Error::BadParameter`] unless `0 < share ≤ 1`.
    pub fn new(share: f64) -> Result<Self> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else {
            Err(Error::BadParameter {
                name: "keep",
                wanted: "above 0 and at most 1",
                place: crate::recipe::Place::default(),
            })
        }
    }

    /// The share.
    #[must_use]
    pub fn share(self) -> f64 {
        self.0
    }

    /// The number of `n` elements that are kept: `round(k n)`, at least one of them.
    #[must_use]
    pub fn n_kept(self, n: u64) -> u64 {
        ((self.0 * n as f64).round() as u64).clamp(1.min(n), n)
    }
}

/// A measure of how far apart two tensors are.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Metric {
    /// Cosine dissimilarity.
    Cosine,
    /// Euclidean distance.
    L2,
    /// Soft sign dissimilarity, as reconstructed.
    Ssd,
    /// Truncated soft sign dissimilarity, as reconstructed.
    Tssd(Keep),
}

impl Metric {
    /// Whether the formula is a reconstruction: see [`RECONSTRUCTION_NOTE`].
    #[must_use]
    pub fn is_reconstruction(self) -> bool {
        matches!(self, Self::Ssd | Self::Tssd(_))
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cosine => f.write_str("cosine"),
            Self::L2 => f.write_str("l2"),
            Self::Ssd => f.write_str("ssd"),
            Self::Tssd(Keep(share)) => write!(f, "tssd({share})"),
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    /// The metric that is displayed so: `cosine`, `l2`, `ssd`, `tssd(0.2)`.
    ///
    /// # Errors
    /// [`Error::BadParameter`] for anything else.
    fn from_str(text: &str) -> Result<Self> {
        let share = text
            .strip_prefix("tssd(")
            .and_then(|of| of.strip_suffix(')'));
        match (text, share.map(str::parse)) {
            ("cosine", _) => Ok(Self::Cosine),
            ("l2", _) => Ok(Self::L2),
            ("ssd", _) => Ok(Self::Ssd),
            (_, Some(Ok(share))) => Ok(Self::Tssd(Keep::new(share)?)),
            _ => Err(Error::BadParameter {
                name: "metric",
                wanted: "`cosine`, `l2`, `ssd`, or `tssd(K)` with the share K of elements that it keeps",
                place: crate::recipe::Place::default(),
            }),
        }
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The kind of the compared vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operands {
    /// Weights minus the seed's weights.
    ModalityVectors,
    /// The weights themselves.
    RawWeights,
}

impl fmt::Display for Operands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ModalityVectors => "modality vectors (weights minus seed)",
            Self::RawWeights => "raw weights (no seed given)",
        })
    }
}
