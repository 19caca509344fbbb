//! Arguments of a run of Megatron: those in its files, and those that a user gives where the files lack them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::io::{ObjectPath, PathSegment, PlainValue};
use crate::{Checkpoint, ConversionFault, Result};

/// Arguments that matter.
const KNOWN: [&str; 13] = [
    "group_query_attention",
    "kv_channels",
    "max_position_embeddings",
    "norm_epsilon",
    "normalization",
    "num_attention_heads",
    "num_query_groups",
    "position_embedding_type",
    "rope_scaling_factor",
    "rotary_base",
    "swiglu",
    "use_rope_scaling",
    "vocab_size",
];

/// Arguments of a run of Megatron that its files lack, as a user gives them.
///
/// # Example
/// ```
/// use merge::convert::RunArguments;
///
/// let given = RunArguments::parse(&["vocab_size=32000", "rotary_base=1e6"])?;
/// assert_eq!(given.to_string(), "rotary_base=1000000, vocab_size=32000");
/// assert!(RunArguments::parse(&["heads=8"]).is_err());
/// # Ok::<(), merge::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunArguments(BTreeMap<String, PlainValue>);

impl RunArguments {
    /// Arguments of the form `NAME=VALUE`, named as Megatron's own parser names them.
    ///
    /// # Errors
    /// [`ConversionFault::UnknownArgument`] for a name that no conversion reads, for one without a value, and for one that is
    /// given twice.
    pub fn parse(given: &[impl AsRef<str>]) -> Result<Self> {
        let mut arguments = BTreeMap::new();
        for text in given {
            let text = text.as_ref();
            let unknown = || ConversionFault::UnknownArgument {
                given: text.to_owned(),
                known: KNOWN.join(", "),
            };
            let (name, value) = text.split_once('=').ok_or_else(unknown)?;
            let is_new = KNOWN.contains(&name)
                && !value.is_empty()
                && arguments.insert(name.to_owned(), parsed(value)).is_none();
            if !is_new {
                return Err(unknown().into());
            }
        }
        Ok(Self(arguments))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for RunArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self
            .0
            .iter()
            .map(|(name, value)| format!("{name}={}", shown(value)));
        f.write_str(&said.collect::<Vec<_>>().join(", "))
    }
}

fn parsed(text: &str) -> PlainValue {
    match (
        text.to_ascii_lowercase().as_str(),
        text.parse::<i64>(),
        text.parse::<f64>(),
    ) {
        ("true", ..) => PlainValue::Bool(true),
        ("false", ..) => PlainValue::Bool(false),
        (_, Ok(number), _) => PlainValue::Integer(number),
        (_, _, Ok(number)) => PlainValue::Float(number),
        _ => PlainValue::Text(text.to_owned()),
    }
}

fn shown(value: &PlainValue) -> String {
    match value {
        PlainValue::None => "None".into(),
        PlainValue::Bool(flag) => flag.to_string(),
        PlainValue::Integer(number) => number.to_string(),
        PlainValue::Float(number) => number.to_string(),
        PlainValue::Text(text) => text.clone(),
    }
}

/// The arguments of the run that made a checkpoint.
pub(super) struct Arguments<'a> {
    path: &'a Path,
    said: BTreeMap<&'a str, &'a PlainValue>,
}

impl<'a> Arguments<'a> {
    /// Those of the checkpoint's files, and those that a user gives.
    ///
    /// # Errors
    /// [`ConversionFault::OtherArgument`] if they contradict each other.
    pub(super) fn of(source: &'a Checkpoint, given: &'a RunArguments) -> Result<Self> {
        let mut said: BTreeMap<&str, &PlainValue> = BTreeMap::new();
        for (ObjectPath(path), value) in &source.info().values {
            if let [PathSegment::Key(of), PathSegment::Key(name)] = &path[..]
                && of == "args"
                && *value != PlainValue::None
            {
                said.insert(name, value);
            }
        }
        for (name, value) in &given.0 {
            let before = said.insert(name, value);
            let is_other = |before: &&PlainValue| shown(before) != shown(value);
            if let Some(before) = before.filter(is_other) {
                return Err(ConversionFault::OtherArgument {
                    path: source.path().into(),
                    name: name.clone(),
                    given: shown(value),
                    found: shown(before),
                }
                .into());
            }
        }
        Ok(Self {
            path: source.path(),
            said,
        })
    }

    /// An argument as text, such as `RMSNorm`, `True` being `true`.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.said.get(name).map(|value| shown(value))
    }

    /// Whether an argument is set to true.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.said.get(name) == Some(&&PlainValue::Bool(true))
    }

    /// A positive whole number, if the argument is there.
    pub(super) fn count(&self, name: &'static str) -> Result<Option<usize>> {
        match self.said.get(name) {
            None => Ok(None),
            Some(PlainValue::Integer(number)) if *number > 0 => Ok(Some(*number as usize)),
            Some(_) => Err(self.unfit(name, "a positive whole number")),
        }
    }

    /// A positive number, if the argument is there.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<f64>> {
        match self.said.get(name) {
            None => Ok(None),
            Some(PlainValue::Integer(number)) if *number > 0 => Ok(Some(*number as f64)),
            Some(PlainValue::Float(number)) if *number > 0.0 && number.is_finite() => {
                Ok(Some(*number))
            }
            Some(_) => Err(self.unfit(name, "a positive number")),
        }
    }

    /// The fault of an argument whose model has no counterpart.
    pub(super) fn unfit(&self, name: &'static str, wanted: &'static str) -> crate::Error {
        ConversionFault::UnfitArgument {
            path: self.path.into(),
            name,
            found: self.text(name).unwrap_or_default(),
            wanted,
        }
        .into()
    }

    /// The fault of an argument that nobody says.
    pub(super) fn missing(&self, name: &'static str) -> crate::Error {
        ConversionFault::MissingArgument {
            path: self.path.into(),
            name,
        }
        .into()
    }

    /// An argument that must be there.
    pub(super) fn required<T>(&self, name: &'static str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.missing(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read_as_python_has_them() {
        let given = [
            "vocab_size=7",
            "norm_epsilon=1e-6",
            "swiglu=True",
            "normalization=RMSNorm",
        ];
        let RunArguments(found) = RunArguments::parse(&given).expect("known");
        assert_eq!(found["vocab_size"], PlainValue::Integer(7));
        assert_eq!(found["norm_epsilon"], PlainValue::Float(1e-6));
        assert_eq!(found["swiglu"], PlainValue::Bool(true));
        assert_eq!(found["normalization"], PlainValue::Text("RMSNorm".into()));
        for wrong in [
            &["vocab_size"][..],
            &["vocab_size="],
            &["other=1"],
            &["swiglu=1", "swiglu=1"],
        ] {
            assert!(RunArguments::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
