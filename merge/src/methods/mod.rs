//! Merge methods: tensors in, a tensor out. One file each, and one row of [`METHODS`]. The steps that several of
//! them share are in `kernels` (arithmetic of chunks), `ranking` (which value has a given rank),
//! `thinning` (which elements of a task vector stay), `matrices` (task vectors that are decomposed), `overall` (all
//! tensors of a model as one vector) and `masks` (which elements are of which task).
//!
//! A method decides once per group which [`Operation`] makes the merged tensor. Element-wise
//! operations are kernels on chunks, so that a tensor of any size is merged in bounded memory on
//! all cores; those that must know the whole tensor first look at it in passes ([`Survey`]);
//! whole-tensor operations see [`ndarray`] arrays in `f64`.

use std::sync::Arc;

use ndarray::{Array2, ArrayD};

use crate::layouts::Task;
use crate::{DType, Expert, Result, Slot};

mod ace;
mod actmat;
mod arcee_fusion;
mod arithmetic;
mod aswudi;
mod breadcrumbs;
mod breadcrumbs_ties;
mod cart;
mod consensus;
mod dare_linear;
mod dare_ties;
mod della;
mod della_linear;
mod emr;
mod fisher;
mod interpolate;
mod iso_c;
mod iso_cts;
mod karcher;
mod knots;
mod linear;
mod lines;
mod localize_and_stitch;
mod mats;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod optmerge;
mod passthrough;
mod pcb;
mod ram;
mod ramplus_tl;
mod regmean;
mod sce;
mod slerp;
mod swudi;
mod tall_masks;
mod task_arithmetic;
mod ties;
mod ties_of_model;
mod tsv_m;
mod wudi;

mod added;
mod kernels;
mod linear_layers;
mod masks;
mod matrices;
mod overall;
mod parameters;
mod ranking;
pub(crate) mod table;
mod thinning;

pub use ace::Ace;
pub use actmat::ActMat;
pub use arcee_fusion::ArceeFusion;
pub use arithmetic::Arithmetic;
pub use aswudi::Aswudi;
pub use breadcrumbs::Breadcrumbs;
pub use breadcrumbs_ties::BreadcrumbsTies;
pub use cart::Cart;
pub use consensus::Consensus;
pub use dare_linear::DareLinear;
pub use dare_ties::DareTies;
pub use della::Della;
pub use della_linear::DellaLinear;
pub use emr::Emr;
pub use fisher::Fisher;
pub use interpolate::Interpolate;
pub use iso_c::IsoC;
pub use iso_cts::IsoCts;
pub use karcher::Karcher;
pub use knots::Knots;
pub use linear::Linear;
pub use lines::Lines;
pub use localize_and_stitch::LocalizeAndStitch;
pub use mats::Mats;
pub use model_stock::ModelStock;
pub use multislerp::MultiSlerp;
pub use nearswap::NearSwap;
pub use nuslerp::NuSlerp;
pub use optmerge::OptMerge;
pub use passthrough::Passthrough;
pub use pcb::Pcb;
pub use ram::Ram;
pub use ramplus_tl::RamPlus;
pub use regmean::RegMean;
pub use sce::Sce;
pub use slerp::Slerp;
pub use swudi::Swudi;
pub use tall_masks::TallMasks;
pub use task_arithmetic::TaskArithmetic;
pub use ties::Ties;
pub use ties_of_model::TiesOfModel;
pub use tsv_m::TsvM;
pub use wudi::Wudi;

pub use added::{Make, add};
pub use table::{METHODS, MethodRow, NAMES, by_name};

pub use crate::group::Member;
pub use kernels::element::{Chunk, ElementKernel, Elementwise, Real, StepRounding, Value};
use kernels::element::{reals, widen};
pub(crate) use kernels::of_element::each as each_element;
pub(crate) use kernels::overview::is_same;
pub use kernels::overview::{Groups, Overview};
pub use kernels::passes::{AnyChunk, Passes, Survey};
pub use masks::Masks;
pub(crate) use matrices::is_table;
pub use parameters::{Fallback, Kind, ParameterSpec, Scope, Setting, Values};
pub use thinning::draws::{DrawKey, Tape};

/// A method's use of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// It has no use for one.
    None,
    /// It measures from one if there is one.
    Optional,
    /// It cannot do without.
    Required,
}

/// The inputs that a method asks of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Whether it measures from a base.
    pub base: Base,
    /// Whether linear weights need gram matrices.
    pub grams: bool,
    /// The parameter that names a file with a tensor beside each tensor of a model.
    pub paired: Option<&'static str>,
    /// Least number of inputs beside the base.
    pub min_inputs: usize,
    /// Greatest number of inputs beside the base.
    pub max_inputs: usize,
    /// Whether one of exactly two inputs is the base, if there is a base.
    pub two_ends: bool,
}

impl Needs {
    /// This number of inputs beside a base.
    #[must_use]
    pub const fn inputs(base: Base, min_inputs: usize, max_inputs: usize) -> Self {
        Self {
            base,
            grams: false,
            paired: None,
            min_inputs,
            max_inputs,
            two_ends: false,
        }
    }

