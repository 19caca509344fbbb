//! What happens to every key: the checked form of a recipe or of a conversion.

use std::sync::Arc;

use serde::Serialize;

use crate::methods::{ElementKernel, StepRounding, WholeKernel};
use crate::{Checkpoint, Result, TensorInfo};

/// A tensor of one of the plan's sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TensorRef {
    /// Index into [`MergePlan::sources`].
    pub source: usize,
    /// Its name there.
    pub key: String,
}

/// Makes elements of a tensor out of nothing, for fresh heads and synthetic checkpoints.
pub trait Generator: Send + Sync {
    /// Writes elements `first..first + out.len()`, the same for any split into chunks.
    fn fill(&self, first: usize, out: &mut [f32]);
}

/// How an output tensor is made.
#[derive(Clone)]
#[non_exhaustive]
pub enum Action {
    /// The same values; cast if the output dtype differs.
    Copy(TensorRef),
    /// Element by element from members of the same shape.
    Elementwise {
        /// The members in order.
        members: Vec<TensorRef>,
        /// What the method measures from.
        base: Option<TensorRef>,
        /// The arithmetic.
        kernel: Arc<dyn ElementKernel>,
        /// Rounding of intermediate results.
        step: StepRounding,
    },
    /// From whole arrays.
    Whole {
        /// The members in order.
        members: Vec<TensorRef>,
        /// What the method measures from.
        base: Option<TensorRef>,
        /// Names of the members' gram matrices in [`MergePlan::grams`]; empty if none are needed.
        grams: Vec<Option<String>>,
        /// The arithmetic.
        kernel: Arc<dyn WholeKernel>,
    },
    /// From a generator.
    Generate(Arc<dyn Generator>),
}

/// One output tensor.
#[derive(Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape and dtype.
    pub info: TensorInfo,
    /// How it is made.
    pub action: Action,
    /// Why, in a few words for the printed plan, e.g. `0.5 vision + 0.5 language`.
    pub why: String,
}

/// An input tensor that has no place in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The tensor.
    pub tensor: TensorRef,
    /// Why it is left out.
    pub why: String,
}

/// What happens to every key. A plan is complete and consistent by construction: every key of the
/// main source is used or dropped with a reason, and all shapes and dtypes agree.
pub struct MergePlan {
    /// The open inputs.
    pub sources: Vec<Arc<Checkpoint>>,
    /// Where gram matrices are read from.
    pub grams: Option<Arc<dyn GramSource>>,
    /// Output tensors, by name.
    pub entries: Vec<Entry>,
    /// Input tensors without a place in the output, by name.
    pub dropped: Vec<Dropped>,
}

/// Gram matrices by name, one at a time.
pub trait GramSource: Send + Sync {
    /// Whether there is a matrix of this name.
    fn contains(&self, key: &str) -> bool;

    /// Width of the (square) matrix of this name.
    fn width(&self, key: &str) -> Option<usize>;

    /// The full symmetric matrix in `f64`.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no such matrix.
    fn read(&self, key: &str) -> Result<ndarray::Array2<f64>>;
}
