//! Several processes that train one model together.
//!
//! [`start`] gives the ranks that this process was started with: those of `mpirun` (feature `mpi`),
//! those of `WORLD_SIZE` on NVIDIA cards (feature `nccl`), or [`Alone`].

mod alone;
mod fault;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
pub mod rendezvous;
mod shards;
mod start;
mod together;

pub use alone::Alone;
pub use fault::Fault;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use shards::{Parameters, Part, Shards};
pub use start::start;
pub use together::Together;

use candle_core::{DType, Device, Tensor};

use crate::Result;

/// What ranks do together. Every rank calls the same operations in the same order; sums are taken
/// in the order of the ranks, so a run gives the same numbers every time.
pub trait Collective {
    /// The number of this process, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// Adds up `values` of all ranks, element by element, for all.
    ///
    /// # Errors
    /// When a rank is gone or does something else.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// The same in f64.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn sum_f64(&self, values: &mut [f64]) -> Result<()>;

    /// The same for a tensor, without a graph: by way of memory, or on the device where ranks meet
    /// there. Numbers of 16 bits are added up in f32 and rounded once.
    ///
    /// # Errors
    /// As [`Collective::sum`], and when the device fails.
    fn sum_tensor(&self, tensor: &Tensor) -> Result<Tensor> {
        sum_through_memory(self, tensor)
    }

    /// The bytes of every rank, in the order of the ranks; they may differ in length.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Gives rank `root`'s `values` to all.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()>;

    /// Waits for all.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn barrier(&self) -> Result<()>;

    /// Whether this process is the one that writes and prints.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for all at the end of their work. A rank that goes without has failed, and takes the
    /// others with it, which would wait for it forever: say what went wrong before dropping it.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn finish(&self) -> Result<()> {
        self.barrier()
    }
}

fn sum_through_memory<C: Collective + ?Sized>(ranks: &C, tensor: &Tensor) -> Result<Tensor> {
    let (flat, shape) = (tensor.detach().flatten_all()?, tensor.shape());
    let sum = match tensor.dtype() {
        DType::F64 => {
            let mut values: Vec<f64> = flat.to_vec1()?;
            ranks.sum_f64(&mut values)?;
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
        _ => {
            let mut values: Vec<f32> = flat.to_dtype(DType::F32)?.to_vec1()?;
            ranks.sum(&mut values)?;
            Tensor::from_vec(values, shape, &Device::Cpu)?
        }
    };
    Ok(sum.to_device(tensor.device())?.to_dtype(tensor.dtype())?)
}
