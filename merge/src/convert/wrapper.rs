//! The `module.` that data-parallel wrappers put before every key.

use super::draft::Draft;
use crate::Result;
use crate::layouts::WRAPPER;

/// The treatment of the prefix `module.`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapper {
    /// Put it before every key that has none.
    Add,
    /// Take it off every key that has it.
    Remove,
}

/// Renames every key.
///
/// # Errors
/// [`crate::ConversionFault::NameTaken`] when there are two keys that differ by the prefix alone.
pub(super) fn change(draft: &mut Draft, wrapper: Wrapper) -> Result<()> {
    for name in draft.names() {
        match (wrapper, name.strip_prefix(WRAPPER)) {
            (Wrapper::Add, None) => draft.rename(&name, &format!("{WRAPPER}{name}"))?,
            (Wrapper::Remove, Some(rest)) => draft.rename(&name, rest)?,
            _ => {}
        }
    }
    let aliases: Vec<String> = draft.aliases().keys().cloned().collect();
    for name in aliases {
        match (wrapper, name.strip_prefix(WRAPPER)) {
            (Wrapper::Add, None) => draft.rename_alias(&name, &format!("{WRAPPER}{name}"))?,
            (Wrapper::Remove, Some(rest)) => draft.rename_alias(&name, rest)?,
            _ => {}
        }
    }
    Ok(())
}
