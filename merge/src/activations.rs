//! Rows of activations: of each linear layer a sample of its inputs, of the same tokens whatever the model, and the files
//! that `align: activations` matches models by.
//!
//! An activation file is a checkpoint with a tensor `(rows, width)` in f32 for each layer, under the name of the layer's
//! gram matrix ([`crate::Layout::gram_key`]). Row i of a layer is of the same token in the files of all models over the same
//! data.

use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::io::{WriteOptions, Writer};
use crate::provenance::{InputFile, Provenance};
use crate::random::Draws;
use crate::{
    ActivationFault, Checkpoint, DType, Error, Progress, Result, StatisticsFault, TensorInfo,
    decode_f64,
};

/// Key of the record in a file's metadata.
const RECORD: &str = "vlmerge.activations";

/// Words that are drawn at once.
const BATCH: usize = 1024;

/// Of which inputs the rows of a file are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivationRecord {
    /// Data set and split, e.g. `coco val`.
    pub data: String,
    /// The task whose passes were run.
    pub task: String,
    /// The checkpoint whose layers' inputs these are.
    pub checkpoint: Vec<InputFile>,
    /// How many examples went through it.
    pub n_examples: u64,
    /// Most rows that are kept of a layer.
    pub n_rows: u64,
    /// Rows that went by, per layer.
    pub seen: BTreeMap<String, u64>,
    /// Whatever else tells which rows went by, and in which order.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

impl ActivationRecord {
    /// The first fact, other than the model, in which the rows of another file differ: its name, what this file says, and
    /// what the other says.
    fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let facts = |of: &Self| {
            let mut facts = vec![
                ("data".to_owned(), of.data.clone()),
                ("task".to_owned(), of.task.clone()),
                ("examples".to_owned(), of.n_examples.to_string()),
                ("rows".to_owned(), of.n_rows.to_string()),
            ];
            let settings = of.settings.iter();
            facts.extend(settings.map(|(name, value)| (name.clone(), value.clone())));
            let seen = of.seen.iter();
            facts.extend(seen.map(|(layer, n)| (format!("rows of `{layer}`"), n.to_string())));
            facts
        };
        let (own, others) = (facts(self), facts(other));
        let missing = || "none".to_owned();
        let value = |facts: &[(String, String)], name: &str| {
            let found = facts.iter().find(|(known, _)| known == name);
            found.map_or_else(missing, |(_, value)| value.clone())
        };
        let mut names = own.iter().chain(&others).map(|(name, _)| name);
        names.find_map(|name| {
            let (own, other) = (value(&own, name), value(&others, name));
            (own != other).then(|| (name.clone(), own, other))
        })
    }
}

/// A sample of the rows that go by, uniform without replacement: those with the smallest draws by their numbers, so that
/// models that see the same rows keep the same.
#[derive(Clone, Debug)]
pub struct RowSample {
    width: usize,
    n_rows: usize,
    seen: u64,
    draws: Draws,
    /// Draw, number and place of each row that is kept; the first to go is on top.
    kept: BinaryHeap<(u32, u64, usize)>,
    /// Rows by their places.
    rows: Vec<f32>,
}

impl RowSample {
    /// Of at most `n_rows` rows of `width` numbers.
    #[must_use]
    pub fn new(width: usize, n_rows: usize) -> Self {
        Self {
            width,
            n_rows,
            seen: 0,
            draws: Draws::new(0, "activations"),
            kept: BinaryHeap::new(),
            rows: Vec::new(),
        }
    }

    /// How many rows went by.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Numbers of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Takes in rows that go by, `(rows, width)`.
    ///
    /// # Panics
    /// When the length of `inputs` is no multiple of the width.
    pub fn add_rows(&mut self, inputs: &[f32]) {
        assert!(
            inputs.len().is_multiple_of(self.width.max(1)),
            "{} numbers are no rows of {}",
            inputs.len(),
            self.width
        );
        let mut words = [0u32; BATCH];
        for batch in inputs.chunks(self.width.max(1) * BATCH) {
            let n = batch.len() / self.width.max(1);
            self.draws.fill_bits(0, self.seen as usize, &mut words[..n]);
            for (&word, row) in words.iter().zip(batch.chunks_exact(self.width.max(1))) {
                self.add_row(word, row);
            }
        }
    }

