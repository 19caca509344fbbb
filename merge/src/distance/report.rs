//! The output of `vlmerge distance --json`, and its heat map.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::heat_map::{Cell, HeatMap, Panel};
use super::{Distance, Grain, Operands, PairSet, RECONSTRUCTION_NOTE};

/// The value of [`DistanceReport::schema`] that this program writes.
pub const SCHEMA: &str = "vlmerge.distance/1";

/// Distances of experts or of checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistanceReport {
    /// [`SCHEMA`].
    pub schema: String,
    /// The version of the program that wrote it.
    pub version: String,
    /// The checkpoint.
    pub input: String,
    /// The one it was compared with; `None` where its experts were compared with each other.
    #[serde(default)]
    pub other: Option<String>,
    /// The seed that both sides were measured from.
    #[serde(default)]
    pub seed: Option<String>,
    /// The kind of the compared vectors.
    pub operands: Operands,
    /// The measures, in the order of the flags.
    pub metrics: Vec<MetricRecord>,
    /// The values.
    pub distances: Vec<DistanceRecord>,
    /// Tensors that were not compared.
    #[serde(default)]
    pub skipped: Vec<SkippedRecord>,
}

/// A metric of a [`DistanceReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricRecord {
    /// Its name: `cosine`, `l2`, `ssd`, `tssd(0.2)`.
    pub name: String,
    /// A note that belongs to its values.
    #[serde(default)]
    pub note: Option<String>,
}

/// The values of each pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DistanceRecord {
    /// The compared sides, e.g. `vision vs language`.
    pub comparison: String,
    /// The pool of each value.
    pub grain: Grain,
    /// The block, where the grain has one.
    #[serde(default)]
    pub block: Option<usize>,
    /// The module, where the grain has one.
    #[serde(default)]
    pub module: Option<String>,
    /// The slot, where the grain is a single tensor.
    #[serde(default)]
    pub key: Option<String>,
    /// Elements on either side.
    pub n_elements: u64,
    /// A value per metric; null where it is undefined.
    pub values: BTreeMap<String, Option<f64>>,
}

/// A tensor that was not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRecord {
    /// Its name.
    pub key: String,
    /// The reason.
    pub why: String,
}

impl DistanceReport {
    /// Distances of a set of pairs, measured between the files named.
    #[must_use]
    pub fn new(
        [input, other, seed]: [Option<&Path>; 3],
        set: &PairSet<'_>,
        distances: &[Distance],
    ) -> Self {
        let shown = |path: &Path| path.display().to_string();
        let metrics = distances.first().map_or(&[][..], |first| &first.values);
        let metrics = metrics.iter().map(|(metric, _)| MetricRecord {
            name: metric.to_string(),
            note: (metric.is_reconstruction()).then(|| RECONSTRUCTION_NOTE.to_owned()),
        });
        let records = distances.iter().map(|distance| DistanceRecord {
            comparison: distance.comparison.to_string(),
            grain: distance.grain,
            block: distance.block,
            module: distance.module.clone(),
            key: distance.key.clone(),
            n_elements: distance.n_elements,
            values: (distance.values.iter())
                .map(|(metric, value)| (metric.to_string(), *value))
                .collect(),
        });
        let skipped = set.skipped.iter().map(|skipped| SkippedRecord {
            key: skipped.key.clone(),
            why: skipped.why.to_owned(),
        });
        Self {
            schema: SCHEMA.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            input: input.map(shown).unwrap_or_default(),
            other: other.map(shown),
            seed: seed.map(shown),
            operands: set.operands,
            metrics: metrics.collect(),
            distances: records.collect(),
            skipped: skipped.collect(),
        }
    }

    /// Blocks by modules, a panel per comparison; `None` when no module of a block was measured.
    #[must_use]
    pub fn heat_map(&self, metric: &MetricRecord) -> Option<HeatMap> {
        let cells: Vec<&DistanceRecord> = (self.distances.iter())
            .filter(|record| record.grain == Grain::Cell)
            .collect();
        let in_blocks: Vec<(usize, &str, &DistanceRecord)> = (cells.iter())
            .filter_map(|cell| Some((cell.block?, cell.module.as_deref()?, *cell)))
            .collect();
        let columns: BTreeSet<&str> = in_blocks.iter().map(|&(_, module, _)| module).collect();
        let mut comparisons: Vec<&str> = Vec::new();
        for (.., cell) in &in_blocks {
            if !comparisons.contains(&cell.comparison.as_str()) {
                comparisons.push(&cell.comparison);
            }
        }
        let panels = comparisons.into_iter().map(|comparison| {
            let mut grid: BTreeMap<usize, BTreeMap<&str, Cell>> = BTreeMap::new();
            for (block, module, cell) in &in_blocks {
                if cell.comparison == comparison {
                    let value = match cell.values.get(&metric.name) {
                        Some(Some(value)) => Cell::Value(*value),
                        _ => Cell::Undefined,
                    };
                    grid.entry(*block).or_default().insert(module, value);
                }
            }
            let row = |(block, cells): (usize, BTreeMap<&str, Cell>)| {
                let cell = |column| cells.get(column).copied().unwrap_or(Cell::Absent);
                (block.to_string(), columns.iter().map(cell).collect())
            };
            Panel {
                title: comparison.replace('_', "-"),
                rows: grid.into_iter().map(row).collect(),
            }
        });
        let panels: Vec<Panel> = panels.collect();
        let (title, quantity) = describe(&metric.name);
        (!panels.is_empty()).then(|| HeatMap {
            title,
            notes: self.notes(metric, in_blocks.len() < cells.len()),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            panels,
            quantity: quantity.to_owned(),
        })
    }

    fn notes(&self, metric: &MetricRecord, is_partial: bool) -> Vec<String> {
        let mut notes = vec![match &self.other {
            None => format!("Experts of {}.", name(&self.input)),
            Some(other) => format!("{} against {}.", name(&self.input), name(other)),
        }];
        notes.push(match &self.seed {
            None => format!("Measured on {}.", self.operands),
            Some(seed) => format!("Measured on {}; seed: {}.", self.operands, name(seed)),
        });
        notes.extend(metric.note.iter().map(|note| format!("{note}.")));
        if is_partial {
            notes.push("Tensors outside the blocks are not shown.".to_owned());
        }
        notes
    }
}

/// Title of a heat map, and the unit of its quantity.
fn describe(metric: &str) -> (String, &'static str) {
    let kept = metric
        .strip_prefix("tssd(")
        .and_then(|m| m.strip_suffix(')'));
    match (metric, kept) {
        (_, Some(share)) => (
            format!("Truncated soft sign dissimilarity, top {share} kept"),
            "no unit; 0 all signs agree, 1 all pairs cancel",
        ),
        ("cosine", _) => (
            "Cosine dissimilarity".to_owned(),
            "no unit; 0 same direction, 1 orthogonal, 2 opposite",
        ),
        ("l2", _) => (
            "L2 distance".to_owned(),
            "in units of the weights; grows with a tensor's size",
        ),
        ("ssd", _) => (
            "Soft sign dissimilarity (SSD)".to_owned(),
            "no unit; 0 all signs agree, 1 all pairs cancel",
        ),
        (other, _) => (other.to_owned(), "no unit"),
    }
}

fn name(path: &str) -> String {
    let path = Path::new(path);
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
