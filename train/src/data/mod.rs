//! From data sets on disk to batches, the same whatever the number of threads and ranks.
//!
//! [`Examples`] are what can be asked for by number, an [`Order`] is the order in which they are
//! asked for, and [`batches`] loads them ahead on worker threads.

mod examples;
mod identity;
mod loader;
mod order;
mod others;
mod signals;
mod view;

pub use examples::{Example, Examples, Joined, open, open_annotations, open_classes, open_packed};
pub use identity::{difference, identity};
pub use loader::{Loaded, Loader, Patches, batches};
pub use order::{Order, Place, Sampling, Visit, Visits, share_out};
pub use signals::SignalMasking;
