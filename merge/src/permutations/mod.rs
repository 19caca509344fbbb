//! Matches the hidden units, attention heads and residual numbers of two transformers: the permutations that leave the
//! outputs of a model alone, and the best of them by weights or by activations.
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
