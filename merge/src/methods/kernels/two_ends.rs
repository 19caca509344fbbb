//! Methods between two ends: the base and the one member, or two members without a base.

use crate::methods::kernels::passes::{Look, sums};
use crate::methods::kernels::sums::pair_products;
use crate::methods::kernels::weighted::Weighted;
use crate::methods::{Chunk, GroupShape, Passes, Real, Value};
use crate::{MergeFault, Result};

/// Checks that a group has two ends.
pub(in crate::methods) fn check(group: &GroupShape<'_>, method: &'static str) -> Result<()> {
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
pub(in crate::methods) fn of<'a, V>(chunk: &Chunk<'a, V>) -> (&'a [V], &'a [V]) {
    match (chunk.base, chunk.members) {
        (Some(base), [member, ..]) => (base, member),
        (None, [first, second, ..]) => (first, second),
        _ => (&[], &[]),
    }
}

/// Names of the ends.
pub(in crate::methods) fn names(group: &GroupShape<'_>) -> (String, String) {
    match (group.has_base, group.labels().as_slice()) {
        (true, [member, ..]) => ("base".into(), member.clone()),
        (false, [first, second, ..]) => (first.clone(), second.clone()),
        _ => (String::new(), String::new()),
    }
}

/// `p a + q b`.
pub(in crate::methods) fn blend(has_base: bool, p: f64, q: f64) -> Weighted {
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
pub(in crate::methods) fn products(data: &dyn Passes) -> Result<(f64, f64, f64)> {
    let found = sums(data, 3, &Ends)?;
    Ok((found[0], found[1], found[2]))
}

struct Ends;

impl Look for Ends {
    type Note = Vec<f64>;

    fn look<T: Real, V: Value<Real = T>>(&self, _: usize, chunk: &Chunk<'_, V>) -> Vec<f64> {
        let (a, b) = of(chunk);
        pair_products(a, b).to_vec()
    }
}
