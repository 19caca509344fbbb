//! Facts about a task in the results of a run, beside its numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::outside::json;
use crate::text::file;
use crate::{Error, Result};

/// The largest file of results that is read.
const MAX_BYTES: u64 = 256 << 20;

/// Facts about a task.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The version of the task, and the number of examples before each question.
    pub versions: BTreeMap<&'static str, String>,
    /// Metrics of which less is better.
    pub lower_is_better: Vec<String>,
}

impl Facts {
    /// Reads what results say of a task.
    pub fn open(path: &Path, task: Option<&str>) -> Result<Self> {
        let mut facts = Self::default();
        let Some(task) = task else {
            return Ok(facts);
        };
        let value = read(path)?;
        for (key, what) in [("versions", "version"), ("n-shot", "number of shots")] {
            match value.get(key).and_then(|all| all.get(task)) {
                None | Some(Value::Null) => {}
                Some(found) => {
                    facts.versions.insert(what, found.to_string());
                }
            }
        }
        let of_task = value.get("higher_is_better").and_then(|all| all.get(task));
        if let Some(Value::Object(metrics)) = of_task {
            let lower = metrics
                .iter()
                .filter(|(_, higher)| **higher == Value::Bool(false));
            facts.lower_is_better = lower.map(|(name, _)| name.clone()).collect();
        }
        Ok(facts)
    }
}

/// Reads JSON of results.
pub fn read(path: &Path) -> Result<Value> {
    json_of(path, MAX_BYTES)
}

/// Reads JSON of at most `limit` bytes.
pub fn json_of(path: &Path, limit: u64) -> Result<Value> {
    let text = file::text_at_most(path, limit)?;
    json::parse(&text).map_err(|source| Error::Json {
        path: path.into(),
        what: "JSON",
        source,
    })
}
