//! Gram files that this program writes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Gram, GramStore, Shard};
use crate::io::{WriteOptions, Writer};
use crate::provenance::{InputFile, Provenance};
use crate::{DType, Error, Progress, Result, StatisticsFault, TensorInfo};

/// Key of the record in a file's metadata.
const RECORD: &str = "vlmerge.grams";

/// Most missing parts that an error names.
const MAX_SHOWN: usize = 8;

/// Of which inputs the matrices of a file are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GramRecord {
    /// Data sets and splits, e.g. `coco val`.
    pub data: Vec<String>,
    /// The task whose passes were run: `retrieval`, `vqa`, `nlvr2`.
    pub task: String,
    /// The checkpoint whose layers' inputs these are.
    pub checkpoint: Vec<InputFile>,
    /// The number of examples that went through it.
    pub n_examples: u64,
    /// Whether rows of padding are counted.
    pub counts_padding: bool,
    /// Rows of inputs per key.
    pub rows: BTreeMap<String, u64>,
    /// Whatever else tells how the matrices came about, such as the image size.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// A hash of everything beside the weights that decides what the model makes of an example: the tokenizer, flags,
    /// and facts about the model. `None` in files of earlier builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reading: Option<String>,
    /// The summed parts of the data set, while some are missing: empty if it is whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<Shard>,
    /// Of a part, everything that decides which examples are in it, and which matrices are summed: parts of one
    /// data set agree in all of it. Empty if the data set is whole, and in files of earlier builds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parted_by: BTreeMap<String, String>,
}

impl GramRecord {
    /// Whether the record is of a part and says too little to tell whether others are parts of the same: an earlier
    /// build wrote it.
    #[must_use]
    pub fn is_bare_part(&self) -> bool {
        !self.shards.is_empty() && (self.parted_by.is_empty() || self.reading.is_none())
    }

    /// The difference to a part of the same data that was made in another way, as a clause; none where one of the two
    /// says nothing.
    fn difference(&self, other: &Self) -> Option<String> {
        if self.parted_by.is_empty() || other.parted_by.is_empty() {
            return None;
        }
        let names: BTreeSet<&String> = (self.parted_by.keys())
            .chain(other.parted_by.keys())
            .collect();
        names.into_iter().find_map(|name| {
            let of = |record: &Self| record.parted_by.get(name).cloned();
            let (expected, found) = (of(self), of(other));
            let shown = |value: Option<String>| value.unwrap_or_else(|| "not recorded".to_owned());
            (expected != found).then(|| {
                format!(
                    "is a part of other examples: {name} is {}, and {} before",
                    shown(found),
                    shown(expected)
                )
            })
        })
    }

    /// Takes in the parts and the data of another record; the fault if they do not go together.
    fn join(&mut self, other: Self) -> Result<(), String> {
        if self.shards.is_empty() != other.shards.is_empty() {
            let (shards, which) = match self.shards.is_empty() {
                true => (&other.shards, "is"),
                false => (&self.shards, "is whole; before it was"),
            };
            return Err(format!(
                "{which} only {} of {}",
                shown(shards),
                other.data.join(", ")
            ));
        }
        if let Some(difference) = self.difference(&other) {
            return Err(difference);
        }
        self.n_examples += other.n_examples;
        if self.shards.is_empty() {
            self.data.extend(other.data);
            return Ok(());
        }
        if self.data != other.data {
            return Err(format!(
                "is a part of {}, not of {}",
                other.data.join(", "),
                self.data.join(", ")
            ));
        }
        if self.parted_by.is_empty() {
            self.parted_by = other.parted_by;
        }
        for shard in other.shards {
            if shard.of() != self.shards[0].of() {
                return Err(format!("is part {shard}, of another number of parts"));
            }
            match self.shards.binary_search(&shard) {
                Ok(_) => return Err(format!("is part {shard} again")),
                Err(at) => self.shards.insert(at, shard),
            }
        }
        if self.shards.len() == self.shards[0].of() {
            self.shards.clear();
            self.parted_by.clear();
        }
        Ok(())
    }
}

fn shown(shards: &[Shard]) -> String {
    let shards: Vec<String> = shards.iter().map(Shard::to_string).collect();
    format!("part {}", shards.join(", "))
}

/// Writes matrices by name, packed, or in full for programs that know only that.
///
/// # Errors
/// Those of the [`Writer`], and [`Error::Cancelled`].
pub fn write(
    grams: &BTreeMap<String, Gram>,
    record: &GramRecord,
    is_full: bool,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let info = |gram: &Gram| TensorInfo {
        dtype: DType::F64,
        shape: match is_full {
            true => vec![gram.width(); 2],
            false => vec![gram.packed().len()],
        },
    };
    let tensors: Vec<(String, TensorInfo)> = (grams.iter())
        .map(|(key, gram)| (key.clone(), info(gram)))
        .collect();
    let total = tensors.iter().map(|(_, info)| info.n_bytes()).sum();
    progress.start("writing grams", total);
    let written = write_tensors(grams, record, is_full, &tensors, options, progress);
    progress.finish();
    written
}

