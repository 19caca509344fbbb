//! Checkpoints as a recipe names them, whole or by slices.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_saphyr::Spanned;

use super::adapters::adapters;
use super::reference::ModelName;
use super::{Located, Parameters, Place};
use crate::remote::address::is_address;

/// A checkpoint named in a recipe: a path alone, or a path and more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelRef {
    /// The file or folder, relative to the working directory; or the `name` of another document.
    pub model: PathBuf,
    /// The low-rank adapters that are merged into it first, as they are written behind `model+`; see
    /// [`super::adapters`].
    pub adapter: Option<PathBuf>,
    /// The dictionary that holds the weights, instead of the one found by rule.
    pub root: Option<String>,
    /// Changes of the names of the base's tensors that the adapter has, done one after the other.
    pub adapter_rename: Vec<Rename>,
    /// Changes of its tensors' names, done one after the other.
    pub rename: Vec<Rename>,
    /// The gram file over it by which its experts are matched, for `align_experts: outputs`.
    pub outputs: Option<PathBuf>,
    /// The files of `vlmerge activations` over it by which it is brought into order, for `align: activations`.
    pub activations: Vec<PathBuf>,
    /// Parameters for this model.
    pub parameters: Parameters,
    /// Whether the recipe tells mergekit to take it for another architecture, which means nothing here.
    pub overrides_architecture: bool,
    /// Its place.
    pub place: Place,
}

/// A change of tensor names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// A regular expression; the first part of the name that it fits is replaced.
    pub from: String,
    /// The replacement; `$1` stands for the first group.
    pub to: String,
}

impl ModelRef {
    /// A checkpoint whose weights are found by rule.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>) -> Self {
        let (model, adapter) = split_adapter(model.into());
        Self {
            model,
            adapter,
            ..Self::default()
        }
    }

    /// Whether both name the same tensors.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        (&self.model, &self.root, &self.rename) == (&other.model, &other.root, &other.rename)
            && (&self.adapter, &self.adapter_rename) == (&other.adapter, &other.adapter_rename)
    }

    /// Its name in messages and plans.
    #[must_use]
    pub fn name(&self) -> String {
        self.path().display().to_string()
    }

    /// The name of the document that the model would be.
    pub(crate) fn document(&self) -> String {
        self.model.display().to_string()
    }

    /// As it is written.
    fn path(&self) -> PathBuf {
        joined(&self.model, self.adapter.as_deref())
    }
}

/// A path as written, with a `+` between a model and its adapters ([`super::adapters`]). A file that has
/// a `+` in its own name is meant as it is, and so is an address with one, unless what follows is an address
/// or a folder.
pub(super) fn split_adapter(path: PathBuf) -> (PathBuf, Option<PathBuf>) {
    let Some((model, adapter)) = path.to_str().and_then(|text| text.split_once('+')) else {
        return (path, None);
    };
    let (model, adapter) = (PathBuf::from(model), PathBuf::from(adapter));
    let is_one = |part: &Path| !part.as_os_str().is_empty();
    let all = adapters(&adapter);
    let is_certain = (all.first()).is_some_and(|(path, _)| is_address(path) || path.is_dir());
    let is_pair = is_one(&model)
        && all.iter().all(|(path, _)| is_one(path))
        && (is_certain || !is_address(&model))
        && !path.exists();
    match is_pair {
        true => (model, Some(adapter)),
        false => (path, None),
    }
}

/// The path that [`split_adapter`] takes apart.
pub(super) fn joined(model: &Path, adapter: Option<&Path>) -> PathBuf {
    let mut path = model.as_os_str().to_owned();
    if let Some(adapter) = adapter {
        path.push("+");
        path.push(adapter);
    }
    path.into()
}

/// The form with everything.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Full {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<ModelName>,
    #[serde(default, skip_serializing)]
    path: Option<PathBuf>,
    #[serde(default, skip_serializing)]
    revision: Option<String>,
    #[serde(default, skip_serializing)]
    lora: Option<ModelName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    override_architecture: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    adapter_rename: Vec<Rename>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rename: Vec<Rename>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outputs: Option<PathBuf>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "one_or_several"
    )]
    activations: Vec<PathBuf>,
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    parameters: Parameters,
}

impl Serialize for ModelRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let full = Full {
            model: Some(ModelName {
                path: self.path(),
                overrides_architecture: false,
            }),
            root: self.root.clone(),
            adapter_rename: self.adapter_rename.clone(),
            rename: self.rename.clone(),
            outputs: self.outputs.clone(),
            activations: self.activations.clone(),
            parameters: self.parameters.clone(),
            override_architecture: (self.overrides_architecture).then(|| "passed over".to_owned()),
            ..Full::default()
        };
        full.serialize(serializer)
    }
}

/// One path, or a list of them.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    struct Paths;

    impl<'de> Visitor<'de> for Paths {
        type Value = Vec<PathBuf>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a path, or a list of paths")
        }

        fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Vec<PathBuf>, E> {
            Ok(vec![path.into()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, paths: A) -> Result<Vec<PathBuf>, A::Error> {
            Deserialize::deserialize(SeqAccessDeserializer::new(paths))
        }
    }

    deserializer.deserialize_any(Paths)
}

/// A path or a map.
struct Either(Full);

impl<'de> Deserialize<'de> for Either {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrMap;

        impl<'de> Visitor<'de> for PathOrMap {
            type Value = Full;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or `model:` with a path")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<Full, E> {
                Ok(Full {
                    path: Some(path.into()),
                    ..Full::default()
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Full, A::Error> {
                Full::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(PathOrMap).map(Self)
    }
}

impl<'de> Deserialize<'de> for ModelRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Either>::deserialize(deserializer)?;
        let Either(full) = spanned.value;
        let overrides = full.override_architecture.is_some()
            || (full.model.as_ref()).is_some_and(|model| model.overrides_architecture);
        let name = ModelName::of_parts(
            full.model.map(|model| model.path).or(full.path),
            full.revision.as_deref(),
            full.lora.as_ref().map(|lora| lora.path.as_path()),
            overrides,
        );
        let name = name.map_err(serde::de::Error::custom)?;
        let (model, adapter) = split_adapter(name.path);
        Ok(Self {
            model,
            adapter,
            root: full.root,
            adapter_rename: full.adapter_rename,
            rename: full.rename,
            outputs: full.outputs,
            activations: full.activations,
            parameters: full.parameters,
            overrides_architecture: name.overrides_architecture,
            place: spanned.referenced.into(),
        })
    }
}

/// Layers of the output, and the layers that they are merged from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSlice {
    /// The layers, from one model or from several.
    pub sources: Vec<Located<SliceSource>>,
    /// The base of these layers, instead of the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<ModelRef>,
    /// A key that mergekit has and never reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_weight: Option<f64>,
    /// Parameters for this slice.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// Some layers of a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceSource {
    /// The file or folder, as [`ModelRef::model`].
    #[serde(deserialize_with = "path_of_name")]
    pub model: PathBuf,
    /// The first layer, and one past the last.
    pub layer_range: [usize; 2],
    /// Parameters for this source.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// The path of a model in any of its forms.
fn path_of_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    ModelName::deserialize(deserializer).map(|name| name.path)
}

impl Located<SliceSource> {
    /// The model, with the parameters of this source.
    #[must_use]
    pub fn model_ref(&self) -> ModelRef {
        ModelRef {
            parameters: self.value.parameters.clone(),
            place: self.place,
            ..ModelRef::new(&self.value.model)
        }
    }
}
