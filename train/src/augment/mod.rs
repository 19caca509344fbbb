//! Random views of pictures, and masked words and patches.
//!
//! 1. [`TrainTransform`] makes the input of a model of a picture: a part of it ([`RandomCrop`]),
//!    mirrored or not ([`FlipGuard`]), its colors changed, then by [`RandomAugment`], which draws from [`Operation`]s. [`TwoViews`]
//!    makes a second view of it for the tokenizer of images.
//!    A list of [`PictureStep`]s does so instead where a recipe says so, as ZeroVL's do, with
//!    [`draw_policy`] and [`RandomErasing`]; each step draws [`PictureChange`]s.
//! 2. [`corrupted`] changes the words of a caption. [`WordMasking`] chooses the words of a text that a
//!    model guesses, [`PatchMasking`] the patches of an image.
//!
//! All is drawn from a [`Sequence`](merge::random::Sequence), so the same key gives the same view.

mod affine;
mod auto_augment;
mod blend;
mod blur;
mod color;
mod corruption;
mod crop;
mod distortion;
mod erasing;
mod flip_guard;
mod geometry;
mod hue;
mod operation;
mod patches;
mod picture_change;
mod random_augment;
mod steps;
mod train_transform;
mod words;

pub use auto_augment::{Change, Choice, POLICY, draw_policy};
pub use blur::gaussian_blur;
pub use corruption::corrupted;
pub use crop::RandomCrop;
pub use distortion::{DISTORTIONS, Distortion};
pub use erasing::{ErasedBox, ErasedWith, RandomErasing};
pub use flip_guard::FlipGuard;
pub use geometry::{Affine, warp};
pub use operation::{MAX_MAGNITUDE, Operation, Slips};
pub use patches::PatchMasking;
pub use picture_change::{PictureChange, resized_part};
pub use random_augment::RandomAugment;
pub use steps::PictureStep;
pub use train_transform::{TrainTransform, TwoViews, mirror, target_into, target_view};
pub use words::{MaskedText, Replacement, TokenKinds, WordMasking, fill, replace};
