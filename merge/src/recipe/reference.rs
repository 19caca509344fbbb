//! The forms in which a recipe may name a model: a path, or mergekit's maps.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::models::joined;
use crate::io::folder::extension_rank;
use crate::remote::address::is_address;

/// A model as it is named: its path, with a revision behind `@` and an adapter behind `+`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelName {
    /// The path, the address or the name on the hub.
    pub path: PathBuf,
    /// Whether the recipe tells mergekit to take it for another architecture, which means nothing here.
    pub overrides_architecture: bool,
}

/// The maps: `{path, revision}`, and `{model, lora, override_architecture}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    path: Option<String>,
    revision: Option<String>,
    model: Option<Box<ModelName>>,
    lora: Option<Box<ModelName>>,
    override_architecture: Option<String>,
}

impl ModelName {
    /// From the parts of a map.
    ///
    /// # Errors
    /// The missing part, in words.
    pub(super) fn of_parts(
        path: Option<PathBuf>,
        revision: Option<&str>,
        lora: Option<&Path>,
        overrides_architecture: bool,
    ) -> Result<Self, &'static str> {
        let mut path = path.ok_or("a model needs `model` or `path`")?;
        if let Some(revision) = revision {
            let mut text = path.into_os_string();
            text.push("@");
            text.push(revision);
            path = text.into();
        }
        Ok(Self {
            path: joined(&path, lora),
            overrides_architecture,
        })
    }
}

impl Serialize for ModelName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.path.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ModelName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrMap;

        impl<'de> Visitor<'de> for PathOrMap {
            type Value = ModelName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, `{path, revision}` or `{model, lora}`")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<ModelName, E> {
                Ok(ModelName {
                    path: path.into(),
                    overrides_architecture: false,
                })
            }

            // Plain texts that look like something else: a model may be called `y` or `7`.
            fn visit_bool<E: serde::de::Error>(self, is_yes: bool) -> Result<ModelName, E> {
                self.visit_str(if is_yes { "y" } else { "n" })
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<ModelName, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<ModelName, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ModelName, A::Error> {
                let map = Map::deserialize(MapAccessDeserializer::new(map))?;
                let inner = map.model.map(|model| model.path);
                let lora = map.lora.map(|lora| lora.path);
                ModelName::of_parts(
                    inner.or(map.path.map(PathBuf::from)),
                    map.revision.as_deref(),
                    lora.as_deref(),
                    map.override_architecture.is_some(),
                )
                .map_err(serde::de::Error::custom)
            }
        }

        deserializer.deserialize_any(PathOrMap)
    }
}

/// The model behind a path: itself if there is such a file or folder; else, if it is spelled like the name of a model
/// on the hub (`org/model`, `org/model@revision`), that model. A folder of that name without the revision wins, too.
pub(crate) fn found(path: &Path) -> PathBuf {
    let Some(text) = path
        .to_str()
        .filter(|_| !is_address(path) && !path.exists())
    else {
        return path.to_owned();
    };
    let (name, revision) = match text.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (text, None),
    };
    if revision.is_some() && Path::new(name).exists() {
        return name.into();
    }
    if !is_hub_name(name) || revision.is_some_and(str::is_empty) {
        return path.to_owned();
    }
    match revision {
        // A slash would be taken for the start of a file's name.
        Some(revision) => format!("hf://{name}@{}", revision.replace('/', "%2F")).into(),
        None => format!("hf://{name}").into(),
    }
}

/// Whether a text is spelled like the name of a model on the hub, and not like a file of weights.
fn is_hub_name(text: &str) -> bool {
    let is_word = |word: &str| {
        let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !word.is_empty()
            && word.len() <= 96
            && !word.starts_with('.')
            && word.chars().all(is_letter)
    };
    let is_weights = |name: &str| extension_rank(name).is_some() || name.ends_with(".json");
    match text.split_once('/') {
        Some((organization, name)) => is_word(organization) && is_word(name) && !is_weights(name),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_found_there_unless_a_folder_is_called_so() {
        let of = |text: &str| found(Path::new(text)).display().to_string();
        assert_eq!(of("org/model-7B.v1"), "hf://org/model-7B.v1");
        assert_eq!(of("org/model@refs/pr/1"), "hf://org/model@refs%2Fpr%2F1");
        for other in [
            "model",
            "./org/model",
            "/org/model",
            "org/model.safetensors",
            "a/b/c",
            "hf://org/model",
            "../a",
        ] {
            assert_eq!(of(other), other);
        }
        // Tests run in the folder of the crate.
        assert_eq!(of("src/recipe"), "src/recipe");
        assert_eq!(of("src/recipe@main"), "src/recipe");
    }

    #[test]
    fn a_model_may_be_named_in_each_form_of_mergekit() {
        let of = |yaml: &str| {
            let name: ModelName = serde_saphyr::from_str(yaml).expect("a name");
            name.path.display().to_string()
        };
        assert_eq!(of("org/a"), "org/a");
        assert_eq!(of("{path: org/a, revision: v1}"), "org/a@v1");
        assert_eq!(
            of(
                "{model: {path: org/a, revision: v1}, lora: {path: org/b}, override_architecture: X}"
            ),
            "org/a@v1+org/b"
        );
        assert!(serde_saphyr::from_str::<ModelName>("{revision: v1}").is_err());
    }
}
