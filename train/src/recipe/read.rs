//! Recipes from YAML, with settings changed on the command line.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::overrides::overlay_setting;
use super::{CheckedRecipe, TrainRecipe};
use crate::{Error, Result};

/// Recipes are written by hand; anything larger is not one.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

impl TrainRecipe {
    /// Reads a recipe, with `settings` such as `optim.lr=3e-5` in place of its own settings, and checks
    /// it.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with line and column, or with the nearest key that exists; as
    /// [`TrainRecipe::checked`].
    pub fn open(path: &Path, settings: &[String]) -> Result<CheckedRecipe> {
        Self::parse(&text_of(path)?, path, settings)
    }

    /// Reads a recipe from text; `path` is for messages.
    ///
    /// # Errors
    /// As [`TrainRecipe::open`].
    pub fn parse(text: &str, path: &Path, settings: &[String]) -> Result<CheckedRecipe> {
        parse_with::<Self>(text, path, settings)?.checked()
    }

    /// Reads a recipe from a document; `path` is for messages.
    ///
    /// # Errors
    /// As [`TrainRecipe::open`], without lines.
    pub fn from_document(document: Value, path: &Path) -> Result<CheckedRecipe> {
        of_document::<Self>(document, path)?.checked()
    }

    /// The recipe as YAML that [`TrainRecipe::parse`] reads back.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] for a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).map_err(|error| Error::BadRecipe {
            path: "recipe".into(),
            reason: error.to_string(),
        })
    }
}

/// Reads any document in YAML, with settings changed.
///
/// # Errors
/// As [`TrainRecipe::open`].
pub fn open_document<T: DeserializeOwned>(path: &Path, settings: &[String]) -> Result<T> {
    parse_with(&text_of(path)?, path, settings)
}

fn text_of(path: &Path) -> Result<String> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
    if metadata.len() > MAX_RECIPE_BYTES {
        return Err(Error::BadRecipe {
            path: path.into(),
            reason: format!("longer than {MAX_RECIPE_BYTES} bytes"),
        });
    }
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    merge::io::require_fetched(path, text.as_bytes())?;
    Ok(text)
}

/// Any document in YAML, with settings changed.
pub(crate) fn parse_with<T: DeserializeOwned>(
    text: &str,
    path: &Path,
    settings: &[String],
) -> Result<T> {
    if settings.is_empty() {
        // Straight to the type: its errors tell line and column.
        return serde_saphyr::from_str(text).map_err(|error| bad(path, &error.to_string()));
    }
    let mut value: Value =
        serde_saphyr::from_str(text).map_err(|error| bad(path, &error.to_string()))?;
    for setting in settings {
        overlay_setting(&mut value, setting)?;
    }
    of_document(value, path)
}

fn of_document<T: DeserializeOwned>(document: Value, path: &Path) -> Result<T> {
    serde_json::from_value(document).map_err(|error| bad(path, &error.to_string()))
}

fn bad(path: &Path, reason: &str) -> Error {
    Error::BadRecipe {
        path: path.into(),
        reason: with_nearest(reason.strip_prefix("error: ").unwrap_or(reason)),
    }
}

/// Adds the nearest key to serde's message about an unknown one. The key itself, which a message may quote again, is none.
fn with_nearest(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = match message.contains("unknown field") || message.contains("unknown variant") {
        true => quoted.next(),
        false => None,
    };
    let Some(unknown) = unknown else {
        return message.to_owned();
    };
    let likeness = |name: &&str| strsim::jaro_winkler(name, unknown);
    let others = quoted.filter(|name| *name != unknown);
    let nearest = others.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|name| likeness(name) > 0.6) {
        Some(nearest) => format!("{message}; the nearest is `{nearest}`"),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_comes_with_the_nearest() {
        let message = "unknown field `objectivs`, expected one of `init`, `objectives`, `optim`";
        assert!(with_nearest(message).ends_with("the nearest is `objectives`"));
        let message = "unknown field `zzz`, expected one of `init`, `optim`";
        assert_eq!(with_nearest(message), message);
        // A message with the place of the key quotes it twice.
        let message = "unknown field `task`, expected `data` or `tasks`\n 3 | `task`: vqa";
        assert!(with_nearest(message).ends_with("the nearest is `tasks`"));
        let message = "unknown field `task`, expected `seed` or `init`\n 3 | `task`: vqa";
        assert_eq!(with_nearest(message), message);
    }
}
