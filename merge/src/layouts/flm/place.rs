//! The place of a key in the model.

use crate::layouts::{BlockId, split_block};
use crate::{ParamKind, Slot};

use super::table::{GROUPS, Group, POSITION_IDS, Parameter};

/// The place of a key in the model.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The group, an alias's own.
    pub group: &'static Group,
    /// The index of the block.
    pub block: Option<usize>,
    /// The parameter.
    pub parameter: &'static Parameter,
}

impl Place {
    pub(super) fn of(key: &str) -> Option<Self> {
        GROUPS.iter().find_map(|group| {
            let rest = key.strip_prefix(group.prefix)?;
            let (block, rest) = match group.stack {
                Some(_) => {
                    let (index, rest) = split_block(rest)?;
                    (Some(index), rest)
                }
                None => (None, rest),
            };
            let parameter = group.parameters.iter().find(|row| row.key == rest)?;
            Some(Self {
                group,
                block,
                parameter,
            })
        })
    }

    /// The key.
    pub(super) fn key(self) -> String {
        self.key_under(self.group.prefix)
    }

    fn key_under(self, prefix: &str) -> String {
        match self.block {
            Some(index) => format!("{prefix}{index}.{}", self.parameter.key),
            None => format!("{prefix}{}", self.parameter.key),
        }
    }

    /// The key that the tensor goes by, if this one is another name of it.
    pub(super) fn canonical(self) -> Option<String> {
        self.group.alias_of.map(|prefix| self.key_under(prefix))
    }

    /// Whether a loader rebuilds the tensor.
    pub(super) fn is_buffer(self) -> bool {
        self.parameter.key == POSITION_IDS
    }

    pub(super) fn slot(self) -> Slot {
        let block = self.group.stack.zip(self.block);
        let module = match self.parameter.key {
            key if key.starts_with("attn.in_proj_") => "attn.in_proj",
            key => key.rsplit_once('.').map_or(key, |(module, _)| module),
        };
        let module = match block {
            Some(_) => module.to_owned(),
            None => {
                let key = self.key();
                let end = key
                    .rsplit_once('.')
                    .map_or(key.as_str(), |(module, _)| module);
                end.to_owned()
            }
        };
        Slot {
            key: self.key(),
            block: block.map(|(stack, index)| BlockId { stack, index }),
            module,
            kind: self.parameter.kind,
        }
    }
}

/// The key of the family that is most like `key`.
pub(super) fn nearest(key: &str) -> Option<String> {
    let names = GROUPS.iter().flat_map(|group| {
        let index = key.strip_prefix(group.prefix).and_then(split_block);
        let block = group.stack.map(|_| index.map_or(0, |(index, _)| index));
        (group.parameters.iter()).map(move |parameter| {
            let place = Place {
                group,
                block,
                parameter,
            };
            place.key()
        })
    });
    crate::layouts::nearest(names, key)
}

/// The linear layer that a slot is the weight of, as its key names it.
pub(super) fn linear_layer(slot: &Slot) -> Option<String> {
    let is_linear = slot.kind == ParamKind::LinearWeight;
    let key = Some(slot.key.as_str()).filter(|_| is_linear)?;
    let layer = key
        .strip_suffix(".weight")
        .or_else(|| key.strip_suffix("_weight"))?;
    Some(layer.to_owned())
}
