//! Recognizes tensors of layers by their names alone.

use std::collections::{BTreeMap, BTreeSet};

/// A name that says its layer: `prefix.layer.rest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) layer: usize,
    pub(crate) rest: &'a str,
}

/// The stacks of layers of a checkpoint, and how many layers each has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stacks(pub(crate) BTreeMap<String, usize>);

impl Stacks {
    /// Finds stacks: names with a number in them that runs from 0 to at least 1 without a gap, where
    /// what follows the number has at least two parts, as the modules of a layer have.
    pub(crate) fn of<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self::of_layers(names, 2)
    }

    /// Likewise, where one layer makes a stack.
    pub(crate) fn of_one_or_more<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        Self::of_layers(names, 1)
    }

    fn of_layers<'a>(names: impl Iterator<Item = &'a str>, least: usize) -> Self {
        let stacks = Self::seen(names).into_iter();
        let stacks = stacks
            .filter(|(_, seen)| seen.len() >= least && seen.last() == Some(&(seen.len() - 1)));
        Self(
            stacks
                .map(|(prefix, seen)| (prefix.to_owned(), seen.len()))
                .collect(),
        )
    }

    /// The numbers behind the beginnings of names, where something of several parts follows: layers, whole
    /// stacks or not.
    pub(crate) fn seen<'a>(
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<&'a str, BTreeSet<usize>> {
        let mut layers: BTreeMap<&str, (BTreeSet<usize>, bool)> = BTreeMap::new();
        for place in names.filter_map(split) {
            let (seen, has_modules) = layers.entry(place.prefix).or_default();
            seen.insert(place.layer);
            *has_modules |= place.rest.contains('.');
        }
        let with_modules = layers
            .into_iter()
            .filter(|(_, (_, has_modules))| *has_modules);
        with_modules
            .map(|(prefix, (seen, _))| (prefix, seen))
            .collect()
    }

    /// The layer that a name belongs to, and how many its stack has.
    pub(crate) fn layer<'a>(&self, name: &'a str) -> Option<(Place<'a>, usize)> {
        let place = split(name)?;
        let n_layers = *self.0.get(place.prefix)?;
        (place.layer < n_layers).then_some((place, n_layers))
    }
}

/// Splits a name at its first part that is a number.
fn split(name: &str) -> Option<Place<'_>> {
    let mut start = 0;
    for part in name.split('.') {
        let end = start + part.len();
        let is_number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if is_number && start > 0 && end < name.len() {
            return Some(Place {
                prefix: &name[..start - 1],
                layer: part.parse::<u16>().ok()?.into(),
                rest: &name[end + 1..],
            });
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_from_lists_of_weights() {
        let names = [
            "model.embed.weight",
            "model.layers.0.attn.q.weight",
            "model.layers.1.attn.q.weight",
            "model.layers.1.experts.7.w1.weight",
            "projector.0.weight",
            "projector.1.weight",
            "tower.blocks.0.norm.weight",
            "tower.blocks.2.norm.weight",
        ];
        let stacks = Stacks::of(names.into_iter());
        assert_eq!(stacks.0, BTreeMap::from([("model.layers".to_owned(), 2)]));
        let (place, n_layers) = stacks.layer(names[3]).expect("a layer");
        assert_eq!(
            (place.layer, place.rest, n_layers),
            (1, "experts.7.w1.weight", 2)
        );
        assert_eq!(stacks.layer(names[0]), None);
        let one = ["layers.0.attn.q.weight", "projector.0.weight"];
        assert_eq!(Stacks::of(one.into_iter()).0, BTreeMap::new());
        let stacks = Stacks::of_one_or_more(one.into_iter());
        assert_eq!(stacks.0, BTreeMap::from([("layers".to_owned(), 1)]));
    }
}
