//! Random views of pictures, and masked words and patches.
//!
//! 1. [`TrainTransform`] makes the input of a model of a picture: a part of it ([`RandomCrop`]),
//!    mirrored or not, changed by [`RandomAugment`], which draws from [`Operation`]s. [`TwoViews`]
//!    makes a second view of it for the tokenizer of images.
//! 2. [`WordMasking`] says which words of a text are to be guessed, [`PatchMasking`] which patches
//!    of an image.
//!
//! All is drawn from a [`Sequence`](merge::random::Sequence), so the same key gives the same view.

mod color;
mod crop;
mod geometry;
mod operation;
mod patches;
mod random_augment;
mod train_transform;
mod words;

pub use crop::RandomCrop;
pub use geometry::{Affine, warp};
pub use operation::{MAX_MAGNITUDE, Operation};
pub use patches::PatchMasking;
pub use random_augment::RandomAugment;
pub use train_transform::{TrainTransform, TwoViews, mirror, target_into, target_view};
pub use words::{MaskedText, WordMasking, WordPieces};
