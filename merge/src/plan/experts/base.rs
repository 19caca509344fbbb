//! The base: whether the method takes one, and the tensor of a slot in it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{BASE, Builder};
use crate::layouts;
use crate::methods::{Base, MergeMethod};
use crate::plan::TensorRef;
use crate::plan::opener::Opener;
use crate::recipe::MergeRecipe;
use crate::{Checkpoint, Error, Result, Role, Slot};

pub(super) fn open_base(
    method: &dyn MergeMethod,
    recipe: &MergeRecipe,
    opener: &Opener,
) -> Result<Option<Arc<Checkpoint>>> {
    match (&recipe.base_model, method.needs().base) {
        (Some(base), Base::Optional | Base::Required) => Ok(Some(opener.open(base)?)),
        (None, Base::None | Base::Optional) => Ok(None),
        (None, Base::Required) => Err(Error::MethodNeeds {
            method: method.name(),
            what: "a base_model",
        }),
        (Some(_), Base::None) => Err(Error::MethodHasNoUse {
            method: method.name(),
            what: "a base_model",
        }),
    }
}

/// Key of each slot in the base, which must be modality-agnostic.
pub(super) fn base_slots(base: &Checkpoint) -> Result<BTreeMap<String, String>> {
    let layout = layouts::detect(base)?;
    let mut slots = BTreeMap::new();
    for (key, _) in base.tensors() {
        if let Ok(Role::Shared(slot)) = layout.role(key) {
            slots.insert(slot.key, key.to_owned());
        }
    }
    Ok(slots)
}

impl Builder<'_> {
    /// The slot's tensor in the base, of the members' shape.
    pub(super) fn base_of(
        &self,
        slot: &Slot,
        member: &str,
        shape: &[usize],
    ) -> Result<Option<TensorRef>> {
        let Some((slots, base)) = &self.base else {
            return Ok(None);
        };
        let key = match slots.get(&slot.key) {
            Some(key) => key,
            // Names the nearest key of the base.
            None => {
                return Err(base.require(&slot.key).err().unwrap_or_else(|| {
                    Error::AmbiguousSlot {
                        slot: slot.key.clone(),
                        key: member.to_owned(),
                    }
                }));
            }
        };
        let found = base.require(key)?;
        if found.shape != shape {
            return Err(Error::ShapeMismatch {
                slot: slot.key.clone(),
                key: key.clone(),
                found: found.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(Some(TensorRef {
            source: BASE,
            key: key.clone(),
        }))
    }
}
