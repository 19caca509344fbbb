//! The keys of a checkpoint that name one tensor.
//!
//! The published program gives modules up to three names, loads a file name by name into the one tensor, and so
//! keeps the last. A file may hold the tensor under all of them, under some, or under the first one alone.

use std::collections::BTreeMap;

use crate::io::{Aliases, PlainValue};
use crate::layouts::Ties;
use crate::{Checkpoint, Error, Result, TensorInfo};

use super::place::Place;
use super::table::{GROUPS, HEAD};
use super::{survey, telling};

/// Elements that are compared at three places of tensors that should be equal: the first, some in the
/// middle and the last.
const SAMPLE: usize = 4096;

/// Names that are listed in a note.
const MAX_LISTED: usize = 5;

/// The ties of a checkpoint; `None` if it is no FLM.
pub(super) fn read(checkpoint: &Checkpoint) -> Result<Option<Ties>> {
    if telling(checkpoint).is_none() {
        return Ok(None);
    }
    let families = Families::of(checkpoint);
    let (n_alike, differing) = families.compare(checkpoint)?;
    let is_apart = families.are_heads_apart(checkpoint, n_alike, &differing);
    let mut ties = Ties::default();
    for (canonical, family) in &families.0 {
        if is_apart && canonical.starts_with(HEAD) {
            let own = family.tied.iter().filter(|name| *name != canonical);
            ties.aliases
                .extend(own.map(|name| (name.clone(), canonical.clone())));
            continue;
        }
        let names = family.own.iter().chain(&family.tied);
        let others = names.filter(|name| *name != canonical);
        ties.aliases
            .extend(others.map(|name| (name.clone(), canonical.clone())));
        if let Some(last) = family.own.last().filter(|last| *last != canonical) {
            ties.stored_as.insert(canonical.clone(), last.clone());
        }
    }
    if ties.aliases.is_empty() {
        ties.aliases = published(checkpoint);
    }
    let differing: Vec<&String> = (differing.iter())
        .filter(|canonical| !(is_apart && canonical.starts_with(HEAD)))
        .collect();
    ties.note = note(checkpoint, &families, &differing);
    Ok(Some(ties))
}

/// The names of each tensor that a file has, in the order in which they are registered.
struct Families(BTreeMap<String, Family>);

#[derive(Default)]
struct Family {
    /// Names that are tensors of the file.
    own: Vec<String>,
    /// Names that the file itself ties to one of those.
    tied: Vec<String>,
}

impl Families {
    fn of(checkpoint: &Checkpoint) -> Self {
        let mut found: Vec<(usize, String, String, bool)> = Vec::new();
        let own = checkpoint.tensors().map(|(key, _)| (key, true));
        let tied = checkpoint.aliases().keys().map(|key| (key.as_str(), false));
        for (key, is_own) in own.chain(tied) {
            let Some(place) = Place::of(key) else {
                continue;
            };
            let mut order = GROUPS.iter();
            let order = order.position(|group| group.prefix == place.group.prefix);
            let canonical = place.canonical().unwrap_or_else(|| key.to_owned());
            found.push((order.unwrap_or(0), key.to_owned(), canonical, is_own));
        }
        found.sort();
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        for (_, key, canonical, is_own) in found {
            let family = families.entry(canonical).or_default();
            match is_own {
                true => family.own.push(key),
                false => family.tied.push(key),
            }
        }
        Self(families)
    }

    /// The number of tensors whose copies in the file are all equal, and the names of the others.
    fn compare(&self, checkpoint: &Checkpoint) -> Result<(usize, Vec<String>)> {
        let mut n_alike = 0;
        let mut differing = Vec::new();
        for (canonical, Family { own, .. }) in &self.0 {
            let Some((last, others)) = own.split_last() else {
                continue;
            };
            let mut is_alike = true;
            for other in others {
                is_alike &= are_alike(checkpoint, last, other)?;
            }
            match is_alike {
                _ if others.is_empty() => {}
                true => n_alike += 1,
                false => differing.push(canonical.clone()),
            }
        }
        Ok((n_alike, differing))
    }

