//! Tensors with several names: they are one tensor, which is read, merged and written once.
//!
//! In torch files such names are of one storage. A safetensors file holds the data under one name, and its
//! metadata say under [`ALIASES_KEY`] what else the tensor is called: a JSON object of other names, each
//! with the tensor's. No other entry of the metadata names a tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::TensorEntry;
use super::pairs::StringPairs;
use crate::{Result, SafetensorsFault, ties};

/// The entry of a safetensors file's metadata that holds other names of its tensors.
pub const ALIASES_KEY: &str = "vlmerge.aliases";

/// Other names of tensors, each with the name that the tensor goes by.
pub type Aliases = BTreeMap<String, String>;

/// The other names that a file's metadata record.
///
/// # Errors
/// [`SafetensorsFault::AliasesJson`] for text that is no object of strings,
/// [`SafetensorsFault::AliasIsTensor`] and [`SafetensorsFault::AliasOfNothing`] for names that
/// contradict the file's tensors, [`crate::Error::DuplicateKey`] for one that stands there twice.
pub(super) fn recorded(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorEntry],
) -> Result<Aliases> {
    let Some(text) = metadata.get(ALIASES_KEY) else {
        return Ok(Aliases::new());
    };
    let pairs: StringPairs =
        serde_json::from_str(text).map_err(|source| SafetensorsFault::AliasesJson {
            path: path.into(),
            source,
        })?;
    let aliases = pairs.into_map(path, ALIASES_KEY)?;
    check(path, &aliases, tensors)?;
    Ok(aliases)
}

/// Holds other names against the tensors that are there. A name of a tensor is no alias, and what an alias
/// stands for is a tensor, so none stands for another alias.
fn check(path: &Path, aliases: &Aliases, tensors: &[TensorEntry]) -> Result<()> {
    check_apart(path, aliases, tensors)?;
    let names = names(tensors);
    for (name, of) in aliases {
        if !names.contains(of.as_str()) {
            return Err(SafetensorsFault::AliasOfNothing {
                path: path.into(),
                name: name.clone(),
                of: of.clone(),
                is_alias: aliases.contains_key(of),
            }
            .into());
        }
    }
    Ok(())
}

/// Checks that no alias is a tensor of its own.
pub(super) fn check_apart(path: &Path, aliases: &Aliases, tensors: &[TensorEntry]) -> Result<()> {
    let names = names(tensors);
    match aliases
        .iter()
        .find(|(name, _)| names.contains(name.as_str()))
    {
        None => Ok(()),
        Some((name, of)) => Err(SafetensorsFault::AliasIsTensor {
            path: path.into(),
            name: name.clone(),
            of: of.clone(),
        }
        .into()),
    }
}

fn names(tensors: &[TensorEntry]) -> BTreeSet<&str> {
    (tensors.iter())
        .filter_map(|entry| entry.name.as_deref())
        .collect()
}

/// The text of the metadata's entry.
pub(super) fn to_text(aliases: &Aliases) -> String {
    json!(aliases).to_string()
}

/// Names of tensors at one place, each with the first of them. Embeddings go before all others and
/// heads after them, for loaders look for the embeddings; else the first in the file is the first.
/// Tensors without a name in the chosen root, and those without a place, have no other names.
pub(super) fn at_one_place<P: Ord>(
    tensors: &[TensorEntry],
    place: impl Fn(usize) -> Option<P>,
) -> Aliases {
    let mut families: BTreeMap<P, Vec<&str>> = BTreeMap::new();
    for (index, entry) in tensors.iter().enumerate() {
        if let (Some(name), Some(place)) = (&entry.name, place(index)) {
            families.entry(place).or_default().push(name);
        }
    }
    let mut aliases = Aliases::new();
    for names in families.values() {
        // The first of equals.
        let Some(&first) = names.iter().min_by_key(|name| rank(name)) else {
            continue;
        };
        let others = names.iter().filter(|&&name| name != first);
        aliases.extend(others.map(|&name| (name.to_owned(), first.to_owned())));
    }
    aliases
}

/// The key that sorts the names of one tensor.
fn rank(name: &str) -> u8 {
    match name {
        _ if name == "shared.weight" || name.ends_with(".shared.weight") => 0,
        _ if ties::is_embedding(name) => 1,
        _ if ties::is_head(name) => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::{Aliases, at_one_place};
    use crate::io::TensorEntry;
    use crate::{DType, TensorInfo};

    fn tied(names: &[&str]) -> Aliases {
        let info = TensorInfo {
            dtype: DType::U8,
            shape: vec![1],
        };
        let entries: Vec<TensorEntry> = names
            .iter()
            .map(|&name| TensorEntry::named(name.to_owned(), info.clone()))
            .collect();
        at_one_place(&entries, |_| Some(0))
    }

    #[test]
    fn a_tied_tensor_goes_by_the_name_of_the_embeddings_or_else_by_its_first_one() {
        let head = tied(&["lm_head.weight", "model.embed_tokens.weight"]);
        assert_eq!(head["lm_head.weight"], "model.embed_tokens.weight");
        let shared = tied(&[
            "encoder.embed_tokens.weight",
            "shared.weight",
            "lm_head.weight",
        ]);
        assert!(shared.values().all(|of| of == "shared.weight"));
        let plain = tied(&["b.weight", "a.weight", "c.weight"]);
        assert_eq!(plain.keys().collect::<Vec<_>>(), ["a.weight", "c.weight"]);
        assert!(plain.values().all(|of| of == "b.weight"));
    }
}
