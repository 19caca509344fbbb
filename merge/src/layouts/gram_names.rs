//! The names of all gram matrices of a checkpoint.

use std::collections::BTreeMap;

use crate::{Checkpoint, Role};

use super::Layout;

/// The names under which the inputs of a checkpoint's linear layers are recorded, by
/// [`Layout::gram_key`]: those of layers that experts own, and those of shared layers; and the names of inputs that are
/// recorded of routers, by [`Layout::routing_key`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GramNames {
    layout: &'static str,
    /// Whether an expert owns the layer.
    names: BTreeMap<String, bool>,
}

impl GramNames {
    /// Asks the layout for the name of every tensor of the checkpoint's chosen root. Keys that the layout
    /// does not know have none.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint, layout: &dyn Layout) -> Self {
        let mut names = BTreeMap::new();
        for (key, _) in checkpoint.tensors() {
            let (slot, expert) = match layout.role(key) {
                Ok(Role::Shared(slot) | Role::Routing(slot)) => (slot, None),
                Ok(Role::Expert { expert, slot }) => (slot, Some(expert)),
                _ => continue,
            };
            if let Some(name) = layout.gram_key(&slot, expert) {
                names.insert(name, expert.is_some());
            }
            // How experts are used is recorded wherever their inputs are.
            if matches!(layout.role(key), Ok(Role::Routing(_)))
                && let Some(name) = layout.routing_key(&slot)
            {
                names.insert(name, true);
            }
        }
        Self {
            layout: layout.name(),
            names,
        }
    }

    /// Whether an expert owns the layer of this name; `None` if no layer has it.
    #[must_use]
    pub fn is_owned(&self, name: &str) -> Option<bool> {
        self.names.get(name).copied()
    }

    /// The layout that gave the names.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        self.layout
    }

    /// All names, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }
}
