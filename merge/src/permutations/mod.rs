//! Matches the hidden units, attention heads and residual numbers of two transformers: the permutations that leave the
//! outputs of a model alone, and the best of them by weights.
//!
//! [`Network`] knows the axes of each tensor that such a permutation moves, from the names that published spellings have.
//! [`match_networks`] finds the permutations by coordinate descent.

mod axes;
mod descent;
mod roles;

pub(crate) use axes::Network;
pub(crate) use descent::match_networks;