fn write_tensors(
    grams: &BTreeMap<String, Gram>,
    record: &GramRecord,
    is_full: bool,
    tensors: &[(String, TensorInfo)],
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let metadata = metadata(record);
    let writer = Writer::create(tensors, &metadata, options)?;
    for (index, gram) in grams.values().enumerate() {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let full = is_full.then(|| gram.full());
        let values = match &full {
            Some(full) => full.as_slice().unwrap_or_default(),
            None => gram.packed(),
        };
        writer.write(index, 0, bytemuck::cast_slice(values))?;
        progress.advance(size_of_val(values) as u64);
    }
    writer.finish(&metadata)?;
    Ok(())
}

fn metadata(record: &GramRecord) -> BTreeMap<String, String> {
    let provenance = Provenance {
        recipe: format!("gram: {}, {}", record.task, record.data.join(", ")),
        inputs: record.checkpoint.clone(),
    };
    let mut metadata = provenance.to_metadata();
    // Strings, numbers and maps always have a JSON form.
    metadata.insert(
        RECORD.to_owned(),
        serde_json::to_string(record).unwrap_or_default(),
    );
    metadata
}

impl GramStore {
    /// Of which inputs the matrices are; `None` for files of other programs.
    #[must_use]
    pub fn record(&self) -> Option<GramRecord> {
        serde_json::from_str(self.checkpoint.info().metadata.get(RECORD)?).ok()
    }

    /// Refuses a file that sums only some parts of its data.
    ///
    /// # Errors
    /// [`StatisticsFault::GramParts`].
    pub fn require_whole(&self) -> Result<()> {
        let held = self
            .record()
            .map(|record| record.shards)
            .unwrap_or_default();
        let Some(of) = held.first().map(|shard| shard.of()) else {
            return Ok(());
        };
        let all = (1..=of).filter_map(|number| Shard::new(number, of));
        let mut missing: Vec<String> = (all.filter(|shard| !held.contains(shard)))
            .take(MAX_SHOWN + 1)
            .map(|shard| shard.to_string())
            .collect();
        if missing.len() > MAX_SHOWN {
            missing[MAX_SHOWN] = "…".to_owned();
        }
        let held: Vec<String> = held.iter().map(Shard::to_string).collect();
        Err(StatisticsFault::GramParts {
            path: self.checkpoint.path().into(),
            held: held.join(", "),
            missing: missing.join(", "),
        }
        .into())
    }

    /// A matrix with its number of rows, which is 0 for files of other programs.
    ///
    /// # Errors
    /// As [`GramStore::read`].
    pub fn sum(&self, key: &str) -> Result<Gram> {
        let packed = super::pack(&self.read(key)?);
        let rows = self
            .record()
            .and_then(|record| record.rows.get(key).copied());
        let info = self.checkpoint.require(key)?;
        Gram::from_packed(packed, rows.unwrap_or(0)).ok_or_else(|| Error::NotAGram {
            path: self.checkpoint.path().into(),
            key: key.to_owned(),
            dtype: info.dtype,
            shape: info.shape.clone(),
        })
    }
}

/// Adds files of the same checkpoint and task. Parts of one data set ([`Shard`]) may hold different
/// matrices, for each has seen only some of the passes.
///
/// # Errors
/// [`Error::GramsDiffer`] when they are of other checkpoints, tasks or settings, are parts of other examples, hold other
/// matrices or are not written by this program, and when one cannot be read.
pub fn add(stores: &[GramStore]) -> Result<(BTreeMap<String, Gram>, GramRecord)> {
    let mut grams: BTreeMap<String, Gram> = BTreeMap::new();
    let mut sum: Option<GramRecord> = None;
    for store in stores {
        let path = store.checkpoint.path();
        let differs = |fault: &str| Error::GramsDiffer {
            path: path.into(),
            fault: fault.to_owned(),
        };
        let record = store.record();
        let record = record.ok_or_else(|| differs("does not say what it was summed over"))?;
        let keys = store.checkpoint.tensors().map(|(key, _)| key.to_owned());
        let keys: Vec<String> = keys.collect();
        match &mut sum {
            None => {
                for key in keys {
                    grams.insert(key.clone(), store.sum(&key)?);
                }
                sum = Some(record);
            }
            Some(sum) => {
                let same = |record: &GramRecord| {
                    let GramRecord {
                        task,
                        checkpoint,
                        counts_padding,
                        settings,
                        ..
                    } = record.clone();
                    (task, checkpoint, counts_padding, settings)
                };
                if same(sum) != same(&record) {
                    return Err(differs("is of another checkpoint, task or setting"));
                }
                match (&sum.reading, &record.reading) {
                    (Some(expected), Some(found)) if expected != found => {
                        return Err(differs(
                            "is of a model that reads its data in another way: flags, the tokenizer or the model's \
                             configuration differ",
                        ));
                    }
                    (None, Some(found)) => sum.reading = Some(found.clone()),
                    _ => {}
                }
                let are_parts = !record.shards.is_empty();
                sum.join(record).map_err(|fault| differs(&fault))?;
                if !are_parts && !keys.iter().eq(grams.keys()) {
                    return Err(differs("holds other matrices"));
                }
                for key in keys {
                    let found = store.sum(&key)?;
                    let gram = grams
                        .entry(key.clone())
                        .or_insert_with(|| Gram::new(found.width()));
                    if !gram.add(&found) {
                        return Err(differs("holds matrices of another width"));
                    }
                    sum.rows.insert(key, gram.rows());
                }
            }
        }
    }
    Ok((grams, sum.unwrap_or_default()))
}
