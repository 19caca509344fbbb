//! Faults between ranks.

use std::time::Duration;

/// A fault between ranks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The program was started as one of several, but cannot be.
    #[error(
        "started as one of {n_ranks} processes (`{variable}`), but this program was built without the feature `{feature}`"
    )]
    NotBuiltIn {
        /// The environment variable that says so.
        variable: &'static str,
        /// The number of processes.
        n_ranks: usize,
        /// The feature that would be needed.
        feature: &'static str,
    },
    /// NCCL joins cards only.
    #[error(
        "`WORLD_SIZE` asks for {n_ranks} processes that meet through NCCL, which joins NVIDIA cards only; start processes on processors with mpirun"
    )]
    NoCard {
        /// The number of processes.
        n_ranks: usize,
    },
    /// MPI can be started once in the life of a process.
    #[error("MPI has been started in this process before")]
    StartedTwice,
    /// MPI does not go together with threads.
    #[error("this MPI cannot be used by a process of several threads")]
    NoThreads,
    /// Ranks do different things, which is a mistake in the program.
    #[error("rank {rank} does {theirs} while rank {own_rank} does {own}")]
    OutOfStep {
        /// This rank.
        own_rank: usize,
        /// Its operation.
        own: String,
        /// The other rank.
        rank: usize,
        /// The operation of that rank.
        theirs: String,
    },
    /// A rank said something that others cannot read, which is a mistake in the program.
    #[error("what rank {rank} said cannot be read: {reason}")]
    Unreadable {
        /// The rank.
        rank: usize,
        /// Why not.
        reason: String,
    },
    /// An environment variable is missing or makes no sense.
    #[error("the environment variable `{name}` is {value:?}, expected {expected}")]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value; empty if it is not set.
        value: String,
        /// The expected value.
        expected: &'static str,
    },
    /// The place where ranks meet could not be reached.
    #[error("rank {rank} cannot {action} {address}: {source}")]
    Meeting {
        /// This rank.
        rank: usize,
        /// The failed action, e.g. `connect to`.
        action: &'static str,
        /// The address.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not every rank came to the place where ranks meet.
    #[error("{n_missing} of {n_ranks} ranks have not come to {address} within {patience:?}")]
    Missing {
        /// The number of ranks that did not come.
        n_missing: usize,
        /// The number of all ranks.
        n_ranks: usize,
        /// The meeting point.
        address: String,
        /// The time that ranks waited for them.
        patience: Duration,
    },
    /// A rank came to the place where ranks meet that is not expected there.
    #[error(
        "a process came to {address} as rank {rank} of {n_ranks}; that rank is there already, or ranks were started with different numbers of processes"
    )]
    Stranger {
        /// The meeting point.
        address: String,
        /// The rank that it gives.
        rank: usize,
        /// The number of ranks that it knows of.
        n_ranks: usize,
    },
    /// NCCL refused an operation.
    #[error("NCCL cannot {action}: {code}")]
    Nccl {
        /// The failed action.
        action: &'static str,
        /// The code of NCCL.
        code: String,
    },
}

impl From<Fault> for evaluate::Error {
    fn from(fault: Fault) -> Self {
        evaluate::RanksFault::Collective(Box::new(fault)).into()
    }
}
