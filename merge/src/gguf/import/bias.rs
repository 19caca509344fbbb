//! Which projections of a language model have biases.

use crate::{Checkpoint, GgufFault, Result};

/// Whether the projections of the first layer under `module` have biases: all of `names`, or none.
///
/// # Errors
/// [`GgufFault::Unsaid`] where some of them have one.
pub(super) fn has_biases(source: &Checkpoint, module: &str, names: &[&str]) -> Result<bool> {
    let key = |name: &&str| format!("model.layers.0.{module}.{name}.bias");
    let having: Vec<String> = (names.iter().map(key))
        .filter(|key| source.get(key).is_some())
        .collect();
    match having.first() {
        None => Ok(false),
        Some(_) if having.len() == names.len() => Ok(true),
        Some(first) => Err(GgufFault::Unsaid {
            path: source.path().into(),
            key: first.clone(),
            found: format!(
                "is a bias, which {} of the {} projections have",
                having.len(),
                names.len()
            ),
        }
        .into()),
    }
}
