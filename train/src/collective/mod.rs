//! Several processes that train one model together.

mod alone;

pub use alone::Alone;

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
    /// When a rank is gone.
    fn sum(&self, values: &mut [f32]) -> Result<()>;

    /// The same in f64.
    ///
    /// # Errors
    /// As [`Collective::sum`].
    fn sum_f64(&self, values: &mut [f64]) -> Result<()>;

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
}
