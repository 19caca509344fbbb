//! Everything that a checkpoint's headers say, as `vlmerge inspect` shows it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::io::{SourceInfo, TensorEntry};
use crate::layouts;
use crate::provenance::Provenance;
use crate::quantized::{Quantization, recognize};
use crate::statistics::{Statistics, sha256, statistics};
use crate::{Checkpoint, DType, Layout, Progress, Result, remote};

/// The data to read beside the headers, and the tensors to list.
pub struct InspectOptions<'a> {
    /// Minimum, maximum, mean, deviation, zeros and non-finite elements of each listed tensor.
    pub statistics: bool,
    /// The SHA-256 of each listed tensor.
    pub hashes: bool,
    /// Whether a tensor is listed.
    pub is_listed: &'a dyn Fn(&TensorEntry) -> bool,
}

/// Everything that is known of a checkpoint.
pub struct Inspection {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The layout, or why none was found.
    pub layout: Result<Box<dyn Layout>>,
    /// The recipe and the inputs of a file that this program wrote.
    pub provenance: Option<Provenance>,
    /// The quantization, or the reason why it is unknown.
    pub quantization: Result<Option<Quantization>>,
    /// Of the listed tensors, where asked for.
    pub statistics: Option<Vec<Statistics>>,
    /// Of the listed tensors, where asked for.
    pub hashes: Option<Vec<String>>,
    /// Tensors to list, as indices into the source's.
    listed: Vec<usize>,
}

/// The name of a tensor, or its place if it is outside the chosen root.
#[must_use]
pub fn called(entry: &TensorEntry) -> String {
    entry.name.clone().unwrap_or_else(|| entry.path.to_string())
}

impl Inspection {
    /// Reads headers; and the listed tensors, if statistics or hashes are asked for.
    ///
    /// # Errors
    /// When a tensor cannot be read, or the user stops it.
    pub fn new(
        checkpoint: Checkpoint,
        options: &InspectOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let source = checkpoint.source();
        let tensors = source.tensors().iter().enumerate();
        let listed: Vec<usize> = tensors
            .filter(|(_, entry)| (options.is_listed)(entry))
            .map(|(index, _)| index)
            .collect();
        let statistics = match options.statistics {
            true => Some(statistics(source, &listed, progress)?),
            false => None,
        };
        let hashes = match options.hashes {
            true => Some(sha256(source, &listed, progress)?),
            false => None,
        };
        Ok(Self {
            layout: layouts::detect(&checkpoint),
            quantization: recognize(&checkpoint),
            provenance: Provenance::from_metadata(&checkpoint.info().metadata),
            listed,
            statistics,
            hashes,
            checkpoint,
        })
    }

    /// The facts in the headers of the file.
    #[must_use]
    pub fn info(&self) -> &SourceInfo {
        self.checkpoint.info()
    }

    /// The codes that the listed tensor at this position is stored in.
    #[must_use]
    pub fn stored_as(&self, position: usize) -> Option<&str> {
        let source = self.checkpoint.source();
        source.stored_as(self.listed[position])
    }

    /// The listed tensors, in the order of the file.
    pub fn listed(&self) -> impl Iterator<Item = &TensorEntry> {
        let tensors = self.checkpoint.source().tensors();
        self.listed.iter().map(|&index| &tensors[index])
    }

    /// Tensors and elements of the chosen root by dtype, and by the codes that they are stored in.
    #[must_use]
    pub fn dtypes(&self) -> BTreeMap<(DType, Option<&str>), (usize, u64)> {
        let mut dtypes = BTreeMap::new();
        for (name, info) in self.checkpoint.tensors() {
            let kind = (info.dtype, self.checkpoint.stored_as(name));
            let (n_tensors, n_elements) = dtypes.entry(kind).or_insert((0, 0));
            *n_tensors += 1;
            *n_elements += info.n_elements() as u64;
        }
        dtypes
    }

    /// All of it, as `vlmerge inspect --json` prints it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let info = self.info();
        let files = info.files.iter().map(
            |file| json!({ "path": file.path.display().to_string(), "n_bytes": file.n_bytes }),
        );
        let dtypes = self
            .dtypes()
            .into_iter()
            .map(|((dtype, stored), (n_tensors, n_elements))| {
                let counts = json!({ "n_tensors": n_tensors, "n_elements": n_elements });
                (stored.unwrap_or(dtype.name()).to_owned(), counts)
            });
        let values = info
            .values
            .iter()
            .map(|(path, value)| json!({ "path": path, "value": value }));
        json!({
            "path": info.path.display().to_string(),
            "container": info.container,
            "files": files.collect::<Vec<_>>(),
            "roots": info.roots,
            "root": info.root,
            "layout": self.layout_json(),
            "dtypes": dtypes.collect::<serde_json::Map<_, _>>(),
            "quantization": self.quantization_json(),
            "metadata": info.metadata,
            "provenance": self.provenance.as_ref().map(|provenance| json!({
                "recipe": provenance.recipe,
                "inputs": provenance.inputs,
            })),
            "values": values.collect::<Vec<_>>(),
            "opaque": info.opaque,
            "fetched_bytes": remote::fetched_bytes(),
            "tensors": self.tensors_json(),
            "aliases": self.checkpoint.aliases(),
        })
    }

    fn layout_json(&self) -> Value {
        match &self.layout {
            Ok(layout) => json!({
                "name": layout.name(),
                "evidence": layout.evidence(),
                "dimensions": layout.dimensions(),
                "counts": layouts::count(&self.checkpoint, layout.as_ref()),
            }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    fn quantization_json(&self) -> Value {
        match &self.quantization {
            Ok(None) => Value::Null,
            Ok(Some(found)) => json!({
                "schemes": found.schemes(),
                "n_parameters": found.n_parameters(&self.checkpoint),
                "weights": found.weights().map(|(name, weight)| json!({
                    "name": name, "scheme": weight.scheme, "shape": weight.shape,
                })).collect::<Vec<_>>(),
            }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    fn tensors_json(&self) -> Vec<Value> {
        let list = self.listed().enumerate().map(|(position, entry)| {
            let mut tensor = json!({
                "path": entry.path,
                "name": entry.name,
                "dtype": entry.info.dtype,
                "shape": entry.info.shape,
            });
            if let Some(stored) = self.stored_as(position) {
                tensor["stored_as"] = json!(stored);
            }
            let aliases = self.checkpoint.aliases();
            if let Some(of) = entry.name.as_ref().and_then(|name| aliases.get(name)) {
                tensor["alias_of"] = json!(of);
            }
            if let Some(hashes) = &self.hashes {
                tensor["sha256"] = json!(hashes[position]);
            }
            if let Some(statistics) = &self.statistics {
                tensor["statistics"] = json!(statistics[position]);
            }
            tensor
        });
        list.collect()
    }
}
