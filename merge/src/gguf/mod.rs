//! Models of GGUF files under the names that Hugging Face gives their tensors, and back.
//!
//! A GGUF file of a known architecture is opened as the model that it was made of: names and shapes are those of the
//! Hugging Face folder, rows that llama.cpp has in another order are in their own again, and tensors that are only computed from
//! the settings are left out. [`GgufImport`] puts the configuration beside them. [`GgufExport`] and [`AdapterExport`] go the other
//! way.
//!
//! | module | holds |
//! |---|---|
//! | `architectures` | the table of architectures, with the names of their tensors |
//! | `constants` | facts that programs have in code |
//! | `export` | a Hugging Face folder as a GGUF file |
//! | `import` | config.json and tokenizer.json of a GGUF file |
//! | `names` | one name into the other |
//! | `turned` | the order of the rows of queries and keys |
//! | `view` | a GGUF file under the names of Hugging Face |

mod architectures;
mod constants;
mod export;
mod import;
pub(crate) mod names;
mod turned;
mod view;

use crate::io::SourceInfo;
use crate::io::{ObjectPath, PathSegment, PlainValue};
use crate::{Checkpoint, GgufFault, Result, TensorSource};

pub use export::{AdapterExport, GgufExport, GgufType};
pub use import::GgufImport;

use architectures::Architecture;

/// The entry with the name of the architecture.
const ARCHITECTURE_KEY: &str = "general.architecture";

/// A GGUF file under the names of Hugging Face, if its architecture is known, else under its own with a note.
///
/// # Errors
/// [`GgufFault::Fact`] and [`GgufFault::Shape`] where the metadata do not say, or contradict, how rows are ordered.
pub(crate) fn named(source: Box<dyn TensorSource>) -> Result<Checkpoint> {
    let info = source.info();
    let path = info.path.display().to_string();
    let said = match value(info, ARCHITECTURE_KEY) {
        Some(PlainValue::Text(name)) => name.clone(),
        _ => String::new(),
    };
    let found = match value(info, "general.type") {
        Some(PlainValue::Text(kind)) if kind == "adapter" => None,
        _ => Architecture::of(&said, source.as_ref()),
    };
    let Some(architecture) = found else {
        let note = format!(
            "{path}: GGUF of the architecture `{said}`, whose names in Hugging Face are not known: its own are kept"
        );
        return Ok(Checkpoint::new(source).with_note(Some(note)));
    };
    view::View::open(source, architecture)
}

/// An entry of the metadata.
fn value<'a>(info: &'a SourceInfo, key: &str) -> Option<&'a PlainValue> {
    let is_it = |path: &ObjectPath| matches!(&path.0[..], [PathSegment::Key(own)] if own == key);
    let mut values = info.values.iter();
    values.find(|(path, _)| is_it(path)).map(|(_, value)| value)
}

/// A positive whole number of the metadata, or the fault of its absence.
fn count(info: &SourceInfo, key: &str, wanted: &str) -> Result<usize> {
    let fault = |found: &str| GgufFault::Fact {
        path: info.path.clone(),
        key: key.to_owned(),
        found: found.to_owned(),
        wanted: wanted.to_owned(),
    };
    match value(info, key) {
        None => Err(fault("is missing").into()),
        Some(PlainValue::Integer(n)) => match usize::try_from(*n) {
            Ok(n) if n > 0 => Ok(n),
            _ => Err(fault(&format!("is {n}")).into()),
        },
        Some(_) => Err(fault("is no whole number").into()),
    }
}
