//! Merge methods: tensors in, a tensor out. One file each, and one line in [`by_name`].
//!
//! A method decides once per group which [`Operation`] makes the merged tensor. Element-wise
//! operations are kernels on chunks, so that a tensor of any size is merged in bounded memory on
//! all cores; whole-tensor operations see [`ndarray`] arrays in `f64`.

use std::sync::Arc;

use ndarray::{Array2, ArrayD};

use crate::layouts::Task;
use crate::recipe::Parameters;
use crate::{Error, Expert, Result, Slot};

mod arithmetic;
mod interpolate;
mod kernel;
mod regmean;

pub use arithmetic::Arithmetic;
pub use interpolate::Interpolate;
pub use regmean::RegMean;

pub use kernel::{Chunk, ElementKernel, Elementwise, Real, StepRounding};

/// Names of all methods, for messages and documentation.
pub const NAMES: [&str; 3] = ["interpolate", "arithmetic", "regmean"];

/// The method of this name with these parameters.
///
/// # Errors
/// [`Error::UnknownMethod`], or what is wrong with the parameters.
pub fn by_name(
    name: &str,
    parameters: &Parameters,
    as_published: bool,
) -> Result<Box<dyn MergeMethod>> {
    Ok(match name {
        "interpolate" => Box::new(Interpolate::from_parameters(parameters)?),
        "arithmetic" => Box::new(Arithmetic::from_parameters(parameters, as_published)?),
        "regmean" => Box::new(RegMean::from_parameters(parameters, as_published)?),
        _ => {
            return Err(Error::UnknownMethod {
                name: name.to_owned(),
                known: NAMES.join(", "),
            });
        }
    })
}

/// What a method asks of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whether it measures from a base.
    pub base: bool,
    /// Whether linear weights need gram matrices.
    pub grams: bool,
}

/// All copies of one slot, without their data: what a method may know before it is run.
#[derive(Clone, Debug)]
pub struct GroupShape<'a> {
    /// The slot.
    pub slot: &'a Slot,
    /// Whom each member serves, in order; never empty.
    pub experts: &'a [Expert],
    /// Sizes of the axes, the same for all members.
    pub shape: &'a [usize],
    /// Name of each member's gram matrix, where there is one.
    pub grams: &'a [Option<String>],
}

impl GroupShape<'_> {
    /// Names of the experts, for descriptions.
    fn expert_names(&self) -> Vec<String> {
        self.experts.iter().map(ToString::to_string).collect()
    }
}

/// How the merged tensor of a group is made.
pub enum Operation {
    /// Element by element from all members (and the base).
    Elementwise(Arc<dyn ElementKernel>),
    /// From whole arrays.
    Whole(Arc<dyn WholeKernel>),
    /// Bytes of the member with this index, untouched.
    Take(usize),
}

/// The data of a group, array by array on request, so that only a few are in memory at once.
pub trait GroupData {
    /// Member `index` in `f64`.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    fn member(&self, index: usize) -> Result<ArrayD<f64>>;

    /// The base in `f64`.
    ///
    /// # Errors
    /// When the checkpoint cannot be read.
    fn base(&self) -> Result<ArrayD<f64>>;

    /// Gram matrix of the inputs of member `index`, shape `(in, in)`.
    ///
    /// # Errors
    /// When the gram file cannot be read or holds no such matrix.
    fn gram(&self, index: usize) -> Result<Array2<f64>>;
}

/// A whole-tensor operation.
pub trait WholeKernel: Send + Sync {
    /// The merged tensor in `f64`; the executor rounds it once.
    ///
    /// # Errors
    /// When the data cannot be read or admit no solution.
    fn merge(&self, group: &dyn GroupData) -> Result<ArrayD<f64>>;

    /// Most bytes it holds at once for members of `shape`, for the plan's memory estimate.
    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64;
}

/// A way to merge the members of a group.
pub trait MergeMethod: Send + Sync {
    /// The name in recipes.
    fn name(&self) -> &'static str;

    /// What it asks of a group.
    fn needs(&self) -> Needs;

    /// Whether the published program merges all experts of a block for `task`, those that the task
    /// does not use included.
    fn takes_unused_experts(&self, task: Task) -> bool {
        let _ = task;
        false
    }

    /// The operation for one group.
    ///
    /// # Errors
    /// When the group does not give what the method needs, naming the slot.
    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation>;

    /// What the operation does with this group, in a few words for the printed plan.
    fn describe(&self, group: &GroupShape<'_>) -> String;
}
