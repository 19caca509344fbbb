//! The ranks that a process was started with.

use candle_core::Device;

use super::rendezvous::Rendezvous;
use super::{Alone, Collective, Fault};
use crate::Result;

/// Variables in which launchers of MPI say how many processes they start.
const MPI_SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// The ranks that this process was started with: through NCCL where `WORLD_SIZE` is set
/// ([`Rendezvous`]), through MPI where `mpirun` has started it, else it is alone.
///
/// # Errors
/// [`Fault::NotBuiltIn`] where it was started as one of several without the feature for it: each
/// would do the whole work. [`Fault::NoCard`], and those of the features.
pub fn start(device: &Device) -> Result<Box<dyn Collective>> {
    let variable = |name: &str| std::env::var(name).ok();
    if let Some(meeting) = Rendezvous::from_variables(variable)?
        && meeting.n_ranks() > 1
    {
        return through_nccl(device, &meeting);
    }
    for name in MPI_SIZES {
        let n_ranks = variable(name).and_then(|value| value.parse().ok());
        if let Some(n_ranks) = n_ranks.filter(|&n| n > 1) {
            return through_mpi(name, n_ranks);
        }
    }
    Ok(Box::new(Alone))
}

#[cfg(feature = "mpi")]
fn through_mpi(_: &'static str, _: usize) -> Result<Box<dyn Collective>> {
    Ok(Box::new(super::Mpi::start()?))
}

#[cfg(not(feature = "mpi"))]
fn through_mpi(variable: &'static str, n_ranks: usize) -> Result<Box<dyn Collective>> {
    let feature = "mpi";
    Err(Fault::NotBuiltIn {
        variable,
        n_ranks,
        feature,
    }
    .into())
}

fn through_nccl(device: &Device, meeting: &Rendezvous) -> Result<Box<dyn Collective>> {
    let n_ranks = meeting.n_ranks();
    if !device.is_cuda() {
        return Err(Fault::NoCard { n_ranks }.into());
    }
    #[cfg(feature = "nccl")]
    return Ok(Box::new(super::Nccl::start(device, meeting)?));
    #[cfg(not(feature = "nccl"))]
    return Err(Fault::NotBuiltIn {
        variable: "WORLD_SIZE",
        n_ranks,
        feature: "nccl",
    }
    .into());
}
