//! The parameters of a method, by name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Error, Expert, Result};

/// One value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Parameter {
    /// A number.
    Number(f64),
    /// A text, e.g. a file name.
    Text(String),
    /// A number for each expert.
    PerExpert(BTreeMap<Expert, f64>),
}

/// All parameters that a recipe gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(pub BTreeMap<String, Parameter>);

impl Parameters {
    /// Whether none is given.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets one.
    pub fn set(&mut self, name: &str, value: Parameter) {
        self.0.insert(name.to_owned(), value);
    }

    /// Refuses parameters that a method does not have.
    ///
    /// # Errors
    /// [`Error::UnknownParameter`] with the names the method knows.
    pub fn allow_only(&self, method: &'static str, known: &'static [&'static str]) -> Result<()> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => Err(Error::UnknownParameter {
                method,
                name: name.clone(),
                known: known.join(", "),
            }),
        }
    }

    /// A number, or `default` if it is not given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is not a number for which `is_valid` holds; `range` says
    /// in words what is valid.
    pub fn number(
        &self,
        name: &'static str,
        default: f64,
        range: &'static str,
        is_valid: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        match self.0.get(name) {
            None => Ok(default),
            Some(&Parameter::Number(value)) if value.is_finite() && is_valid(value) => Ok(value),
            Some(_) => Err(bad(name, range)),
        }
    }

    /// A text, if it is given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is something else.
    pub fn text(&self, name: &'static str) -> Result<Option<&str>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::Text(text)) => Ok(Some(text)),
            Some(_) => Err(bad(name, "a text")),
        }
    }

    /// Weights of experts, none negative, if they are given.
    ///
    /// # Errors
    /// [`Error::BadParameter`] when it is something else.
    pub fn weights(&self, name: &'static str) -> Result<Option<Vec<(Expert, f64)>>> {
        let is_weight = |weight: &f64| weight.is_finite() && *weight >= 0.0;
        match self.0.get(name) {
            None => Ok(None),
            Some(Parameter::PerExpert(weights)) if weights.values().all(is_weight) => Ok(Some(
                weights
                    .iter()
                    .map(|(&expert, &weight)| (expert, weight))
                    .collect(),
            )),
            Some(_) => Err(bad(name, "a number ≥ 0 for each expert")),
        }
    }
}

fn bad(name: &'static str, wanted: &'static str) -> Error {
    Error::BadParameter { name, wanted }
}
