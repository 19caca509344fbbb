//! Packed queries, keys and values of every family that packs them. Merges treat them as separate tensors.

use std::sync::Arc;

use crate::{Checkpoint, Result};

use super::clip::{self, ClipNames, ClipSpelling};
use super::vit::{self, VitSpelling};

/// The names and the packing of tensors in a file that merges see apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A CLIP's.
    Clip(ClipSpelling),
    /// A classifier's of timm.
    Vit(VitSpelling),
}

/// A checkpoint as merges read it, and how the result is to be packed if that differs from what they read. Checkpoints
/// of families that pack nothing are returned as they are.
///
/// # Errors
/// [`crate::Error::BrokenLayout`] and [`crate::ConversionFault::Parts`].
pub fn apart(checkpoint: Arc<Checkpoint>) -> Result<(Arc<Checkpoint>, Option<Packing>)> {
    let (checkpoint, spelling) = clip::apart(checkpoint)?;
    if let Some(spelling) = spelling {
        return Ok((checkpoint, Some(Packing::Clip(spelling))));
    }
    let (checkpoint, spelling) = vit::apart(checkpoint)?;
    Ok((checkpoint, spelling.map(Packing::Vit)))
}

impl Packing {
    /// The tensors that [`apart`] has taken apart, in one piece again.
    ///
    /// # Errors
    /// [`crate::ConversionFault`] for what does not fit together.
    pub fn packed(self, checkpoint: Arc<Checkpoint>) -> Result<Arc<Checkpoint>> {
        match self {
            Self::Clip(to) => clip::respelled(checkpoint, to),
            Self::Vit(to) => vit::packed(checkpoint, to),
        }
    }

    /// The names that merges have for what a key of the file holds: several where parameters are packed.
    #[must_use]
    pub fn apart_names(self, key: &str) -> Vec<String> {
        match self {
            Self::Clip(spelling) => spelling.apart_names(key),
            Self::Vit(spelling) => spelling.apart_names(key),
        }
    }

    /// The family's name for a file of weights, if its library has its own.
    pub(crate) fn stem(self) -> Option<&'static str> {
        match self {
            Self::Clip(spelling) => matches!(
                spelling.names,
                ClipNames::OpenClip | ClipNames::OpenClipTimm
            )
            .then_some("open_clip_model"),
            Self::Vit(_) => None,
        }
    }
}
