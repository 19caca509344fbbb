//! Checkpoints in, merged checkpoints out.
//!
//! The main types in the order in which a merge uses them:
//!
//! 1. [`Checkpoint`] opens any supported file lazily through a [`TensorSource`]: names, shapes and
//!    dtypes at once, data on request. No code of the file is ever run.
//! 2. [`layouts::detect`] names the model family and gives each key a [`Role`].
//! 3. [`MergeRecipe`] is a user's wish, [`MergePlan`] the action for every key.
//! 4. [`execute`](execute::execute) runs the plan tensor by tensor through a [`MergeMethod`]
//!    and streams the result into a [`Writer`](io::Writer).
//!
//! This crate knows no model: it works on bytes, dtypes and [`ndarray`] arrays.

#![forbid(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("vlmerge reads and writes little-endian tensor data in place");

mod dtype;
mod error;
mod expert;
mod group;
mod model_config;
mod spans;
mod ties;
mod vectorized;

pub mod activations;
pub mod advise;
pub mod beside;
pub mod convert;
pub mod diff;
pub mod distance;
pub mod execute;
pub mod fisher;
pub mod gguf;
pub mod gram;
pub mod inspection;
pub mod io;
pub mod layouts;
pub mod linear_algebra;
pub mod lora;
pub mod low_rank;
pub mod methods;
pub mod mixtures;
pub mod moe;
mod permutations;
pub mod plan;
pub mod platform;
mod printable;
pub mod progress;
pub mod provenance;
pub mod quantized;
pub mod random;
pub mod recipe;
pub mod remote;
pub mod restore;
pub mod statistics;
pub mod synth;
pub mod transplant;
pub mod verify;

pub use dtype::{DType, decode_f32, decode_f64, encode_f32, encode_f64};
pub use error::{
    ActivationFault, AdapterFault, AssemblyFault, ContainerFault, ConversionFault, Error,
    ExportFault, GgufFault, MaskFault, MergeFault, MoeFault, PlanFault, QuantizationFault,
};
pub use error::{MegatronFault, WriteFault, ZeroFault};
pub use error::{
    RemoteFault, Result, SafetensorsFault, SliceFault, SplitFault, StatisticsFault, TorchFault,
    TrainerFault, TransplantFault,
};
pub use expert::Expert;
pub use group::{BlockId, ParamKind, Role, Slot};
pub use io::{Checkpoint, ObjectPath, PathSegment, TensorInfo, TensorSource};
pub use layouts::Layout;
pub use methods::MergeMethod;
pub use plan::MergePlan;
pub use printable::{grouped, printable};
pub use progress::Progress;
pub use recipe::MergeRecipe;
pub use vectorized::vectorized;
