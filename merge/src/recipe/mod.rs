//! Recipes as users write them. A recipe may be wrong; [`crate::MergePlan`] cannot.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layouts::Task;
use crate::methods;
use crate::{DType, Error, Result};

mod adapters;
mod align;
mod documents;
mod experts;
mod models;
mod modules;
mod parameters;
mod paths;
mod place;
mod reference;
mod tokenizer;

pub use adapters::{adapters, spelled};
pub use align::{Align, AlignBy, AlignPart};
pub use experts::{BlockRange, ExpertChoice};
pub use models::{ModelRef, OutputSlice, Rename, SliceSource};
pub use modules::OutputModule;
pub(crate) use modules::Part;
pub use parameters::{Case, CaseValue, Parameter, Parameters, Scalar};
pub use place::{Located, Place};
pub use reference::ModelName;
pub(crate) use reference::found as model_at;
pub use tokenizer::{TokenKind, TokenRule, TokenSource, TokenizerSettings, TokenizerSource};

/// Recipes are written by hand; anything larger is not one.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

/// A merge as written in YAML. Keys that mergekit has keep mergekit's names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeRecipe {
    /// The name of its result for other documents of the same file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Name of the method, one of [`crate::methods::NAMES`].
    pub merge_method: String,
    /// The checkpoints that are merged tensor by tensor; or one, whose experts are merged with each
    /// other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelRef>,
    /// Instead of `models`, layers of the output and their sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slices: Vec<OutputSlice>,
    /// Instead of both, the modules of a model of several, each with its own `models` or `slices`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub modules: BTreeMap<String, OutputModule>,
    /// The base, from which differences are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<ModelRef>,
    /// The family to read the keys by, instead of the one found by the keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<String>,
    /// The task whose published choice of experts fills `experts`.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub task: Option<Task>,
    /// The experts that act in each block; every expert a block owns unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertChoice>,
    /// The stack of layers that `slices` cut, e.g. `model.layers`, where a model has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<String>,
    /// The method's parameters.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// Do as the published program does where it differs from the paper (`docs/parity.md`).
    #[serde(default)]
    pub as_published: bool,
    /// Element type of the output, and of the computation if it is f64, unless `out_dtype` is given.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: OutputDType,
    /// Element type of the output; integers keep theirs.
    #[serde(default)]
    pub out_dtype: OutputDType,
    /// The treatment of keys that the layout does not know.
    #[serde(default)]
    pub unknown_keys: UnknownKeys,
    /// The treatment of a tensor that only some of the checkpoints have.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_missing: OnMissing,
    /// The treatment of a linear weight that should have a gram matrix and has none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_missing_gram: OnMissingGram,
    /// Whether gram matrices may have been summed over other files than the models they are given for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub foreign_grams: ForeignGrams,
    /// The measure that matches experts of models without a common order; they are merged number by number unless
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub align_experts: Option<AlignExperts>,
    /// Whether hidden units of feed-forward networks are matched, dense ones and those of experts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub align_units: bool,
    /// Layers that follow each other, whose hidden units are matched together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub align_layers: Option<AlignLayers>,
    /// Transformers whose hidden units, heads and residual stream are brought into one order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub align: Option<Align>,
    /// The source of random masks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rng: RandomSource,
    /// The seed of random masks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub seed: u64,
    /// The tokenizer of the output, if vocabularies differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_source: Option<TokenizerSource>,
    /// The same with more: which rows single tokens get, and to what number of rows embeddings are filled up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerSettings>,
    /// The form in which conversations are written: `auto`, a name, or a template in Jinja.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The other documents of the file, whose results may be models of this one.
    #[serde(skip)]
    pub earlier: Vec<MergeRecipe>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Element type of an output. The names that mergekit takes from torch are understood, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputDType {
    /// That of the inputs.
    #[default]
    Keep,
    /// 64-bit.
    #[serde(alias = "float64")]
    F64,
    /// 32-bit.
    #[serde(alias = "float32")]
    F32,
    /// 16-bit with the exponent range of f32.
    #[serde(alias = "bfloat16")]
    Bf16,
    /// IEEE 16-bit.
    #[serde(alias = "float16")]
    F16,
}

impl OutputDType {
    /// The dtype that an input of `dtype` is written in: integers and booleans keep theirs.
    #[must_use]
    pub const fn apply(self, dtype: DType) -> DType {
        match self {
            _ if !dtype.is_float() => dtype,
            Self::Keep => dtype,
            Self::F64 => DType::F64,
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// The treatment of keys that the layout does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownKeys {
    /// Refuse: nothing may be lost or carried along unnoticed.
    #[default]
    Error,
    /// Copy them as they are.
    Copy,
}

/// The treatment of a linear weight whose layer should have a gram matrix and has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissingGram {
    /// Refuse, naming the weight.
    #[default]
    Error,
    /// Take the plain mean of the weight's members.
    Mean,
}

/// The treatment of gram matrices that were summed over another file than the model they are given for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForeignGrams {
    /// Refuse.
    #[default]
    Error,
    /// Use them, as for the same weights in another file.
    Allow,
}

