//! Parameters that a recipe gives to another name of a tensor.

use std::collections::BTreeMap;

use super::{Builder, Wanted};
use crate::Result;
use crate::methods::{Member, Values};
use crate::plan::opener::Opener;
use crate::plan::settings::Own;

/// Tied tensors that are named in a note.
const MAX_NAMED: usize = 3;

impl Builder<'_> {
    /// Notes other names of tensors that the recipe gives other parameters than the tensor: one tensor has one
    /// set of them, those of the name that it goes by.
    pub(super) fn check_ties(&mut self, wanted: &[Wanted<'_>], opener: &Opener) {
        let mut aliases: BTreeMap<String, String> = BTreeMap::new();
        for source in &self.models.sources {
            let own = source.aliases().iter();
            aliases.extend(own.map(|(name, of)| (name.clone(), of.clone())));
        }
        if aliases.is_empty() {
            return;
        }
        let by_name: BTreeMap<&str, &Wanted<'_>> = (wanted.iter())
            .map(|wanted| (wanted.name.as_str(), wanted))
            .collect();
        let mut differing = Vec::new();
        for (name, of) in &aliases {
            let Some(&wanted) = by_name.get(of.as_str()) else {
                continue;
            };
            // Their faults are found when they are merged.
            if let (Ok(own), Ok(others)) =
                (self.values_of(wanted, of), self.values_of(wanted, name))
                && !own.are_those_of(&others)
            {
                differing.push(format!("`{name}` is `{of}`"));
            }
        }
        let more = match differing.len().saturating_sub(MAX_NAMED) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        differing.truncate(MAX_NAMED);
        if !differing.is_empty() {
            opener.note(&[format!(
                "the recipe gives other names of tied tensors other parameters, which have no effect: {}{more}; a tied \
                 tensor is merged once, with the parameters of the name that it goes by",
                differing.join(", ")
            )]);
        }
    }

    /// The parameters that the recipe gives to the inputs of an output under a name.
    fn values_of(&mut self, wanted: &Wanted<'_>, name: &str) -> Result<Values> {
        let members: Vec<Member> = (wanted.members.iter())
            .map(|input| Member::Model(self.models.name(input.tensor.source)))
            .collect();
        let own: Vec<Own<'_>> = wanted.members.iter().map(|input| input.own).collect();
        (self.settings).resolve(name, wanted.layer, &members, &own, &wanted.shared)
    }
}