    fn add_row(&mut self, draw: u32, row: &[f32]) {
        let number = self.seen;
        self.seen += 1;
        if self.kept.len() < self.n_rows {
            self.kept.push((draw, number, self.kept.len()));
            self.rows.extend_from_slice(row);
            return;
        }
        let Some(mut last) = self.kept.peek_mut() else {
            return;
        };
        let place = last.2;
        if (draw, number) < (last.0, last.1) {
            *last = (draw, number, place);
            self.rows[place * self.width..(place + 1) * self.width].copy_from_slice(row);
        }
    }

    /// The rows that are kept, in the order in which they went by.
    #[must_use]
    pub fn rows(&self) -> Vec<f32> {
        let mut kept: Vec<(u64, usize)> = (self.kept.iter())
            .map(|&(_, number, place)| (number, place))
            .collect();
        kept.sort_unstable();
        let row =
            |(_, place): (u64, usize)| &self.rows[place * self.width..(place + 1) * self.width];
        kept.into_iter().flat_map(row).copied().collect()
    }
}

/// Writes the samples of all layers by name.
///
/// # Errors
/// Those of the [`Writer`], and [`Error::Cancelled`].
pub fn write(
    samples: &BTreeMap<String, RowSample>,
    record: &ActivationRecord,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let info = |sample: &RowSample| TensorInfo {
        dtype: DType::F32,
        shape: vec![sample.kept.len(), sample.width],
    };
    let tensors: Vec<(String, TensorInfo)> = (samples.iter())
        .map(|(key, sample)| (key.clone(), info(sample)))
        .collect();
    let provenance = Provenance {
        recipe: format!("activations: {}, {}", record.task, record.data),
        inputs: record.checkpoint.clone(),
    };
    let mut metadata = provenance.to_metadata();
    // Strings, numbers and maps always have a JSON form.
    let text = serde_json::to_string(record).unwrap_or_default();
    metadata.insert(RECORD.to_owned(), text);
    let writer = Writer::create(&tensors, &metadata, options)?;
    for (index, sample) in samples.values().enumerate() {
        if progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        writer.write(index, 0, bytemuck::cast_slice(&sample.rows()))?;
    }
    writer.finish(&metadata)?;
    Ok(())
}

/// Samples by the names of their layers, read one at a time.
pub struct ActivationStore {
    checkpoint: Arc<Checkpoint>,
    record: ActivationRecord,
}

impl ActivationStore {
    /// Takes an open file for an activation file.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`]; [`ActivationFault::NoFile`] for a file that does not say what its rows are of, and for a
    /// tensor that is no sample.
    pub fn new(checkpoint: Arc<Checkpoint>) -> Result<Self> {
        checkpoint.require_unique_names()?;
        let fault = |why: String| ActivationFault::NoFile {
            path: checkpoint.path().into(),
            why,
        };
        let text = checkpoint.info().metadata.get(RECORD).cloned();
        let record = text.and_then(|text| serde_json::from_str::<ActivationRecord>(&text).ok());
        let record =
            record.ok_or_else(|| fault(format!("its metadata have no record `{RECORD}`")))?;
        for (key, info) in checkpoint.tensors() {
            let seen = record.seen.get(key).copied().unwrap_or_default();
            let n_rows = seen.min(record.n_rows);
            let is_sample = info.dtype.is_float()
                && info.shape.len() == 2
                && info.shape[0] as u64 == n_rows
                && info.shape[1] > 0;
            if !is_sample {
                let (dtype, shape) = (info.dtype, &info.shape);
                let why = format!("`{key}` is {dtype} {shape:?}, not {n_rows} rows of floats");
                return Err(fault(why).into());
            }
        }
        Ok(Self { checkpoint, record })
    }

    /// The file behind it.
    #[must_use]
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Of which inputs the rows are.
    #[must_use]
    pub fn record(&self) -> &ActivationRecord {
        &self.record
    }

    /// Numbers of a row of the layer of this name, if there is one.
    #[must_use]
    pub fn width(&self, key: &str) -> Option<usize> {
        self.checkpoint.get(key)?.shape.get(1).copied()
    }

    /// Checks that the rows are those of another file.
    ///
    /// # Errors
    /// [`ActivationFault::OtherRows`].
    pub(crate) fn require_same_rows(&self, first: &Self) -> Result<()> {
        match self.record.difference(&first.record) {
            None => Ok(()),
            Some((what, found, expected)) => Err(ActivationFault::OtherRows {
                path: self.checkpoint.path().into(),
                first: first.checkpoint.path().into(),
                what,
                found,
                expected,
            }
            .into()),
        }
    }

