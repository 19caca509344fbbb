//! Recipes of several documents, some of which merge the results of others.

use std::path::{Path, PathBuf};

use super::MergeRecipe;
use crate::{Error, Result};

/// Reads all documents of a YAML text: the one without a name, or else the last, is the recipe; the
/// others are its [`MergeRecipe::earlier`].
pub(super) fn parse(text: &str, path: &Path) -> Result<MergeRecipe> {
    let bad = |reason: String| Error::BadRecipe {
        path: path.to_owned(),
        reason: with_advice(reason.strip_prefix("error: ").unwrap_or(&reason)),
    };
    let mut documents: Vec<MergeRecipe> =
        serde_saphyr::from_multiple(text).map_err(|error| bad(error.to_string()))?;
    let unnamed: Vec<usize> = (0..documents.len())
        .filter(|&index| documents[index].name.is_none())
        .collect();
    let main = match (unnamed.as_slice(), documents.len()) {
        (_, 0) => return Err(bad("no recipe in it".into())),
        ([], n) => n - 1,
        (&[index], _) => index,
        _ => return Err(bad("more than one document has no `name`".into())),
    };
    let mut recipe = documents.remove(main);
    for (index, document) in documents.iter().enumerate() {
        let same = |other: &MergeRecipe| other.name == document.name;
        if documents[..index].iter().any(same) || same(&recipe) {
            let name = document.name.clone().unwrap_or_default();
            return Err(bad(format!("two documents are called `{name}`")));
        }
    }
    recipe.earlier = documents;
    Ok(recipe)
}

/// Keys of a recipe that a module cannot have, and why.
const NOT_OF_A_MODULE: [(&str, &str); 2] = [
    (
        "merge_method",
        "there is one method for all modules (mergekit passes this one over); a document for each method, and a last \
         one that takes the modules from them by `passthrough`, does it",
    ),
    (
        "base_model",
        "there is one base for all modules (mergekit passes this one over); a slice may have one of its own",
    ),
];

/// Words of the parser about its own settings and types, and what they mean for a recipe.
const WORDS_OF_THE_PARSER: [(&str, &str); 4] = [
    (
        ", set DuplicateKeyPolicy in Options if acceptable",
        ", which a map has once",
    ),
    (
        "rejected by the configured policy",
        "in a recipe, whose numbers are finite",
    ),
    ("invalid u64", "not a whole number of 0 or more"),
    ("invalid floating point", "not a number"),
];

/// A parser's message, with what to do about keys that stand in the wrong place.
fn with_advice(reason: &str) -> String {
    let words = WORDS_OF_THE_PARSER.iter();
    let reason = &words.fold(reason.to_owned(), |reason, (theirs, ours)| {
        reason.replace(theirs, ours)
    });
    let is_of_a_module = reason.contains("expected one of models, slices, layers, parameters");
    let is_named = |(key, _): &&(&str, &str)| reason.contains(&format!("unknown field `{key}`"));
    match NOT_OF_A_MODULE.iter().find(is_named) {
        Some((key, advice)) if is_of_a_module => {
            format!("`{key}` of a module: {advice}: {reason}")
        }
        _ => reason.to_owned(),
    }
}

/// The documents as YAML, those that the recipe builds on first.
pub(super) fn to_yaml(recipe: &MergeRecipe) -> Result<String> {
    let mut text = String::new();
    for document in recipe.earlier.iter().chain([recipe]) {
        if !text.is_empty() {
            text += "---\n";
        }
        let yaml = serde_saphyr::to_string(document);
        text += &yaml.map_err(|error| Error::BadRecipe {
            path: PathBuf::from("recipe"),
            reason: error.to_string(),
        })?;
    }
    Ok(text)
}
