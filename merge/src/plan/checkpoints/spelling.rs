//! Explains tensors of one model that another lacks: the same model, in another spelling.

use std::collections::{BTreeMap, BTreeSet};

/// Names of the one model that are tried against all of the other.
const N_TRIED: usize = 16;

/// The difference of two models' names, and its remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spelling {
    /// The cause, as a clause without the models' names: `one` stands before `other`.
    pub(super) cause: String,
    /// The remedy.
    pub(super) advice: String,
}

/// Compares the names of two models; `None` if nothing explains the difference.
pub(super) fn compare<'a>(
    (one, names): (&str, impl Iterator<Item = &'a str>),
    (other, theirs): (&str, impl Iterator<Item = &'a str>),
) -> Option<Spelling> {
    let (names, theirs): (BTreeSet<&str>, BTreeSet<&str>) = (names.collect(), theirs.collect());
    let own: BTreeSet<&str> = names.difference(&theirs).copied().collect();
    let foreign: BTreeSet<&str> = theirs.difference(&names).copied().collect();
    if own.is_empty() || foreign.is_empty() {
        return None;
    }
    prefixes(one, &own, &foreign).or_else(|| experts((one, &own), (other, &foreign)))
}

/// One beginning in place of another: `bert.encoder…` and `encoder…`.
fn prefixes(one: &str, own: &BTreeSet<&str>, foreign: &BTreeSet<&str>) -> Option<Spelling> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let step = (own.len() / N_TRIED).max(1);
    for name in own.iter().step_by(step).take(N_TRIED) {
        let pairs = foreign
            .iter()
            .map(|theirs| (*theirs, common_end(name, theirs)));
        let longest =
            pairs.max_by_key(|(theirs, end)| (end.len(), std::cmp::Reverse(theirs.len())));
        let Some((theirs, end)) = longest.filter(|(_, end)| end.contains('.')) else {
            continue;
        };
        let from = &name[..name.len() - end.len()];
        let to = &theirs[..theirs.len() - end.len()];
        *counts.entry((from, to)).or_default() += 1;
    }
    let renamed = |from: &str, to: &str| {
        let with = own.iter().filter_map(|name| name.strip_prefix(from));
        with.filter(|rest| foreign.contains(format!("{to}{rest}").as_str()))
            .count()
    };
    let found = counts
        .into_keys()
        .map(|(from, to)| (renamed(from, to), from, to));
    let (n, from, to) = found.max_by_key(|&(n, from, _)| (n, std::cmp::Reverse(from.len())))?;
    if 2 * n < own.len().min(foreign.len()) || n == 0 {
        return None;
    }
    let shown = |text: &str| match text {
        "" => "nothing".to_owned(),
        text => format!("`{text}`"),
    };
    let pattern = format!("^{}", regex::escape(from));
    Some(Spelling {
        cause: format!(
            "{n} names begin with {} in {one} and with {} in the other",
            shown(from),
            shown(to)
        ),
        advice: format!(
            "rename the tensors of {one}: `- {{ model: {one}, rename: [{{ from: '{pattern}', to: '{to}' }}] }}`"
        ),
    })
}

/// The longest common end of two names that begins with a whole part.
pub(crate) fn common_end<'a>(one: &'a str, other: &str) -> &'a str {
    let same = (one.bytes().rev().zip(other.bytes().rev()))
        .take_while(|(a, b)| a == b)
        .count();
    let starts_part = |text: &str, at: usize| at == 0 || text.as_bytes()[at - 1] == b'.';
    // Names are cut at dots, which are no part of any other character.
    let length = (0..=same).rev().find(|length| {
        starts_part(one, one.len() - length) && starts_part(other, other.len() - length)
    });
    &one[one.len() - length.unwrap_or(0)..]
}

/// Experts one by one in the one, and together in the other.
fn experts(
    (one, own): (&str, &BTreeSet<&str>),
    (other, foreign): (&str, &BTreeSet<&str>),
) -> Option<Spelling> {
    let is_single = |name: &str| {
        let rest = name.split_once(".experts.").map(|(_, rest)| rest);
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let is_fused = |name: &str| name.contains(".experts.") && !is_single(name);
    let any = |names: &BTreeSet<&str>, is: &dyn Fn(&str) -> bool| names.iter().any(|name| is(name));
    let (single, fused) = match () {
        () if any(own, &is_single) && any(foreign, &is_fused) => (one, other),
        () if any(own, &is_fused) && any(foreign, &is_single) => (other, one),
        () => return None,
    };
    Some(Spelling {
        cause: format!("{single} has a tensor for each expert, {fused} has all experts in one"),
        advice: format!(
            "load {single} and save it again with the version of transformers that wrote {fused}, so that both have \
             one form"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(one: &[&str], other: &[&str]) -> Option<Spelling> {
        compare(
            ("one", one.iter().copied()),
            ("other", other.iter().copied()),
        )
    }

    #[test]
    fn a_prefix_is_found_with_what_removes_or_replaces_it() {
        let bare = [
            "encoder.layer.0.weight",
            "encoder.layer.1.weight",
            "pooler.dense.weight",
        ];
        let prefixed = bare.map(|name| format!("bert.{name}"));
        let prefixed: Vec<&str> = prefixed.iter().map(String::as_str).collect();
        let found = compared(&prefixed, &bare).expect("a prefix");
        assert!(
            found.advice.contains(r"from: '^bert\.', to: ''"),
            "{found:?}"
        );
        let found = compared(&bare, &prefixed).expect("a prefix");
        assert!(found.advice.contains("from: '^', to: 'bert.'"), "{found:?}");
        let text = ["model.layers.0.q.weight", "model.norm.weight"];
        let vision = [
            "model.language_model.layers.0.q.weight",
            "model.language_model.norm.weight",
            "visual.x.y",
        ];
        let found = compared(&vision, &text).expect("a prefix");
        assert!(
            found
                .advice
                .contains(r"from: '^model\.language_model\.', to: 'model.'"),
            "{found:?}"
        );
    }

    #[test]
    fn experts_in_two_forms_are_told() {
        let single = ["l.0.experts.0.up.weight", "l.0.experts.1.up.weight"];
        let found = compared(&single, &["l.0.experts.gate_up_proj"]).expect("two forms");
        assert!(
            found.cause.starts_with("one has a tensor for each expert"),
            "{found:?}"
        );
        assert_eq!(compared(&["a.b"], &["c.d"]), None);
        assert_eq!(compared(&["a.b"], &["a.b"]), None);
    }
}
