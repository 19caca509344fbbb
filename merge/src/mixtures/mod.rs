//! Mixtures of experts in checkpoints of any family: which tensors are the experts' and which have a row for each
//! expert, in any of the spellings that published models have; and bringing experts and their units into the order of
//! another checkpoint.
//!
//! [`survey`] finds the [`Mixture`]s of a checkpoint by names and shapes. [`respelled`] gives a checkpoint the names of
//! another spelling. [`Matching`] says which expert of one checkpoint is which of another.

mod assignment;
mod ffn;
mod keys;
mod matching;
mod order;
mod outputs;
mod routing;
mod sequence;

mod similarity;
pub mod spelling;
mod survey;
mod units;
mod view;

use crate::TensorInfo;

pub use assignment::{assign, assign_in_groups};
pub use matching::Matching;
pub use routing::Routing;
pub use spelling::{MixtureSpelling, respelled};
pub(crate) use survey::{MAX_EXPERTS, Survey};
pub use survey::{Mixtures, survey};
pub use units::UnitMatching;

pub(crate) use ffn::{Ffn, ffns, ffns_of};
pub(crate) use matching::{By, match_experts};
pub(crate) use order::{Order, order_of};
pub(crate) use outputs::Observed;
pub(crate) use sequence::{Sequence, match_sequences};

pub(crate) use units::{match_units, moved_piece, units_of_group};
pub(crate) use view::{Arrangement, Arranger, Origin, Piece, Rearranged, ViewedTensor};

/// The experts of one place of a model, and the router that picks among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mixture {
    /// The first part of its tensors' names, e.g. `model.layers.3.mlp`.
    pub host: String,
    /// The number of experts.
    pub n_experts: usize,
    /// The tensors of the experts, by name.
    pub tensors: Vec<ExpertTensor>,
    /// Tensors with an entry for each expert beside them: the router's, by name.
    pub router: Vec<RouterTensor>,
}

/// A tensor that each expert has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertTensor {
    /// The place of the tensor.
    pub name: ExpertName,
    /// Shape and dtype of one expert's.
    pub info: TensorInfo,
}

/// The name of an expert's tensor.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpertName {
    /// Each expert has a tensor: the number of the expert stands between these two.
    Single {
        /// Up to the number, e.g. `model.layers.3.mlp.experts.`.
        before: String,
        /// Behind the number, e.g. `.down_proj.weight`.
        after: String,
    },
    /// One tensor holds those of all experts along its first axis.
    Fused(String),
}

/// A tensor with an entry for each expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterTensor {
    /// Its name.
    pub key: String,
    /// The axis of experts: 0, or 1 behind an axis of length 1.
    pub axis: usize,
}

impl ExpertTensor {
    /// The tensor that holds an expert's, and the first element of it there.
    #[must_use]
    pub fn place(&self, expert: usize) -> (String, usize) {
        match &self.name {
            ExpertName::Single { before, after } => (format!("{before}{expert}{after}"), 0),
            ExpertName::Fused(key) => (key.clone(), expert * self.info.n_elements()),
        }
    }

    /// The name that tells it from the other tensors of an expert, e.g. `down_proj.weight`.
    #[must_use]
    pub fn part(&self) -> &str {
        match &self.name {
            ExpertName::Single { after, .. } => after.trim_start_matches('.'),
            ExpertName::Fused(key) => keys::fused(key).map_or(key, |(_, part)| part),
        }
    }
}

impl Mixture {
    /// Every tensor that belongs to an expert or has an entry for each.
    pub fn keys(&self) -> impl Iterator<Item = String> + '_ {
        let of_experts = self.tensors.iter().flat_map(|tensor| {
            let n = match tensor.name {
                ExpertName::Single { .. } => self.n_experts,
                ExpertName::Fused(_) => 1,
            };
            (0..n).map(|expert| tensor.place(expert).0)
        });
        of_experts.chain(self.router.iter().map(|tensor| tensor.key.clone()))
    }
}
