//! Which hidden units, attention heads and numbers of the residual stream of one transformer are which of another's: the
//! permutations that leave a model as it computes, and the best of them by weights or by activations.
//!
//! [`Network`] knows the axes of each tensor that such a permutation moves, from the names that published spellings have.
//! [`match_networks`] finds the permutations by coordinate descent over weights, [`match_activations`] by correlations of
//! what layers read.

mod activations;
mod axes;
mod descent;
mod roles;
mod similarity;

pub(crate) use activations::{Activations, match_activations};

pub(crate) use axes::Network;
pub(crate) use descent::match_networks;
