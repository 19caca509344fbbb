//! The parameters of a method, by name.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Located, Place};
use crate::{Error, Expert, Result};

/// One value as written.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Case {
    /// A part of the name, as in mergekit; `*` fits every name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The whole name with `*` for any characters and `?` for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub glob: Option<String>,
    /// A regular expression that fits some part of the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// The value, which may be a gradient.
    pub value: CaseValue,
}

/// The value of a [`Case`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum CaseValue {
    /// The same in all layers.
    One(Scalar),
    /// Values along the layers.
    Gradient(Vec<Scalar>),
}

impl Case {
    /// Whether it fits every name.
    pub(crate) fn fits_all(&self) -> bool {
        let is_all = |pattern: &Option<String>, all: &str| match pattern {
            None => true,
            Some(pattern) => pattern == all,
        };
        let is_empty = matches!(&self.value, CaseValue::Gradient(values) if values.is_empty());
        is_all(&self.filter, "*") && is_all(&self.glob, "*") && self.regex.is_none() && !is_empty
    }

    /// Its patterns as a recipe has them, e.g. `filter: mlp`.
    pub(crate) fn patterns(&self) -> String {
        let keys = [
            ("filter", &self.filter),
            ("glob", &self.glob),
            ("regex", &self.regex),
        ];
        let given = keys
            .into_iter()
            .filter_map(|(key, pattern)| Some(format!("{key}: {}", pattern.as_ref()?)));
        given.collect::<Vec<_>>().join(", ")
    }
}

/// Forms of a parameter, for errors.
const FORMS: &str = "a parameter: a number, `true`, `false`, a text, a gradient as `[0, 0.5, 1]`, a case as \
                     `{ filter: mlp, value: 0.5 }`, a list of cases, or a map with a number for each expert";

/// A part of a parameter: a value, a list of values or of cases, a case, or numbers of experts.
enum Written {
    Scalar(Scalar),
    List(Vec<Written>),
    Case(Case),
    PerExpert(BTreeMap<Expert, f64>),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyForm;

        impl<'de> Visitor<'de> for AnyForm {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORMS)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Written, E> {
                Ok(Written::Scalar(Scalar::Flag(value)))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Written, E> {
                self.visit_f64(value as f64)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Written, E> {
                self.visit_f64(value as f64)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Written, E> {
                Ok(Written::Scalar(Scalar::Number(value)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Written, E> {
                Ok(Written::Scalar(Scalar::Text(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Written, E> {
                Err(E::custom(format!("nothing is given, expected {FORMS}")))
            }

            fn visit_none<E: de::Error>(self) -> Result<Written, E> {
                self.visit_unit()
            }

            fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<Written, D::Error> {
                Written::deserialize(inner)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
                let mut all = Vec::new();
                while let Some(one) = list.next_element()? {
                    all.push(one);
                }
                Ok(Written::List(all))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Written, A::Error> {
                of_map(map)
            }
        }

        deserializer.deserialize_any(AnyForm)
    }
}

/// A case, or numbers of experts, by the keys.
fn of_map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Written, A::Error> {
    let (mut filter, mut glob, mut regex, mut value) = (None, None, None, None);
    let mut of_experts = BTreeMap::new();
    while let Some(key) = map.next_key::<String>()? {
        match key.as_str() {
            "filter" => filter = map.next_value()?,
            "glob" => glob = map.next_value()?,
            "regex" => regex = map.next_value()?,
            "value" => value = Some(map.next_value::<CaseValue>()?),
            name => {
                let Ok(expert) = name.parse() else {
                    return Err(de::Error::custom(format!(
                        "unknown key `{name}`: a case has `value`, and one or more of `filter`, `glob` and `regex`"
                    )));
                };
                of_experts.insert(expert, map.next_value()?);
            }
        }
    }
    let is_case = filter.is_some() || glob.is_some() || regex.is_some() || value.is_some();
    match value {
        Some(value) if of_experts.is_empty() => Ok(Written::Case(Case {
            filter,
            glob,
            regex,
            value,
        })),
        _ if is_case && !of_experts.is_empty() => Err(de::Error::custom(
            "a map has the keys of a case or names of experts, not both",
        )),
        _ if is_case => Err(de::Error::custom("a case without `value`")),
        _ => Ok(Written::PerExpert(of_experts)),
    }
}

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Written::deserialize(deserializer)? {
            Written::Scalar(Scalar::Flag(value)) => Self::Flag(value),
            Written::Scalar(Scalar::Number(value)) => Self::Number(value),
            Written::Scalar(Scalar::Text(text)) => Self::Text(text),
            Written::Case(case) => Self::Case(case),
            Written::PerExpert(values) => Self::PerExpert(values),
            Written::List(list) if matches!(list.first(), Some(Written::Case(_))) => {
                let cases = list.into_iter().map(|one| match one {
                    Written::Case(case) => Ok(case),
                    _ => Err(de::Error::custom(MIXED)),
                });
                Self::Cases(cases.collect::<Result<_, _>>()?)
            }
            Written::List(list) => Self::Gradient(scalars(list)?),
        })
    }
}

/// The fault of a list with values and cases.
const MIXED: &str = "a list has values along the layers, or cases, not both: a case that fits all names is \
                     `{ value: 0.5 }`";

/// The values of a gradient.
fn scalars<E: de::Error>(list: Vec<Written>) -> Result<Vec<Scalar>, E> {
    let values = list.into_iter().map(|one| match one {
        Written::Scalar(value) => Ok(value),
        Written::Case(_) => Err(E::custom(MIXED)),
        _ => Err(E::custom(
            "a gradient has numbers, `true`, `false` or texts, not lists or maps",
        )),
    });
    values.collect()
}

impl<'de> Deserialize<'de> for CaseValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Scalar(value) => Ok(Self::One(value)),
            Written::List(list) => Ok(Self::Gradient(scalars(list)?)),
            _ => Err(de::Error::custom(
                "the `value` of a case is a number, `true`, `false`, a text, or a gradient of these",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Scalar(value) => Ok(value),
            _ => Err(de::Error::custom(
                "expected a number, `true`, `false` or a text",
            )),
        }
    }
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
