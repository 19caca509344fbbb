//! `vlmerge inspect`.

mod text;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use merge::io::{OpenOptions, SourceInfo, TensorEntry, open};
use merge::layouts::{self, Layout};
use merge::provenance::Provenance;
use merge::quantized::{Quantization, recognize};
use merge::statistics::{Statistics, sha256, statistics};
use merge::{Checkpoint, DType};
use serde_json::{Value, json};

use crate::key_tree;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  vlmerge inspect model.ckpt
  vlmerge inspect model.safetensors --stats --keys '*.norm?.*'
  vlmerge inspect model.ckpt --root ema
  vlmerge inspect model.pt --json --hash
  vlmerge inspect step-1000/            a checkpoint of torch.distributed, or one file per rank

Without --stats and --hash it reads headers only, whatever the size of the file. It never runs code
of the file: it lists Python objects with the functions that Python would call to load them.";

/// Flags of `vlmerge inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A checkpoint: a file, an index.json, or a folder that holds one
    file: PathBuf,
    /// Name of the dictionary in the file that holds the weights [default: found by rule]
    #[arg(long)]
    root: Option<String>,
    /// Show minimum, maximum, mean, deviation, zeros and non-finite elements of each tensor
    #[arg(long)]
    stats: bool,
    /// Show the SHA-256 of each tensor's row-major little-endian bytes
    #[arg(long)]
    hash: bool,
    /// List only tensors whose name matches; `*` stands for anything, `?` for one character
    #[arg(long, value_name = "PATTERN")]
    keys: Option<String>,
}

/// Everything that is shown.
struct Inspection {
    checkpoint: Checkpoint,
    /// The layout, or why none was found.
    layout: Result<Box<dyn Layout>, merge::Error>,
    provenance: Option<Provenance>,
    /// The quantization, or the reason why it is unknown.
    quantization: Result<Option<Quantization>, merge::Error>,
    /// Tensors to list, as indices into the source's.
    listed: Vec<usize>,
    /// Of the listed tensors, where asked for.
    statistics: Option<Vec<Statistics>>,
    /// Of the listed tensors, where asked for.
    hashes: Option<Vec<String>>,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let checkpoint = open(&args.file, &OpenOptions { root: args.root })?;
    output.notes_of(&checkpoint);
    let source = checkpoint.source();
    let is_alias = |entry: &TensorEntry| {
        let name = entry.name.as_ref();
        name.is_some_and(|name| checkpoint.aliases().contains_key(name))
    };
    let is_listed = |entry: &TensorEntry| match &args.keys {
        // Programs get every name of a tensor, with the one that it stands under.
        _ if is_alias(entry) && !output.json => false,
        None => true,
        Some(pattern) => key_tree::matches(pattern, &called(entry)),
    };
    let listed: Vec<usize> = source
        .tensors()
        .iter()
        .enumerate()
        .filter(|(_, entry)| is_listed(entry))
        .map(|(index, _)| index)
        .collect();
    let statistics = match args.stats {
        true => Some(statistics(source, &listed, output)?),
        false => None,
    };
    let hashes = match args.hash {
        true => Some(sha256(source, &listed, output)?),
        false => None,
    };
    let inspection = Inspection {
        layout: layouts::detect(&checkpoint),
        quantization: recognize(&checkpoint),
        provenance: Provenance::from_metadata(&checkpoint.info().metadata),
        listed,
        statistics,
        hashes,
        checkpoint,
    };
    if output.json {
        output.json(&inspection.to_json())?;
    } else {
        inspection.print(output)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a tensor, or its place if it is outside the chosen root.
fn called(entry: &TensorEntry) -> String {
    entry.name.clone().unwrap_or_else(|| entry.path.to_string())
}

impl Inspection {
    fn info(&self) -> &SourceInfo {
        self.checkpoint.info()
    }

    fn listed(&self) -> impl Iterator<Item = &TensorEntry> {
        let tensors = self.checkpoint.source().tensors();
        self.listed.iter().map(|&index| &tensors[index])
    }

    /// Tensors and elements of the chosen root by dtype.
    fn dtypes(&self) -> BTreeMap<DType, (usize, u64)> {
        let mut dtypes = BTreeMap::new();
        for (_, info) in self.checkpoint.tensors() {
            let (n_tensors, n_elements) = dtypes.entry(info.dtype).or_insert((0, 0));
            *n_tensors += 1;
            *n_elements += info.n_elements() as u64;
        }
        dtypes
    }

    fn to_json(&self) -> Value {
        let info = self.info();
        let files = info.files.iter().map(
            |file| json!({ "path": file.path.display().to_string(), "n_bytes": file.n_bytes }),
        );
        let dtypes = self
            .dtypes()
            .into_iter()
            .map(|(dtype, (n_tensors, n_elements))| {
                let counts = json!({ "n_tensors": n_tensors, "n_elements": n_elements });
                (dtype.name().to_owned(), counts)
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
            "fetched_bytes": crate::output::fetched_bytes(),
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
