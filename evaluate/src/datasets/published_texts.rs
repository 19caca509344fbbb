//! Names of classes and templates of many sets in one JSON file, as clip_benchmark publishes them.
//!
//! ```json
//! {"eurosat": ["annual crop land", "forest", …], "pets": […]}
//! ```
//!
//! Names stand in the order of the classes' numbers; templates have `{c}` in place of the name.

use std::collections::BTreeMap;
use std::path::Path;

use merge::io::FileBytes;
use serde_json::Value;

use crate::{DataFault, Error, Result};

/// The most bytes of such a file.
const MAX_BYTES: u64 = 64 << 20;

/// The texts of a set, by its name in the file.
///
/// # Errors
/// [`Error::Json`] when the file is no such object; [`DataFault::Packed`] when it lacks the set, with those that it has,
/// or when the texts of the set are empty, of several lines, or no list.
pub fn read(path: &Path, set: &str) -> Result<Vec<String>> {
    let file = FileBytes::open(path)?;
    if file.n_bytes() > MAX_BYTES {
        return Err(Error::FileTooLarge {
            path: path.into(),
            n_bytes: file.n_bytes(),
            limit: MAX_BYTES,
        });
    }
    let bytes = file.read(0..file.n_bytes())?;
    let sets: BTreeMap<String, Value> =
        serde_json::from_slice(&bytes).map_err(|source| Error::Json {
            path: path.into(),
            what: "an object of lists of texts by sets",
            source,
        })?;
    let fault = |fault: String| {
        Error::Data(DataFault::Packed {
            path: path.into(),
            fault,
        })
    };
    let Some(found) = sets.get(set) else {
        let known: Vec<&str> = sets.keys().map(String::as_str).collect();
        return Err(fault(format!(
            "it has no {set:?}; it has: {}",
            known.join(", ")
        )));
    };
    let texts = found.as_array().map(|texts| {
        let texts = texts.iter().map(|text| text.as_str().map(str::to_owned));
        texts.collect::<Option<Vec<String>>>()
    });
    let texts = texts.flatten().ok_or_else(|| {
        fault(format!(
            "its {set:?} is no list of texts, such as texts of each class by itself"
        ))
    })?;
    let is_line = |text: &&String| !text.trim().is_empty() && !text.contains(['\n', '\r']);
    match texts.is_empty() || !texts.iter().all(|text| is_line(&text)) {
        true => Err(fault(format!(
            "its {set:?} is empty, or has a text of none or several lines"
        ))),
        false => Ok(texts),
    }
}
