//! Compares task vectors of fine-tuned models, and names the merge methods that suit them.
//!
//! [`measure`] reads a base and its fine-tuned models run by run: norms, cosines, signs, and how much the leading left
//! singular vectors of each matrix have in common. [`ranked`] turns the numbers into an order of methods: the mean
//! accuracy that is published for a method, moved by the rules of [`RULES`]. The order is a heuristic.

mod facts;
mod rules;
mod subspaces;
mod sums;

pub use facts::{BlockFacts, Facts, MatrixFacts, ModelFacts, Options, PairFacts, Shares, measure};
pub use rules::{METHODS, Published, RULES, Ranked, Reason, Rule, ranked};
