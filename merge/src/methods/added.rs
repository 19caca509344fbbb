//! Methods that a program adds while it runs, beside those of the table.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{MergeMethod, table};
use crate::recipe::Parameters;
use crate::{MergeFault, Result};

/// Makes a method for a recipe's parameters; the flag says whether it computes as the published program.
pub type Make = dyn Fn(&Parameters, bool) -> Result<Box<dyn MergeMethod>> + Send + Sync;

static ADDED: RwLock<BTreeMap<String, Arc<Make>>> = RwLock::new(BTreeMap::new());

/// Longest name of an added method.
const MAX_NAME_BYTES: usize = 64;

/// Adds a method, which recipes then name like any other. A method that was added under this name before is replaced.
/// Plans that exist keep the method that they were made with.
///
/// # Errors
/// [`MergeFault::MethodName`] for the name of one of [`super::METHODS`], and for a name with other characters than lower
/// case letters, digits and `_`.
pub fn add(name: &str, make: Arc<Make>) -> Result<()> {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let why = if table::row(name).is_some() {
        Some("a method of vlmerge has this name")
    } else if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_valid) {
        Some("a name has 1 to 64 lower case letters, digits and `_`")
    } else {
        None
    };
    if let Some(why) = why {
        return Err(MergeFault::MethodName {
            name: name.chars().take(MAX_NAME_BYTES).collect(),
            why,
        }
        .into());
    }
    let mut added = ADDED.write().unwrap_or_else(PoisonError::into_inner);
    added.insert(name.to_owned(), make);
    Ok(())
}

/// The method that was added under this name.
pub(super) fn of_name(name: &str) -> Option<Arc<Make>> {
    let added = ADDED.read().unwrap_or_else(PoisonError::into_inner);
    added.get(name).cloned()
}

/// Names of the methods that were added.
pub(super) fn names() -> Vec<String> {
    let added = ADDED.read().unwrap_or_else(PoisonError::into_inner);
    added.keys().cloned().collect()
}
