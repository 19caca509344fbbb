//! The parameters of a method, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Located, Place};
use crate::{Error, Expert, Result};

/// One value as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Parameter {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text, e.g. a file name.
    Text(String),
    /// A gradient: values along the layers.
    Gradient(Vec<Scalar>),
    /// Values for tensors by their names; the first that fits decides.
    Cases(Vec<Case>),
    /// The same with a single case.
    Case(Case),
    /// A number for each expert.
    PerExpert(BTreeMap<Expert, f64>),
}

/// A value that is not composed of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Scalar {
    /// Yes or no.
    Flag(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A value for the tensors whose names fit; without a pattern, for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// A part of the name, as in mergekit; `*` fits every name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The whole name with `*` for any characters and `?` for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glob: Option<String>,
    /// A regular expression that fits some part of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// The value, which may be a gradient.
    pub value: CaseValue,
}

/// The value of a [`Case`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum CaseValue {
    /// The same in all layers.
    One(Scalar),
    /// Values along the layers.
    Gradient(Vec<Scalar>),
}

/// All parameters that a recipe gives in one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(pub BTreeMap<String, Located<Parameter>>);

impl Parameters {
    /// Whether none is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: Parameter) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The value of one, and where it stands.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<(&Parameter, Place)> {
        self.0
            .get(name)
            .map(|located| (&located.value, located.place))
    }

    /// Refuses parameters that a method does not have.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] with the names the method knows.
    pub fn allow_only(&self, method: &'static str, known: &[&'static str]) -> Result<()> {
        let unknown = self
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()));
        match unknown {
            None => Ok(()),
            Some((name, value)) => Err(Error::UnknownParameter {
                method,
                name: name.clone(),
                known: known.join(", "),
                place: value.place,
            }),
        }
    }

    /// A number, or `default` if it is not given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is not a number for which `is_valid` holds; `range` says
    /// in words the valid values.
    pub fn number(
        &self,
        name: &'static str,
        default: f64,
        range: &'static str,
        is_valid: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some((&Parameter::Number(value), _)) if value.is_finite() && is_valid(value) => {
                Ok(value)
            }
            Some((_, place)) => Err(bad(name, range, place)),
        }
    }

    /// A text, if it is given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is something else.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>> {
        match self.get(name) {
            None => Ok(None),
            Some((Parameter::Text(text), _)) => Ok(Some(text)),
            Some((_, place)) => Err(bad(name, "a text", place)),
        }
    }

    /// Weights of experts, none negative, if they are given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is something else.
    pub fn weights(&self, name: &'static str) -> Result<Option<Vec<(Expert, f64)>>> {
        let is_weight = |weight: &f64| weight.is_finite() && *weight >= 0.0;
        match self.get(name) {
            None => Ok(None),
            Some((Parameter::PerExpert(weights), place))
                if weights.values().all(is_weight)
                    && !weights.values().sum::<f64>().is_finite() =>
            {
                Err(bad(
                    name,
                    "such that their sum is no larger than a number can be",
                    place,
                ))
            }
            Some((Parameter::PerExpert(weights), _)) if weights.values().all(is_weight) => {
                Ok(Some(
                    weights
                        .iter()
                        .map(|(&expert, &weight)| (expert, weight))
                        .collect(),
                ))
            }
            Some((_, place)) => Err(bad(name, "a number ≥ 0 for each expert", place)),
        }
    }
}

fn bad(name: &'static str, wanted: &'static str, place: Place) -> Error {
    Error::BadParameter {
        name,
        wanted,
        place,
    }
}
