//! Progress of a long operation, and the wish to stop it.

/// Receives the progress of a long operation; called from many threads.
pub trait Progress: Sync {
    /// The operation now has `total_bytes` of work ahead, called `what`.
    fn start(&self, what: &str, total_bytes: u64) {
        let _ = (what, total_bytes);
    }
    /// The operation now has `total` things of a kind ahead, such as images.
    fn start_items(&self, what: &str, total: u64) {
        let _ = (what, total);
    }
    /// `amount` more of the work are done: bytes, or items.
    fn advance(&self, amount: u64) {
        let _ = amount;
    }
    /// The operation that was announced is over.
    fn finish(&self) {}
    /// Whether the user asked to stop; the operation then returns [`crate::Error::Cancelled`].
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Reports nothing and never stops.
pub struct Silent;

impl Progress for Silent {}
