//! Methods between two ends: the base and the one member, or two members without a base.

use super::survey::{Look, dot, sums};
use super::weighted::Weighted;
use super::{Chunk, GroupShape, Passes, Real};
use crate::{MergeFault, Result};

/// Checks that a group has two ends.
pub(super) fn check(group: &GroupShape<'_>, method: &'static str) -> Result<()> {
    let found = group.members.len() + usize::from(group.has_base);
    if found == 2 && !group.members.is_empty() {
        return Ok(());
    }
    Err(MergeFault::MemberCount {
        slot: group.slot.key.clone(),
        method,
        wanted: "two inputs, of which one is the base".into(),
        found,
    }
    .into())
}

/// The first end, the base if there is one, and the second.
pub(super) fn of<'a, T>(chunk: &Chunk<'a, T>) -> (&'a [T], &'a [T]) {
    match (chunk.base, chunk.members) {
        (Some(base), [member, ..]) => (base, member),
        (None, [first, second, ..]) => (first, second),
        _ => (&[], &[]),
    }
}

/// Names of the ends.
pub(super) fn names(group: &GroupShape<'_>) -> (String, String) {
    match (group.has_base, group.labels().as_slice()) {
        (true, [member, ..]) => ("base".into(), member.clone()),
        (false, [first, second, ..]) => (first.clone(), second.clone()),
        _ => (String::new(), String::new()),
    }
}

/// `p a + q b`.
pub(super) fn blend(has_base: bool, p: f64, q: f64) -> Weighted {
    match has_base {
        true => Weighted {
            base: Some(p),
            members: vec![q],
        },
        false => Weighted {
            base: None,
            members: vec![p, q],
        },
    }
}

/// `(a·a, a·b, b·b)`.
pub(super) fn products(data: &dyn Passes) -> Result<(f64, f64, f64)> {
    let found = sums(data, 3, &Ends)?;
    Ok((found[0], found[1], found[2]))
}

struct Ends;

impl Look for Ends {
    type Note = Vec<f64>;

    fn look<T: Real>(&self, _: usize, chunk: &Chunk<'_, T>) -> Vec<f64> {
        let (a, b) = of(chunk);
        vec![dot(a, a), dot(a, b), dot(b, b)]
    }
}
