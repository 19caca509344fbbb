//! config.json of the model that a checkpoint belongs to.

use serde_json::Value;

use crate::beside::Companions;
use crate::io::Container;
use crate::{Checkpoint, Result};

/// The config.json beside a checkpoint; `None` where there is none. A file that is no JSON is none, too: it is refused
/// where it is written.
pub(crate) fn of(checkpoint: &Checkpoint) -> Result<Option<Value>> {
    if checkpoint.info().container == Container::Memory {
        return Ok(None);
    }
    let companions = Companions::of_model(checkpoint.path())?;
    let text = companions.text("config.json")?;
    Ok(text.and_then(|(_, text)| serde_json::from_str(&text).ok()))
}

/// A setting at the top of a configuration, or else in that of its text model.
pub(crate) fn setting<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    let parts = ["text_config", "llm_config", "language_config"];
    let in_part = || parts.iter().find_map(|part| config.get(part)?.get(key));
    config.get(key).or_else(in_part)
}
