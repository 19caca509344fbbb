//! The parameters of a method, and their values for one group.

use std::collections::BTreeMap;

use crate::methods::Member;
use crate::recipe::Place;
use crate::{MergeFault, Result};

/// The owner of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One value for a group.
    Shared,
    /// One for each member.
    PerMember,
}

/// The values that a parameter takes.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Finite numbers for which `holds`; `range` says in words which.
    Number {
        /// In words.
        range: &'static str,
        /// Whether a number is valid.
        holds: fn(f64) -> bool,
    },
    /// Yes or no.
    Flag,
    /// One of some names; `true` and `false` stand for `yes` and `no`, where these are names.
    Choice {
        /// The names.
        names: &'static [&'static str],
        /// The meaning of `true`.
        yes: &'static str,
        /// The meaning of `false`.
        no: &'static str,
    },
    /// The path of a file.
    File,
}

/// A value for one group, checked.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// A number.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// A name or a path.
    Text(String),
}

/// A value that holds where a recipe gives none.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// There is none: the recipe must give it.
    Required,
    /// The parameter may be left out, which means something of its own.
    Absent,
    /// A number.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// A name.
    Text(&'static str),
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug)]
pub struct ParameterSpec {
    /// Its name.
    pub name: &'static str,
    /// Its owner.
    pub scope: Scope,
    /// The values that it takes.
    pub kind: Kind,
    /// The value unless it is given.
    pub default: Fallback,
}

/// Any finite number.
pub(super) const FINITE: Kind = Kind::Number {
    range: "a finite number",
    holds: |_| true,
};

/// A share.
pub(super) const SHARE: Kind = Kind::Number {
    range: "a number from 0 to 1",
    holds: |value| (0.0..=1.0).contains(&value),
};

/// A number that is not negative.
pub(super) const NOT_NEGATIVE: Kind = Kind::Number {
    range: "a number ≥ 0",
    holds: |value| value >= 0.0,
};

/// A number above 0.
pub(super) const POSITIVE: Kind = Kind::Number {
    range: "a number above 0",
    holds: |value| value > 0.0,
};

/// A count.
pub(super) const WHOLE: Kind = Kind::Number {
    range: "a whole number from 0 to 1,000,000",
    holds: |value| value.fract() == 0.0 && (0.0..=1e6).contains(&value),
};

/// The parameter that nearly every method has.
pub(super) const WEIGHT: ParameterSpec = ParameterSpec {
    name: "weight",
    scope: Scope::PerMember,
    kind: FINITE,
    default: Fallback::Required,
};

impl ParameterSpec {
    /// One value for a group.
    pub(super) const fn shared(name: &'static str, kind: Kind, default: Fallback) -> Self {
        Self {
            name,
            scope: Scope::Shared,
            kind,
            default,
        }
    }

    /// One value for each member.
    pub(super) const fn per_member(name: &'static str, kind: Kind, default: Fallback) -> Self {
        Self {
            name,
            scope: Scope::PerMember,
            kind,
            default,
        }
    }
}

type Settings = BTreeMap<&'static str, (Setting, Place)>;

/// The values of a method's parameters for one group.
#[derive(Clone, Debug, Default)]
pub struct Values {
    /// Those of the group.
    pub shared: Settings,
    /// Those of each member, in order.
    pub members: Vec<Settings>,
}

impl Values {
    /// Whether both hold the same, wherever it stands in a recipe.
    pub(crate) fn are_those_of(&self, other: &Self) -> bool {
        let same = |one: &Settings, other: &Settings| {
            let values = |settings: &Settings| -> Vec<(&'static str, Setting)> {
                let all = settings.iter();
                all.map(|(name, (value, _))| (*name, value.clone()))
                    .collect()
            };
            values(one) == values(other)
        };
        let mut members = self.members.iter().zip(&other.members);
        same(&self.shared, &other.shared)
            && self.members.len() == other.members.len()
            && members.all(|(one, other)| same(one, other))
    }

    /// The first of these parameters that has other values than in `first`, and where one of the two stands.
    pub(super) fn unlike(
        &self,
        first: &Self,
        names: impl IntoIterator<Item = &'static str>,
    ) -> (&'static str, Place) {
        fn all<'a>(values: &'a Values, name: &str) -> Vec<Option<&'a (Setting, Place)>> {
            let settings = std::iter::once(&values.shared).chain(&values.members);
            settings.map(|settings| settings.get(name)).collect()
        }
        for name in names {
            let (own, firsts) = (all(self, name), all(first, name));
            let n = own.len().max(firsts.len());
            // Places are equal wherever they are.
            if let Some(at) = (0..n).find(|&at| own.get(at) != firsts.get(at)) {
                let places = [own.get(at), firsts.get(at)]
                    .into_iter()
                    .flatten()
                    .flatten();
                let place = places.map(|found| found.1).find(|place| place.line > 0);
                return (name, place.unwrap_or_default());
            }
        }
        ("parameters", Place::default())
    }

    /// A shared number; 0 if the method does not have it.
    pub(super) fn number(&self, name: &'static str) -> f64 {
        number(&self.shared, name)
    }

    /// A shared number, if it is given.
    pub(super) fn number_if_any(&self, name: &'static str) -> Option<f64> {
        match self.shared.get(name) {
            Some(&(Setting::Number(value), _)) => Some(value),
            _ => None,
        }
    }

    /// A shared yes or no.
    pub(super) fn flag(&self, name: &'static str) -> bool {
        matches!(self.shared.get(name), Some((Setting::Flag(true), _)))
    }

    /// A shared name or path.
    pub(super) fn text(&self, name: &'static str) -> Option<&str> {
        match self.shared.get(name) {
            Some((Setting::Text(text), _)) => Some(text),
            _ => None,
        }
    }

    /// Each member's number.
    pub(crate) fn numbers(&self, name: &'static str) -> Vec<f64> {
        let members = self.members.iter();
        members.map(|settings| number(settings, name)).collect()
    }

    /// The place of a member's value (of the first member: a shared value).
    pub(crate) fn place(&self, name: &'static str, member: usize) -> Place {
        let of_member = self
            .members
            .get(member)
            .and_then(|settings| settings.get(name));
        let found = of_member.or_else(|| self.shared.get(name));
        found.map(|(_, place)| *place).unwrap_or_default()
    }

    /// Each member's `weight`, divided by their sum if `normalized`.
    pub(super) fn shares(&self, slot: &str, normalized: bool) -> Result<Vec<f64>> {
        let weights = self.numbers("weight");
        if !normalized {
            return Ok(weights);
        }
        let sum: f64 = weights.iter().sum();
        if sum.abs() < MIN_WEIGHT_SUM {
            return Err(MergeFault::WeightsSumToZero {
                slot: slot.to_owned(),
                place: self.place("weight", 0),
            }
            .into());
        }
        Ok(weights.iter().map(|weight| weight / sum).collect())
    }
}

/// Below this a sum of weights is nothing but rounding.
const MIN_WEIGHT_SUM: f64 = 1e-12;

fn number(settings: &Settings, name: &'static str) -> f64 {
    match settings.get(name) {
        Some(&(Setting::Number(value), _)) => value,
        _ => 0.0,
    }
}

/// `0.5 a + 0.5 b`.
pub(super) fn weighted_names(weights: &[f64], members: &[Member]) -> String {
    let terms = weights.iter().zip(members);
    let terms: Vec<String> = terms
        .map(|(weight, member)| format!("{weight:.4} {}", member.label()))
        .collect();
    terms.join(" + ")
}
