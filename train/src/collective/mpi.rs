//! Processes on processors, through MPI.

use std::cell::Cell;
use std::ops::AddAssign;

use evaluate::Result;
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Equivalence, Root};
use mpi::{Count, Threading};

use super::{Collective, Fault};

/// Elements that a rank adds up at a time, and bytes of a rank that are gathered at a time: room for
/// two pieces of all ranks is all that operations need, and MPI's counts of 32 bits are never
/// reached.
const PIECE: usize = 1 << 18;

/// Ranks that MPI has started, e.g. by `mpirun`.
///
/// How an MPI's own sums are ordered is its business, so sums are made of exchanges: every rank adds
/// up one stretch of each piece in the order of the ranks, and all gather the results.
pub struct Mpi {
    world: SimpleCommunicator,
    is_finished: Cell<bool>,
    // Dropped last: it ends MPI.
    _universe: Universe,
}

/// The next operation of a rank. Ranks compare it, so that a rank that does something else is an error, not a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Sum,
    SumF64,
    Gather,
    Exchange,
    Broadcast,
    Barrier,
}

impl Operation {
    const NAMES: [&'static str; 6] = [
        "sum",
        "sum_f64",
        "gather",
        "exchange",
        "broadcast",
        "barrier",
    ];

    fn shown(code: u64, n: u64) -> String {
        let known = usize::try_from(code)
            .ok()
            .and_then(|at| Self::NAMES.get(at));
        let name = known.unwrap_or(&"something else");
        format!("{name} of {n}")
    }
}