    /// Whether the three language heads are tensors of their own. Heads that the file ties are tied; else its settings
    /// say it; else copies that differ are heads of their own if all other copies in the file agree.
    fn are_heads_apart(
        &self,
        checkpoint: &Checkpoint,
        n_alike: usize,
        differing: &[String],
    ) -> bool {
        let heads = || self.0.iter().filter(|(name, _)| name.starts_with(HEAD));
        if !heads().any(|(_, family)| family.own.len() > 1) {
            return false;
        }
        if self.0.values().any(|family| !family.tied.is_empty()) {
            return true;
        }
        if let Some(is_shared) = setting(checkpoint, "share_lm_scorer_weights") {
            return !is_shared;
        }
        let n_heads_alike = heads()
            .filter(|(name, family)| family.own.len() > 1 && !differing.contains(name))
            .count();
        let of_heads = differing
            .iter()
            .filter(|name| name.starts_with(HEAD))
            .count();
        let is_known_tied = n_alike > n_heads_alike || self.has_no_other_copies();
        of_heads > 0 && of_heads == differing.len() && is_known_tied
    }

    fn has_no_other_copies(&self) -> bool {
        let mut others = self.0.iter().filter(|(name, _)| !name.starts_with(HEAD));
        others.all(|(_, family)| family.own.len() < 2)
    }
}

/// A switch of the run's settings, which Lightning keeps beside the weights.
pub(super) fn setting(checkpoint: &Checkpoint, name: &str) -> Option<bool> {
    let wanted = [
        format!("hyper_parameters.{name}"),
        format!("hyper_parameters.config.{name}"),
    ];
    let values = &checkpoint.info().values;
    let found = values
        .iter()
        .find(|(path, _)| wanted.contains(&path.to_string()));
    match found {
        Some((_, PlainValue::Bool(value))) => Some(*value),
        _ => None,
    }
}

/// Whether the language heads of the two directions are tensors of their own, in a checkpoint whose ties are known.
pub(super) fn has_own_heads(checkpoint: &Checkpoint) -> bool {
    let of_head =
        |key: &str| Place::of(key).is_some_and(|place| place.group.alias_of == Some(HEAD));
    checkpoint.tensors().any(|(key, _)| of_head(key))
}

/// Whether two tensors that should be one hold the same values, as far as samples of them tell.
fn are_alike(checkpoint: &Checkpoint, one: &str, other: &str) -> Result<bool> {
    let (info, second) = (checkpoint.require(one)?, checkpoint.require(other)?);
    if info.shape != second.shape {
        return Err(Error::ShapeMismatch {
            slot: other.to_owned(),
            key: one.to_owned(),
            found: info.shape.clone(),
            expected: second.shape.clone(),
        });
    }
    if info.dtype != second.dtype {
        return Ok(false);
    }
    for (first, n) in samples(info) {
        let mut bytes = [
            vec![0; info.dtype.bytes_of(n)],
            vec![0; info.dtype.bytes_of(n)],
        ];
        for (bytes, name) in bytes.iter_mut().zip([one, other]) {
            checkpoint.read(name, first, bytes)?;
        }
        if bytes[0] != bytes[1] {
            return Ok(false);
        }
    }
    Ok(true)
}

/// First elements and numbers of the samples of a tensor.
fn samples(info: &TensorInfo) -> Vec<(usize, usize)> {
    let n = info.n_elements();
    if n <= 3 * SAMPLE {
        return vec![(0, n)];
    }
    let middle = n / 2 / SAMPLE * SAMPLE;
    vec![(0, SAMPLE), (middle, SAMPLE), (n - SAMPLE, SAMPLE)]
}

/// The other names that the published program has for tensors of a file which has them under one name each.
fn published(checkpoint: &Checkpoint) -> Aliases {
    let holds = survey::presence(checkpoint);
    let mut aliases = Aliases::new();
    for (key, _) in checkpoint.tensors() {
        let Some(place) = Place::of(key) else {
            continue;
        };
        for group in GROUPS {
            if group.alias_of == Some(place.group.prefix) && holds(group.presence) {
                let rest = &key[place.group.prefix.len()..];
                let name = format!("{}{rest}", group.prefix);
                if checkpoint.get(&name).is_none() {
                    aliases.insert(name, key.to_owned());
                }
            }
        }
    }
    aliases
}

/// A note for users on copies that differ.
fn note(checkpoint: &Checkpoint, families: &Families, differing: &[&String]) -> Option<String> {
    if differing.is_empty() {
        return None;
    }
    let named = differing.iter().take(MAX_LISTED).map(|canonical| {
        let own = &families.0[*canonical].own;
        let last = own.last().map_or("", String::as_str);
        format!("`{canonical}` (`{last}` is taken)")
    });
    let more = match differing.len().saturating_sub(MAX_LISTED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Some(format!(
        "{}: names of one tensor hold different values: {}{more}. FLM's program loads them one after the other, so the \
         last registered name wins, and so it does here",
        checkpoint.path().display(),
        named.collect::<Vec<_>>().join(", ")
    ))
}
