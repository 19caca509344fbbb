//! NLVR2: is a sentence true of a pair of images?
//!
//! Reference: <https://aclanthology.org/P19-1644>, section 5; <https://github.com/lil-lab/nlvr>.

use std::collections::BTreeMap;

use crate::sample::{Ratio, Sample};

/// The identifier with its image pair blanked, so that all pairs of one sentence have the same:
/// `dev-0-2-1` gives `dev-0--1`. `None` if it has not at least three parts.
///
/// # Example
/// ```
/// use evaluate::metrics::nlvr2::sentence_of;
/// assert_eq!(sentence_of("dev-0-2-1").as_deref(), Some("dev-0--1"));
/// assert_eq!(sentence_of("17"), None);
/// ```
#[must_use]
pub fn sentence_of(identifier: &str) -> Option<String> {
    let mut parts: Vec<&str> = identifier.split('-').collect();
    *parts.get_mut(2)? = "";
    Some(parts.join("-"))
}

/// Accuracy over examples, and consistency: the share of sentences that are judged rightly for
/// all their image pairs. Units are sentences. If an identifier does not tell its sentence, units
/// are examples and there is no consistency.
#[must_use]
pub fn sample<'a>(examples: impl IntoIterator<Item = (&'a str, bool)>) -> Sample {
    let examples: Vec<(&str, bool)> = examples.into_iter().collect();
    let sentences: Option<Vec<String>> = examples.iter().map(|(id, _)| sentence_of(id)).collect();
    let Some(sentences) = sentences else {
        let mut sample = Sample::new(examples.len());
        let cases = examples.iter().enumerate();
        let ratio = Ratio::of_cases(cases.map(|(unit, &(_, right))| (unit, f64::from(right))));
        sample.report("accuracy", ratio);
        return sample;
    };
    let mut by_sentence: BTreeMap<&str, Vec<bool>> = BTreeMap::new();
    for (sentence, &(_, is_right)) in sentences.iter().zip(&examples) {
        by_sentence.entry(sentence).or_default().push(is_right);
    }
    let mut sample = Sample::new(by_sentence.len());
    let cases = by_sentence.values().enumerate();
    let each = cases
        .clone()
        .flat_map(|(unit, all)| all.iter().map(move |&right| (unit, f64::from(right))));
    sample.report("accuracy", Ratio::of_cases(each));
    let together = cases.map(|(unit, all)| (unit, f64::from(all.iter().all(|&right| right))));
    sample.report("consistency", Ratio::of_cases(together));
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(sample: &Sample) -> Vec<(&str, Option<f64>)> {
        let quantities = sample.quantities.iter();
        quantities
            .map(|q| (q.name.as_str(), sample.value(q)))
            .collect()
    }

    #[test]
    fn one_wrong_pair_makes_its_sentence_inconsistent() {
        let judged = sample([
            ("dev-1-0-0", true),
            ("dev-1-0-1", true),
            ("dev-1-1-0", false),
            ("dev-1-1-1", true),
        ]);
        assert_eq!(
            values(&judged),
            [("accuracy", Some(0.75)), ("consistency", Some(0.5))]
        );
        assert_eq!(judged.n_units, 2);
    }

    #[test]
    fn ids_without_a_sentence_have_no_consistency() {
        let judged = sample([("a", true), ("b", false)]);
        assert_eq!(values(&judged), [("accuracy", Some(0.5))]);
    }
}
