//! Recipes: what is wanted, as written. A recipe may be wrong; [`crate::MergePlan`] cannot.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::layouts::Task;
use crate::{DType, Error, Result};

mod experts;
mod parameters;

pub use experts::{BlockRange, ExpertChoice};
pub use parameters::{Parameter, Parameters};

/// Recipes are written by hand; anything larger is not one.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// A merge as written in YAML. Keys that mergekit has keep mergekit's names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecipe {
    /// Name of the method: `interpolate`, `arithmetic` or `regmean`.
    pub merge_method: String,
    /// The checkpoints that are merged; so far one, whose experts are merged with each other.
    pub models: Vec<ModelRef>,
    /// The seed that modality arithmetic measures from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<ModelRef>,
    /// The family to read the keys by, instead of the one found by the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// The task whose published choice of experts fills `experts`.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// Which experts act in which blocks; every expert a block owns unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertChoice>,
    /// The method's parameters.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// Do as the published program does where it differs from the paper (`docs/parity.md`).
    #[serde(default)]
    pub as_published: bool,
    /// Element type of the output; integers keep theirs.
    #[serde(default)]
    pub out_dtype: OutputDType,
    /// What to do with keys that the layout does not know.
    #[serde(default)]
    pub unknown_keys: UnknownKeys,
}

/// A checkpoint named in a recipe: a path, or a path and a root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRef {
    /// The file or folder, relative to the working directory.
    pub model: PathBuf,
    /// The dictionary that holds the weights, instead of the one found by rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
}

impl ModelRef {
    /// A checkpoint whose weights are found by rule.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            root: None,
        }
    }
}

/// Element type of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDType {
    /// That of the inputs.
    #[default]
    Keep,
    /// 32-bit.
    F32,
    /// 16-bit with the exponent range of f32.
    Bf16,
    /// IEEE 16-bit.
    F16,
}

impl OutputDType {
    /// The dtype that an input of `dtype` is written in: integers and booleans keep theirs.
    #[must_use]
    pub const fn apply(self, dtype: DType) -> DType {
        match self {
            _ if !dtype.is_float() => dtype,
            Self::Keep => dtype,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// What to do with keys that the layout does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownKeys {
    /// Refuse: nothing may be lost or carried along unnoticed.
    #[default]
    Error,
    /// Copy them as they are.
    Copy,
}

impl MergeRecipe {
    /// Reads a recipe from a YAML file.
    ///
    /// # Errors
    /// When the file cannot be read, or [`Error::BadRecipe`] with line and column.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let mut text = String::new();
        let mut limited = file.take(MAX_RECIPE_BYTES + 1);
        limited
            .read_to_string(&mut text)
            .map_err(|error| Error::io("read", path, error))?;
        if text.len() as u64 > MAX_RECIPE_BYTES {
            return Err(Error::BadRecipe {
                path: path.to_owned(),
                reason: format!("longer than {MAX_RECIPE_BYTES} bytes"),
            });
        }
        Self::parse(&text, path)
    }

    /// Reads a recipe from YAML text; `path` is for messages only.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with line and column.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        serde_saphyr::from_str(text).map_err(|error| {
            let reason = error.to_string();
            Error::BadRecipe {
                path: path.to_owned(),
                reason: reason.strip_prefix("error: ").unwrap_or(&reason).to_owned(),
            }
        })
    }

    /// The recipe as YAML that [`MergeRecipe::parse`] reads back.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] for a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        serde_saphyr::to_string(self).map_err(|error| Error::BadRecipe {
            path: PathBuf::from("recipe"),
            reason: error.to_string(),
        })
    }
}
