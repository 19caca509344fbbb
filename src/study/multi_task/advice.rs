//! The predictions of `vlmerge advise` for the merges of a study, before anything is measured.

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use crate::study::Store;
use crate::study::recipe::MergePoint;
use crate::study::step::Place;

/// The part of the verb's `--json` that orders methods.
#[derive(Debug, Deserialize)]
struct Said {
    ranking: Vec<Prediction>,
}

/// The prediction for a method.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Prediction {
    method: String,
    /// The parameter that it is meant with, as `key: value`; empty for any.
    #[serde(default)]
    with: String,
    /// The higher, the more promising.
    pub score: f64,
    reasons: Vec<Reason>,
}

/// A rule that has moved it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Reason {
    rule: String,
}

impl Prediction {
    /// The names of the rules that have moved it.
    pub fn rules(&self) -> Vec<String> {
        self.reasons.iter().map(|of| of.rule.clone()).collect()
    }

    fn is_of(&self, point: &MergePoint) -> bool {
        let has = |with: &str| {
            let pair = with.split_once(": ");
            pair.is_some_and(|(key, value)| point.parameters.get(key) == Some(&json!(value)))
        };
        self.method == point.method && (self.with.is_empty() || has(&self.with))
    }
}

/// Reads what a step of `advise` printed.
pub fn read(store: &Store, place: &Place) -> Result<Vec<Prediction>> {
    let path = store.path("", place);
    let failed = || format!("cannot read the advice in {}", path.display());
    let text = std::fs::read(&path).with_context(failed)?;
    let said: Said = serde_json::from_slice(&text).with_context(failed)?;
    Ok(said.ranking)
}

/// The prediction for a merge, if there is one: that for its parameters before that for its method.
pub fn prediction<'a>(predictions: &'a [Prediction], point: &MergePoint) -> Option<&'a Prediction> {
    let own = predictions.iter().filter(|of| of.is_of(point));
    own.max_by_key(|of| !of.with.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_of_a_method_takes_its_own_prediction_and_others_take_that_of_the_method() {
        let of = |method: &str, with: &str, score| Prediction {
            method: method.into(),
            with: with.into(),
            score,
            reasons: Vec::new(),
        };
        let predictions = [
            of("regmean", "grams: task_vectors", 84.5),
            of("regmean", "", 82.4),
            of("wudi", "", 84.5),
        ];
        let score = |method: &str, parameters: serde_json::Value| {
            let point = MergePoint {
                method: method.into(),
                parameters: parameters.as_object().expect("a map").clone(),
                at: None,
            };
            prediction(&predictions, &point).map(|of| of.score)
        };
        assert_eq!(score("regmean", json!({ "shrink": 0.9 })), Some(82.4));
        assert_eq!(
            score("regmean", json!({ "grams": "task_vectors" })),
            Some(84.5)
        );
        assert_eq!(
            score("regmean", json!({ "grams": "a.gram.safetensors" })),
            Some(82.4)
        );
        assert_eq!(score("lines", json!({ "method": "wudi" })), None);
    }
}