    /// Two inputs, of which one is the base if there is one.
    #[must_use]
    pub const fn two_ends() -> Self {
        Self {
            two_ends: true,
            ..Self::inputs(Base::Optional, 1, 2)
        }
    }

    /// Whether the method takes `n_inputs` inputs beside the base.
    #[must_use]
    pub const fn takes(&self, n_inputs: usize, has_base: bool) -> bool {
        if self.two_ends {
            return n_inputs + has_base as usize == 2 && n_inputs > 0;
        }
        self.min_inputs <= n_inputs && n_inputs <= self.max_inputs
    }

    /// The numbers of inputs that it takes, in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let beside = match self.base {
            _ if self.two_ends => return "two models, one of which may be the base".to_owned(),
            Base::None => "",
            _ => " beside the base",
        };
        match (self.min_inputs, self.max_inputs) {
            (1, 1) => format!("one model{beside}"),
            (least, most) if least == most => format!("{least} models{beside}"),
            (0, _) => format!("any number of models{beside}"),
            (least, _) => format!("at least {least} models{beside}"),
        }
    }
}

/// All copies of one slot, without their data: what a method may know before it is run.
#[derive(Clone)]
pub struct GroupShape<'a> {
    /// The slot.
    pub slot: &'a Slot,
    /// The position of its block among those of its stack: 0 for the first, 1 for the last; `None` outside the blocks.
    pub depth: Option<f64>,
    /// The members, in order.
    pub members: &'a [Member],
    /// The expert of each member, where the members are experts of one checkpoint.
    pub experts: &'a [Expert],
    /// Whether there is a base.
    pub has_base: bool,
    /// Sizes of the axes, the same for all members.
    pub shape: &'a [usize],
    /// The dtype that holds the values of all members.
    pub dtype: DType,
    /// Name of each member's gram matrix, where there is one; empty for tensors that are merged without.
    pub grams: &'a [Option<GramRef>],
    /// Values of the method's parameters.
    pub values: &'a Values,
    /// The key of the draws.
    pub draws: &'a DrawKey,
}

impl GroupShape<'_> {
    /// Names of the members, for descriptions.
    fn labels(&self) -> Vec<String> {
        self.members.iter().map(Member::label).collect()
    }
}

/// A gram matrix of one of a plan's gram files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GramRef {
    /// Index into [`crate::MergePlan::grams`].
    pub store: usize,
    /// Its name there.
    pub key: String,
}

/// The operation that makes the merged tensor of a group.
pub enum Operation {
    /// Element by element from all members (and the base).
    Elementwise(Arc<dyn ElementKernel>),
    /// From whole arrays.
    Whole(Arc<dyn WholeKernel>),
    /// Element by element, after passes over the whole tensors.
    Survey(Arc<dyn Survey>),
    /// Bytes of the member with this index, untouched.
    Take(usize),
    /// Bytes of the base, untouched.
    TakeBase,
}

/// The data of a group, array by array on request, so that only a few are in memory at once.
pub trait GroupData: Sync {
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

    /// The overview over all tensors that comes first, if it needs one.
    fn overview(&self) -> Option<Arc<dyn Overview>> {
        None
    }

    /// Most bytes it holds at once for members of `shape`, for the plan's memory estimate.
    fn peak_bytes(&self, shape: &[usize], n_members: usize) -> u64;

    /// Whether most of its work runs on one thread, so that several tensors are merged at a time.
    fn is_on_one_thread(&self) -> bool {
        false
    }
}

/// A way to merge the members of a group.
pub trait MergeMethod: Send + Sync {
    /// The name in recipes.
    fn name(&self) -> &'static str;

    /// The inputs that it asks of a group.
    fn needs(&self) -> Needs;

    /// Its parameters, which a recipe may give for all tensors or by their names. Empty for methods
    /// that read theirs once for the whole merge.
    fn parameters(&self) -> &'static [ParameterSpec] {
        &[]
    }

    /// Names of parameters of the whole recipe that it reads itself, beside [`MergeMethod::parameters`].
    fn own_parameters(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether a parameter of another method is an error, as for most methods that mergekit lacks. Methods of mergekit pass
    /// such parameters over with a note, as that program does.
    fn refuses_foreign_parameters(&self) -> bool {
        false
    }

    /// Whether it sees the rank of a difference from the base, so that the rounding of a model with an adapter would show.
    fn needs_ranks(&self) -> bool {
        false
    }

    /// Whether it merges experts of one checkpoint only.
    fn is_for_experts(&self) -> bool {
        false
    }

    /// Whether its merged file is a model of no task by itself: masks beside it make one of each task.
    fn needs_masks(&self) -> bool {
        false
    }

    /// Whether the published program merges all experts of a block for `task`, those that the task
    /// does not use included.
    fn takes_unused_experts(&self, task: Task) -> bool {
        let _ = task;
        false
    }

    /// The number of a group's members that are thinned by chance, each by one draw an element.
    fn n_drawn(&self, values: &Values) -> usize {
        let _ = values;
        0
    }

    /// The operation for one group.
    ///
    /// # Errors
    /// When the group does not give what the method needs, naming the slot.
    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation>;

    /// The operation on this group, in a few words for the printed plan.
    fn describe(&self, group: &GroupShape<'_>) -> String;
}
