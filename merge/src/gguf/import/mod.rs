//! A GGUF file as a model folder: its weights under the names of Hugging Face, and config.json, generation_config.json and
//! the tokenizer from its metadata.

mod bias;
mod bytes;
mod clip;
mod config;
mod facts;
mod positions;
mod sentencepiece;
mod tokenizer;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use self::facts::Facts;
use super::architectures::Architecture;
use super::{ARCHITECTURE_KEY, value};
use crate::beside::Companion;
use crate::beside::config::torch_name;
use crate::convert::Conversion;
use crate::io::gguf::Arrays;
use crate::io::{self, OpenOptions, PlainValue};
use crate::recipe::OutputDType;
use crate::{Checkpoint, GgufFault, MergePlan, Result, layouts};

/// Tokens of config.json and generation_config.json: the setting, the entry.
const TOKENS: [(&str, &str); 3] = [
    ("bos_token_id", "tokenizer.ggml.bos_token_id"),
    ("eos_token_id", "tokenizer.ggml.eos_token_id"),
    ("pad_token_id", "tokenizer.ggml.padding_token_id"),
];

/// How a GGUF file becomes a model folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GgufImport {
    /// Element type of floating point tensors; codes become bf16 if they are kept.
    pub dtype: OutputDType,
}

impl GgufImport {
    /// Says what happens to every tensor of a GGUF file, and which files go beside the weights.
    ///
    /// # Errors
    /// [`GgufFault::NoSuchConfig`] for an architecture whose names are not known, [`GgufFault::Fact`] for metadata that are
    /// missing, and [`GgufFault::Unsaid`] for those that config.json has no words for.
    pub fn plan(&self, source: Arc<Checkpoint>) -> Result<MergePlan> {
        let options = OpenOptions {
            raw: true,
            ..OpenOptions::default()
        };
        // Loaders compute some tensors from the settings, so that only the file's own view has them.
        let raw = io::open(source.path(), &options)?;
        let said = match value(raw.info(), ARCHITECTURE_KEY) {
            Some(PlainValue::Text(name)) => name.clone(),
            _ => String::new(),
        };
        let no_config = || GgufFault::NoSuchConfig {
            path: source.path().into(),
            architecture: said.clone(),
        };
        let is_adapter = matches!(
            value(raw.info(), "general.type"),
            Some(PlainValue::Text(kind)) if kind == "adapter"
        );
        let architecture = Architecture::of(&said, raw.source()).filter(|_| !is_adapter);
        let architecture = architecture.ok_or_else(no_config)?;
        let conversion = Conversion {
            dtype: self.dtype,
            ..Conversion::default()
        };
        let layout = layouts::by_name("generic", &source)?;
        let plan = conversion.plan(Arc::clone(&source), layout.as_ref())?;
        let facts = Facts::new(&raw, architecture);
        let mut notes = Vec::new();
        let mut files = Vec::new();
        let mut config = match architecture.model_type {
            "clip" => {
                let of_clip = clip::beside(&source, &facts)?;
                notes.extend(of_clip.notes);
                notes.push(
                    "the tokenizer is not written: the metadata have its tokens alone".into(),
                );
                files = of_clip.files;
                None
            }
            "llava" => return Err(no_config().into()),
            _ => {
                let arrays = Arrays::open(first_file(&raw))?;
                let made = tokenizer::files(&arrays, &facts)?;
                notes.extend(made.notes);
                files.extend(made.files);
                Some(config::of(&source, &facts)?)
            }
        };
        if let Some(config) = &mut config {
            let tokens = tokens(&facts)?;
            config.extend(tokens.clone());
            let known = tokens.into_iter().filter(|(_, id)| !id.is_null());
            let generation: Map<String, Value> = known.collect();
            if !generation.is_empty() {
                files.push(file("generation_config.json", &Value::Object(generation)));
            }
        }
        plan.with_made_files(&source, notes, |dtype| {
            if let Some(mut config) = config {
                config.extend(
                    dtype
                        .and_then(torch_name)
                        .map(|name| ("torch_dtype".to_owned(), json!(name))),
                );
                files.push(file("config.json", &Value::Object(config)));
            }
            Ok(files)
        })
    }
}

/// The file with the metadata of the model.
fn first_file(raw: &Checkpoint) -> &std::path::Path {
    (raw.info().files.first()).map_or(raw.path(), |file| file.path.as_path())
}

/// Tokens that begin, end and fill texts; null where the metadata name none.
fn tokens(facts: &Facts<'_>) -> Result<Map<String, Value>> {
    let mut tokens = Map::new();
    for (setting, key) in TOKENS {
        let id = match value(facts.info(), key) {
            None => Value::Null,
            Some(PlainValue::Integer(id)) if *id >= 0 => json!(id),
            Some(_) => return Err(facts.wrong(key, "is no number of a token")),
        };
        tokens.insert(setting.to_owned(), id);
    }
    Ok(tokens)
}

/// A file that is made of the metadata.
fn file(name: &str, value: &Value) -> Companion {
    Companion::json(name, value, "from the metadata")
}
