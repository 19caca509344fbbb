//! Turns data sets on disk into batches, which do not depend on the number of threads and ranks.
//!
//! [`Examples`] returns an example by its number, an [`Order`] lists the numbers, a [`Loader`] makes inputs of a
//! model of the examples, and [`batches`] loads them ahead on worker threads.

mod ahead;
mod corruption;
mod examples;
mod identity;
mod loaded;
mod loader;
mod order;
mod others;
mod signals;
mod view;

pub use ahead::batches;
pub use examples::{Example, Examples, Joined, open, open_annotations, open_classes, open_packed};
pub use identity::{difference, identity, lacks_tokenizers, tokenizers};
pub use loaded::Loaded;
pub use loader::{Loader, Patches};
pub use order::{Order, Place, Sampling, Visit, Visits, share_out};
pub use signals::SignalMasking;
