//! Random views of pictures, and masked words.

mod crop;
mod words;

pub use crop::RandomCrop;
pub use words::{Masked, WordMasking};
