//! Processes that share the work fail one another.

/// Processes that share the work fail one another.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RanksFault {
    /// A process is gone, or does something else than the others.
    #[error(transparent)]
    Collective(Box<dyn std::error::Error + Send + Sync>),
    /// A rank does not receive one message from each rank.
    #[error("{found} messages for {n_ranks} ranks")]
    OtherMessages {
        /// Messages.
        found: usize,
        /// Ranks.
        n_ranks: usize,
    },
    /// A rank returns more or fewer values than its batches have examples.
    #[error("rank {rank} has {n_values} values of {n_examples} examples")]
    UnevenResults {
        /// The process.
        rank: usize,
        /// Values that it has.
        n_values: usize,
        /// Examples of its batches.
        n_examples: usize,
    },
}
