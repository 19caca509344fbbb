//! Checkpoints under other names.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::settings::compile;
use crate::io::{Aliases, Renamed, TensorEntry};
use crate::lora::Renames;
use crate::recipe::{ModelRef, Place, Rename};
use crate::{Checkpoint, Error, MergeFault, Result};

/// The checkpoint with its tensors renamed as the recipe says.
pub(super) fn renamed(checkpoint: Arc<Checkpoint>, model: &ModelRef) -> Result<Arc<Checkpoint>> {
    if model.rename.is_empty() {
        return Ok(checkpoint);
    }
    let renames = compiled(&model.rename, model.place)?;
    check_hits(&checkpoint, model, &renames)?;
    let mut tensors = Vec::new();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    let mut rename = |key: &str| {
        let name = new_name(key, &renames, model.place)?;
        match taken.insert(name.clone(), key.to_owned()) {
            None => Ok(name),
            Some(first) => Err(Error::from(MergeFault::RenamedAlike {
                path: checkpoint.path().into(),
                first,
                second: key.to_owned(),
                name,
                place: model.place,
            })),
        }
    };
    for (key, info) in checkpoint.tensors() {
        let entry = TensorEntry::renamed(key.to_owned(), rename(key)?, info.clone());
        tensors.push((key.to_owned(), entry));
    }
    let mut aliases = Aliases::new();
    for (key, of) in checkpoint.aliases() {
        aliases.insert(rename(key)?, new_name(of, &renames, model.place)?);
    }
    Ok(Renamed::view(checkpoint, tensors, aliases))
}

/// Refuses changes that fit no tensor's name.
fn check_hits(checkpoint: &Checkpoint, model: &ModelRef, renames: &Renames) -> Result<()> {
    let own = checkpoint.tensors().map(|(name, _)| name.to_owned());
    let mut names: Vec<String> = own.chain(checkpoint.aliases().keys().cloned()).collect();
    for (rename, rule) in model.rename.iter().zip(renames) {
        if !names.iter().any(|name| rule.0.is_match(name)) {
            return Err(MergeFault::NoEffect {
                key: format!("rename: from: {}", rename.from),
                why: match names.first() {
                    Some(first) => {
                        format!("it fits no tensor's name of {}, as `{first}`", model.name())
                    }
                    None => format!("{} has no tensors", model.name()),
                },
                place: model.place,
            }
            .into());
        }
        let rule = vec![rule.clone()];
        for name in &mut names {
            *name = new_name(name, &rule, model.place)?;
        }
    }
    Ok(())
}

/// The longest name that renaming may make: names of published models have some hundred bytes.
const MAX_NAME_BYTES: usize = 4096;

/// A name after all changes, one after the other.
pub(crate) fn new_name(key: &str, renames: &Renames, place: Place) -> Result<String> {
    let mut name = key.to_owned();
    for (pattern, to) in renames {
        let Some(found) = pattern.find(&name) else {
            continue;
        };
        // At most what each `$` stands for, asked before the text is made.
        let n_groups = to.matches('$').count();
        let n_bytes = name.len() - found.len() + to.len() + n_groups * found.len();
        if n_bytes > MAX_NAME_BYTES.max(key.len()) {
            return Err(MergeFault::LongName {
                name: key.to_owned(),
                pattern: pattern.as_str().to_owned(),
                limit: MAX_NAME_BYTES,
                place,
            }
            .into());
        }
        name = pattern.replace(&name, to.as_str()).into_owned();
    }
    Ok(name)
}

/// Changes of names, ready to be done.
pub(crate) fn compiled(renames: &[Rename], place: Place) -> Result<Renames> {
    (renames.iter())
        .map(|rename| {
            Ok((
                compile(&rename.from, &rename.from, place)?,
                rename.to.clone(),
            ))
        })
        .collect()
}
