//! A recipe whose settings fit together.

use std::ops::Deref;

use super::TrainRecipe;
use crate::Result;

/// A recipe whose settings fit together: [`TrainRecipe::checked`] is the only way to one.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedRecipe(TrainRecipe);

impl TrainRecipe {
    /// The recipe, if its settings fit together, with short names of augmentations written in full.
    ///
    /// # Errors
    /// [`Error::BadSetting`](crate::Error::BadSetting) with the key and its fault,
    /// [`Error::UnknownObjective`](crate::Error::UnknownObjective).
    pub fn checked(mut self) -> Result<CheckedRecipe> {
        self.check()?;
        self.augmentation = self.augmentation.in_full();
        Ok(CheckedRecipe(self))
    }
}

impl CheckedRecipe {
    /// The recipe as it is written, to change it.
    #[must_use]
    pub fn into_inner(self) -> TrainRecipe {
        self.0
    }
}

impl Deref for CheckedRecipe {
    type Target = TrainRecipe;

    fn deref(&self) -> &TrainRecipe {
        &self.0
    }
}
