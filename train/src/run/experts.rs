//! Variables of experts that ranks share out.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Var;

/// Variables of the experts of mixtures where each rank holds its own alone. Empty where every rank holds all variables.
///
/// The first rank receives the others' experts when the run is kept; nobody else ever does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertVariables {
    own: BTreeSet<String>,
    /// Those of other ranks, with their shapes.
    others: BTreeMap<String, Vec<usize>>,
}

impl ExpertVariables {
    /// Of a model whose parameters have these `shapes`, and of which this rank holds `variables`.
    pub(super) fn of(
        shapes: BTreeMap<String, Vec<usize>>,
        variables: &BTreeMap<String, Var>,
        is_of_expert: impl Fn(&str) -> bool,
    ) -> Self {
        let shapes = shapes.into_iter().filter(|(name, _)| is_of_expert(name));
        let (own, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            shapes.partition(|(name, _)| variables.contains_key(name));
        Self {
            own: own.into_keys().collect(),
            others,
        }
    }

    /// Whether ranks share experts out.
    #[must_use]
    pub fn are_shared_out(&self) -> bool {
        !(self.own.is_empty() && self.others.is_empty())
    }

    /// Whether one rank alone holds the variable.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.own.contains(name) || self.others.contains_key(name)
    }

    /// Names of those that this rank holds.
    pub fn own(&self) -> impl Iterator<Item = &String> {
        self.own.iter()
    }

    /// Those of other ranks, with their shapes.
    #[must_use]
    pub fn others(&self) -> &BTreeMap<String, Vec<usize>> {
        &self.others
    }
}