impl Mpi {
    /// Starts MPI, which can be done once in the life of a process. Only the thread that does so
    /// may use it.
    ///
    /// # Errors
    /// [`Fault::StartedTwice`]; [`Fault::NoThreads`] if the MPI allows no other threads.
    pub fn start() -> Result<Self> {
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, threading) = started.ok_or(Fault::StartedTwice)?;
        if threading < Threading::Funneled {
            return Err(Fault::NoThreads.into());
        }
        Ok(Self {
            world: universe.world(),
            is_finished: Cell::new(false),
            _universe: universe,
        })
    }

    /// The `n` of every rank. All ranks must do the same operation, with the same `n` unless they gather.
    fn meet(&self, operation: Operation, n: usize) -> Result<Vec<usize>> {
        let own = [operation as u64, n as u64];
        let mut all = vec![0; 2 * self.size()];
        self.world.all_gather_into(&own[..], &mut all[..]);
        for (rank, theirs) in all.chunks_exact(2).enumerate() {
            let is_same = match operation {
                Operation::Gather => own[0] == theirs[0],
                _ => own == theirs,
            };
            if !is_same {
                return Err(Fault::OutOfStep {
                    own_rank: self.rank(),
                    own: Operation::shown(own[0], own[1]),
                    rank,
                    theirs: Operation::shown(theirs[0], theirs[1]),
                }
                .into());
            }
        }
        Ok(all
            .chunks_exact(2)
            .map(|theirs| theirs[1] as usize)
            .collect())
    }

    fn sum_in_order<T>(&self, values: &mut [T])
    where
        T: Equivalence + Copy + Default + AddAssign,
    {
        let n_ranks = self.size();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for piece in values.chunks_mut(PIECE * n_ranks) {
            let stretch = piece.len().div_ceil(n_ranks);
            sent.clear();
            sent.extend_from_slice(piece);
            // The last stretches may reach past the end.
            sent.resize(stretch * n_ranks, T::default());
            received.resize(stretch * n_ranks, T::default());
            self.world.all_to_all_into(&sent[..], &mut received[..]);
            let (sum, others) = received.split_at_mut(stretch);
            for other in others.chunks_exact(stretch) {
                for (sum, value) in sum.iter_mut().zip(other) {
                    *sum += *value;
                }
            }
            self.world.all_gather_into(&*sum, &mut sent[..]);
            piece.copy_from_slice(&sent[..piece.len()]);
        }
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.meet(Operation::Sum, values.len())?;
        self.sum_in_order(values);
        Ok(())
    }

    fn sum_f64(&self, values: &mut [f64]) -> Result<()> {
        self.meet(Operation::SumF64, values.len())?;
        self.sum_in_order(values);
        Ok(())
    }

    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let lengths = self.meet(Operation::Gather, own.len())?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut all: Vec<Vec<u8>> = lengths.iter().map(|&n| Vec::with_capacity(n)).collect();
        let mut received = Vec::new();
        for from in (0..longest).step_by(PIECE) {
            let within = |n: usize| from.min(n)..(from + PIECE).min(n);
            let counts: Vec<Count> = (lengths.iter())
                .map(|&n| within(n).len() as Count)
                .collect();
            let starts: Vec<Count> = (counts.iter())
                .scan(0, |end, count| Some(std::mem::replace(end, *end + count)))
                .collect();
            received.resize(counts.iter().sum::<Count>() as usize, 0);
            let mut parts = PartitionMut::new(&mut received[..], &counts[..], &starts[..]);
            self.world
                .all_gather_varcount_into(&own[within(own.len())], &mut parts);
            for (all, (&start, &count)) in all.iter_mut().zip(starts.iter().zip(&counts)) {
                all.extend_from_slice(&received[start as usize..][..count as usize]);
            }
        }
        Ok(all)
    }

    fn exchange(&self, to: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let (rank, n_ranks) = (self.rank(), self.size());
        self.meet(Operation::Exchange, n_ranks)?;
        if to.len() != n_ranks {
            let found = to.len();
            return Err(evaluate::RanksFault::OtherMessages { found, n_ranks }.into());
        }
        let own: Vec<u64> = to.iter().map(|message| message.len() as u64).collect();
        let mut all = vec![0u64; n_ranks * n_ranks];
        self.world.all_gather_into(&own[..], &mut all[..]);
        let of_own = |at: usize| all[rank * n_ranks + at] as usize;
        let for_own = |at: usize| all[at * n_ranks + rank] as usize;
        let longest = all.iter().copied().max().unwrap_or(0) as usize;
        let mut received: Vec<Vec<u8>> = (0..n_ranks)
            .map(|at| Vec::with_capacity(for_own(at)))
            .collect();
        for from in (0..longest).step_by(PIECE) {
            let within = |n: usize| from.min(n)..(from + PIECE).min(n);
            let counts = |n: &dyn Fn(usize) -> usize| -> Vec<Count> {
                (0..n_ranks)
                    .map(|at| within(n(at)).len() as Count)
                    .collect()
            };
            let starts = |counts: &[Count]| -> Vec<Count> {
                let starts = counts.iter();
                let starts =
                    starts.scan(0, |end, count| Some(std::mem::replace(end, *end + count)));
                starts.collect()
            };
            let (sent_counts, counts) = (counts(&of_own), counts(&for_own));
            let (sent_starts, starts) = (starts(&sent_counts), starts(&counts));
            // One byte more than is sent: Open MPI takes the address of an empty vector of bytes for MPI_IN_PLACE.
            let pieces = to.iter().map(|message| &message[within(message.len())]);
            let sent = pieces.chain([&[0u8][..]]).collect::<Vec<_>>().concat();
            let mut piece = vec![0u8; 1 + counts.iter().sum::<Count>() as usize];
            let sent = Partition::new(&sent[..], &sent_counts[..], &sent_starts[..]);
            let mut parts = PartitionMut::new(&mut piece[..], &counts[..], &starts[..]);
            self.world.all_to_all_varcount_into(&sent, &mut parts);
            for (all, (&start, &count)) in received.iter_mut().zip(starts.iter().zip(&counts)) {
                all.extend_from_slice(&piece[start as usize..][..count as usize]);
            }
        }
        Ok(received)
    }

    fn broadcast(&self, root: usize, values: &mut [f32]) -> Result<()> {
        self.meet(Operation::Broadcast, values.len())?;
        let root = self.world.process_at_rank(root as i32);
        for piece in values.chunks_mut(PIECE) {
            root.broadcast_into(piece);
        }
        Ok(())
    }

    fn barrier(&self) -> Result<()> {
        self.meet(Operation::Barrier, 0)?;
        Ok(())
    }

    fn finish(&self) -> Result<()> {
        self.barrier()?;
        self.is_finished.set(true);
        Ok(())
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The others would wait for this rank forever.
        if !self.is_finished.get() && self.size() > 1 {
            self.world.abort(1);
        }
    }
}
