//! What can go wrong between ranks.

use std::time::Duration;

/// What can go wrong between ranks.
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
        /// How many processes.
        n_ranks: usize,
        /// The feature that would be needed.
        feature: &'static str,
    },
    /// NCCL joins cards only.
    #[error(
        "`WORLD_SIZE` asks for {n_ranks} processes that meet through NCCL, which joins NVIDIA cards only; start processes on processors with mpirun"
    )]
    NoCard {
        /// How many processes.
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
        /// What it does.
        own: String,
        /// The other rank.
        rank: usize,
        /// What that does.
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
        /// What it should be.
        expected: &'static str,
    },
    /// The place where ranks meet could not be reached.
    #[error("rank {rank} cannot {action} {address}: {source}")]
    Meeting {
        /// This rank.
        rank: usize,
        /// What was tried, e.g. `connect to`.
        action: &'static str,
        /// Where.
        address: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Not every rank came to the place where ranks meet.
    #[error("{n_missing} of {n_ranks} ranks have not come to {address} within {patience:?}")]
    Missing {
        /// How many did not come.
        n_missing: usize,
        /// How many there should be.
        n_ranks: usize,
        /// Where they were to meet.
        address: String,
        /// How long they were waited for.
        patience: Duration,
    },
    /// A rank came to the place where ranks meet that is not expected there.
    #[error(
        "a process came to {address} as rank {rank} of {n_ranks}; that rank is there already, or ranks were started with different numbers of processes"
    )]
    Stranger {
        /// Where ranks meet.
        address: String,
        /// What it says it is.
        rank: usize,
        /// How many ranks it knows of.
        n_ranks: usize,
    },
    /// NCCL refused an operation.
    #[error("NCCL cannot {action}: {code}")]
    Nccl {
        /// What was tried.
        action: &'static str,
        /// The code of NCCL.
        code: String,
    },
}

impl From<Fault> for evaluate::Error {
    fn from(fault: Fault) -> Self {
        Self::Ranks(Box::new(fault))
    }
}