/// The treatment of a tensor that only some of the checkpoints have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// Refuse, naming every such tensor.
    #[default]
    Error,
    /// Take it from the base, or else from the first model that has it.
    Copy,
    /// Leave it out.
    Skip,
}

/// The measure that matches the experts of models with different orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlignExperts {
    /// Not at all: experts of the same number are merged, even if they are plainly others.
    None,
    /// By the cosine of their weights.
    Weights,
    /// By the cosine of the second moments of their outputs on data, from the gram file `outputs` of each model.
    Outputs,
}

/// Layers that follow each other, whose hidden units are brought into the order of the base's or the first model's before
/// a merge: linear layers, convolutions, and the norms behind them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignLayers {
    /// Their names, from the input on; inputs of the first and outputs of the last stay in order.
    pub layers: Vec<String>,
    /// The order in which they are visited until none gains.
    #[serde(default, skip_serializing_if = "is_default")]
    pub order: VisitOrder,
}

/// An order of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VisitOrder {
    /// From the input on.
    #[default]
    Ascending,
    /// From the output on.
    Descending,
}

/// The source of the draws of random masks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RandomSource {
    /// Draws keyed by seed, tensor, input and element: the same whatever else is merged.
    #[default]
    Counter,
    /// One after the other through the whole model, as mergekit on a CPU draws them.
    Mergekit,
}

impl MergeRecipe {
    /// The dtype in which the output is stored.
    #[must_use]
    pub const fn stored_dtype(&self) -> OutputDType {
        match self.out_dtype {
            OutputDType::Keep => self.dtype,
            given => given,
        }
    }

    /// Whether experts are put into another order.
    #[must_use]
    pub fn moves_experts(&self) -> bool {
        self.align_experts
            .is_some_and(|how| how != AlignExperts::None)
    }

    /// The tokens of the output, in either form.
    #[must_use]
    pub fn token_source(&self) -> Option<TokenizerSource> {
        let given = self
            .tokenizer
            .as_ref()
            .map(|tokenizer| tokenizer.source.clone());
        given.or_else(|| self.tokenizer_source.clone())
    }

    /// Notes on the parts of the recipe that mergekit reads and that mean nothing here.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for document in self.earlier.iter().chain([self]) {
            let parts = document.parts();
            let models = parts.iter().flat_map(|part| part.models);
            let bases = document.base_model.iter().chain(document.slice_bases());
            if models
                .chain(bases)
                .any(|model| model.overrides_architecture)
            {
                notes.push(
                    "`override_architecture` is passed over: tensors are merged by their names"
                        .to_owned(),
                );
            }
            let mut slices = parts.iter().flat_map(|part| part.slices);
            if slices.any(|slice| slice.residual_weight.is_some()) {
                notes.push("`residual_weight` is passed over, as mergekit does".to_owned());
            }
        }
        notes.dedup();
        notes
    }

    /// Whether the experts of one checkpoint are merged, and not checkpoints with each other.
    #[must_use]
    pub fn merges_experts(&self) -> bool {
        let says_so = self.experts.is_some() || self.task.is_some() || self.layout.is_some();
        let is_for_experts = methods::table::row(&self.merge_method)
            .is_some_and(|method| method.merges_experts)
            && !methods::ActMat::is_meant(&self.parameters);
        let is_one = self.models.len() < 2 && self.slices.is_empty() && self.modules.is_empty();
        says_so || (is_for_experts && is_one)
    }

    /// Reads a recipe from a YAML file.
    ///
    /// # Errors
    /// When the file cannot be read, or [`Error::BadRecipe`] with line and column.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::BadRecipe {
                path: path.to_owned(),
                reason: "this is a folder, and a recipe is a YAML file; `MODEL+ADAPTER` merges an adapter into a model \
                         without one"
                    .to_owned(),
            });
        }
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
        crate::io::require_fetched(path, text.as_bytes())?;
        Self::parse(&text, path)
    }

    /// Reads a recipe from YAML text; `path` is for messages only.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] with line and column.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        documents::parse(text, path)
    }

    /// The recipe as YAML that [`MergeRecipe::parse`] reads back.
    ///
    /// # Errors
    /// [`Error::BadRecipe`] for a path that is not UTF-8.
    pub fn to_yaml(&self) -> Result<String> {
        documents::to_yaml(self)
    }
}
