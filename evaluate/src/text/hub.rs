//! Tokenizers by name.

use std::path::PathBuf;

use crate::{Error, Result};

/// Whether this could be a model of the hub: `name` or `owner/name`, and not a file's name.
fn is_hub_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(is_plain) && !part.starts_with('.')
    };
    let is_file = [".txt", ".json"].iter().any(|end| name.ends_with(end));
    !is_file && name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// The path of the tokenizer of a model of the hub: from the cache, or fetched into it.
pub fn fetch(name: &str) -> Result<PathBuf> {
    let failed = |fault: String| Error::TokenizerFromHub {
        name: name.into(),
        fault,
    };
    if !is_hub_name(name) {
        return Err(failed("such a name is not of the hub either".into()));
    }
    from_hub(name).map_err(failed)
}

#[cfg(feature = "hub")]
fn from_hub(name: &str) -> Result<PathBuf, String> {
    let builder = hf_hub::api::sync::ApiBuilder::from_env().with_progress(false);
    let api = (builder.build()).map_err(|error| format!("the hub's cache failed: {error}"))?;
    let model = api.model(name.to_owned());
    let fetched = (model.get("tokenizer.json")).or_else(|_| model.get("vocab.txt"));
    fetched.map_err(|error| format!("it could not be fetched from the hub: {error}"))
}

#[cfg(not(feature = "hub"))]
fn from_hub(_: &str) -> Result<PathBuf, String> {
    Err("this program was built without access to the hub (feature `hub`)".into())
}

#[cfg(test)]
mod tests {
    use super::is_hub_name;

    #[test]
    fn a_path_is_not_asked_of_the_hub() {
        assert!(is_hub_name("bert-base-uncased"));
        assert!(is_hub_name("google-bert/bert-base-uncased"));
        for path in [
            "vocab.txt",
            "../bert",
            "a/b/c",
            "/etc/passwd",
            "",
            "a//b",
            "C:\\x",
        ] {
            assert!(!is_hub_name(path), "{path}");
        }
    }
}
