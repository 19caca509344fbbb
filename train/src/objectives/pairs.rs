//! Matches images with their texts, and draws other pairs.

use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::{Error, Result};

/// The rules by which `itc` and `itm` treat pairs of a batch that have the same image, and draw negatives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PairSettings {
    /// Every text of an image belongs to it, wherever it is in the batch: `itc` shares its target among them, and
    /// `itm` draws none of them as a negative (false: each pair stands alone).
    pub by_image: bool,
    /// The least probability of a negative, in shares of the softmax (1e-6; EVE's program has 1e-5).
    pub floor: f64,
    /// Divide the gradient of `itc` by features by the number of ranks, as EVE's program does without saying so; that
    /// of the temperature stays whole (false).
    pub as_published: bool,
}

impl Default for PairSettings {
    /// The published programs of vl-merging and VLMo have no floor, and fail where the softmax gives one pair
    /// everything.
    fn default() -> Self {
        Self {
            by_image: false,
            floor: 1e-6,
            as_published: false,
        }
    }
}

impl PairSettings {
    /// As EVE's program has it, with the whole gradient.
    pub const EVE: Self = Self {
        by_image: true,
        floor: 1e-5,
        as_published: false,
    };

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::BadSetting`].
    pub fn check(&self) -> Result<()> {
        if self.floor > 0.0 && self.floor < 1.0 {
            return Ok(());
        }
        Err(Error::BadSetting {
            key: "objectives.pairs.floor".into(),
            reason: format!("{} is no share between 0 and 1", self.floor),
        })
    }

    /// The number of each example's image, where they count.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub(super) fn images(self, batch: &Batch) -> Result<Option<&[u32]>> {
        if !self.by_image {
            return Ok(None);
        }
        let images = batch.image_numbers.as_deref();
        let what = "numbers of images";
        images.map(Some).ok_or(Error::NotInBatch { what })
    }
}