    /// The rows of a layer, `(rows, width)`.
    ///
    /// # Errors
    /// When the file cannot be read, [`Error::MissingKey`], or [`StatisticsFault::NonFinite`].
    pub(crate) fn read(&self, key: &str) -> Result<Array2<f64>> {
        let info = self.checkpoint.require(key)?;
        let mut values = vec![0.0; info.n_elements()];
        let bytes = self.checkpoint.read_all(key)?;
        decode_f64(key, info.dtype, &bytes, &mut values)?;
        StatisticsFault::check(&self.checkpoint, "activations", key, &values)?;
        // The shape was checked when the file was opened.
        let shape = (info.shape[0], info.shape[1]);
        Ok(Array2::from_shape_vec(shape, values).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::OpenOptions;
    use crate::progress::Silent;

    fn sampled(n: usize, n_rows: usize, at_once: usize) -> RowSample {
        let mut sample = RowSample::new(2, n_rows);
        let rows: Vec<f32> = (0..n).flat_map(|row| [row as f32, -(row as f32)]).collect();
        for rows in rows.chunks(2 * at_once) {
            sample.add_rows(rows);
        }
        sample
    }

    #[test]
    fn all_rows_are_kept_while_there_is_room() {
        assert_eq!(sampled(3, 5, 2).rows(), [0.0, 0.0, 1.0, -1.0, 2.0, -2.0]);
        assert_eq!(sampled(3, 5, 2).seen(), 3);
        assert!(sampled(3, 0, 2).rows().is_empty());
    }

    #[test]
    fn the_rows_with_the_smallest_draws_are_kept_however_they_come() {
        let (n, n_rows) = (5000, 40);
        let mut words = vec![0; n];
        Draws::new(0, "activations").fill_bits(0, 0, &mut words);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by_key(|&row| words[row]);
        let mut expected = order[..n_rows].to_vec();
        expected.sort_unstable();
        for at_once in [1, 7, 1024, 3000] {
            let rows = sampled(n, n_rows, at_once).rows();
            let found: Vec<usize> = rows.chunks(2).map(|row| row[0] as usize).collect();
            assert_eq!(found, expected);
        }
        // They come from everywhere.
        let mean = expected.iter().sum::<usize>() as f64 / n_rows as f64;
        assert!((1700.0..3300.0).contains(&mean), "{mean}");
    }

    #[test]
    fn a_file_says_whose_rows_it_holds_and_another_one_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let samples = BTreeMap::from([("layer".to_owned(), sampled(6, 4, 2))]);
        let record = ActivationRecord {
            data: "coco val".to_owned(),
            n_rows: 4,
            seen: [("layer".to_owned(), 6)].into(),
            settings: [("tokenizer".to_owned(), "a".to_owned())].into(),
            ..ActivationRecord::default()
        };
        let stored = |name: &str, record: &ActivationRecord| {
            let path = folder.path().join(name);
            write(&samples, record, &WriteOptions::new(&path), &Silent).expect("written");
            let file = crate::io::open(&path, &OpenOptions::default()).expect("it opens");
            ActivationStore::new(Arc::new(file))
        };
        let first = stored("a.safetensors", &record).expect("a sample");
        assert_eq!(first.record(), &record);
        assert_eq!(first.width("layer"), Some(2));
        let rows = first.read("layer").expect("it reads");
        assert_eq!(rows.dim(), (4, 2));
        let same = ActivationRecord {
            checkpoint: Vec::new(),
            ..record.clone()
        };
        let same = stored("b.safetensors", &same).expect("a sample");
        same.require_same_rows(&first).expect("the same rows");
        let settings = [("tokenizer".to_owned(), "b".to_owned())].into();
        let other = ActivationRecord {
            settings,
            ..record.clone()
        };
        let other = stored("c.safetensors", &other).expect("a sample");
        let error = other.require_same_rows(&first).expect_err("other texts");
        assert!(error.to_string().contains("tokenizer"), "{error}");
        let wrong = ActivationRecord {
            n_rows: 5,
            ..record
        };
        let error = stored("d.safetensors", &wrong).err().expect("four rows");
        assert!(error.to_string().contains("not 5 rows"), "{error}");
    }
}
