//! The names that a file holds: none twice, and other names of the same tensors.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::Contents;
use crate::io::safetensors::METADATA_KEY;
use crate::io::{ALIASES_KEY, Aliases};
use crate::{Error, Result, TensorInfo, WriteFault};

/// Names must be unique: a reader would lose the others. Aliases are names of tensors.
pub(super) fn check_names(path: &Path, contents: Contents<'_>) -> Result<()> {
    let mut seen = HashSet::new();
    let repeated = contents.tensors.iter().find(|(name, _)| !seen.insert(name));
    if let Some((name, _)) = repeated {
        return Err(Error::DuplicateKey {
            path: path.into(),
            key: name.clone(),
        });
    }
    let is_wrong = |(name, of): &(&String, &String)| {
        seen.contains(name) || !seen.contains(of) || name.as_str() == METADATA_KEY
    };
    match contents.aliases.iter().find(is_wrong) {
        None => Ok(()),
        Some((name, of)) => Err(Error::Write(WriteFault::Alias {
            path: path.into(),
            name: name.clone(),
            of: of.clone(),
        })),
    }
}

/// The other names of some of the tensors.
pub(super) fn aliases_of(tensors: &[(String, TensorInfo)], aliases: &Aliases) -> Aliases {
    if aliases.is_empty() {
        return Aliases::new();
    }
    let names: HashSet<&str> = tensors.iter().map(|(name, _)| name.as_str()).collect();
    (aliases.iter())
        .filter(|(_, of)| names.contains(of.as_str()))
        .map(|(name, of)| (name.clone(), of.clone()))
        .collect()
}

/// The metadata that are written, without a record of other names, which is the writer's own.
pub(super) fn without_aliases(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut metadata = metadata.clone();
    metadata.remove(ALIASES_KEY);
    metadata
}
