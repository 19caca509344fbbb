//! Several processes that train one model together.
//!
//! [`start`] gives the ranks that this process was started with: those of `mpirun` (feature `mpi`),
//! those of `WORLD_SIZE` on NVIDIA cards (feature `nccl`), or [`Alone`].
//! The work that ranks do together is [`Collective`], which evaluation shares with training.

mod fault;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
pub mod rendezvous;
mod said;
mod shards;
mod start;

pub use evaluate::ranks::{Alone, Collective};
pub use fault::Fault;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub(crate) use said::said_by_all;
pub use shards::{Parameters, Part, Shards};
pub use start::start;
