//! Diagonals of Fisher information, summed example by example, and the files that `fisher` merges by.
//!
//! A Fisher file is a checkpoint with the names and shapes of a model's own tensors, in f32, that says in its metadata
//! over which model and which data it was summed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::io::{WriteOptions, Writer};
use crate::provenance::{InputFile, Provenance};
use crate::{Checkpoint, DType, Error, Progress, Result, TensorInfo, decode_f64, encode_f64};

/// Key of the record in a file's metadata.
const RECORD: &str = "vlmerge.fisher";

/// Elements that are brought to another dtype at once.
const PIECE: usize = 1 << 16;

/// Of which gradients the numbers of a file are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FisherRecord {
    /// Data sets and splits, e.g. `coco val`.
    pub data: Vec<String>,
    /// The objectives whose losses are minus the log-likelihood.
    pub objectives: Vec<String>,
    /// The checkpoint whose gradients these are.
    pub checkpoint: Vec<InputFile>,
    /// The number of examples.
    pub n_examples: u64,
    /// Examples whose gradients are averaged before they are squared; 1 gives the Fisher information.
    pub examples_at_once: u64,
    /// `given`: the labels of the data; `expected`: all classes, each by the model's own probability of it.
    pub labels: String,
    /// Whatever else tells how the numbers came about.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

impl FisherRecord {
    /// The data that a file was summed over, by its own record; `None` for files of other programs.
    #[must_use]
    pub fn of(file: &Checkpoint) -> Option<Self> {
        let record: Self = serde_json::from_str(file.info().metadata.get(RECORD)?).ok()?;
        (!record.checkpoint.is_empty()).then_some(record)
    }

    /// As string metadata of a file.
    #[must_use]
    pub fn to_metadata(&self) -> BTreeMap<String, String> {
        let provenance = Provenance {
            recipe: format!(
                "fisher: {}, {}",
                self.objectives.join(" + "),
                self.data.join(", ")
            ),
            inputs: self.checkpoint.clone(),
        };
        let mut metadata = provenance.to_metadata();
        // Strings, numbers and maps always have a JSON form.
        let record = serde_json::to_string(self).unwrap_or_default();
        metadata.insert(RECORD.to_owned(), record);
        metadata
    }
}

/// The sum of squares for each element of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Squares {
    shape: Vec<usize>,
    values: Vec<f64>,
}

impl Squares {
    /// Zeros.
    #[must_use]
    pub fn zeros(shape: &[usize]) -> Self {
        Self {
            values: vec![0.0; shape.iter().product()],
            shape: shape.to_vec(),
        }
    }

    /// Sizes of the axes.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The sums, row-major.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The sums, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f64] {
        &mut self.values
    }
}

/// Sums by the names of their tensors.
pub type Sums = BTreeMap<String, Squares>;

/// Writes `factor` times each sum in `dtype`, with `metadata`.
///
/// # Errors
/// Those of the [`Writer`], and [`Error::Cancelled`].
pub fn write(
    sums: &Sums,
    factor: f64,
    dtype: DType,
    metadata: &BTreeMap<String, String>,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<()> {
    let info = |squares: &Squares| TensorInfo {
        dtype,
        shape: squares.shape.clone(),
    };
    let tensors: Vec<(String, TensorInfo)> = (sums.iter())
        .map(|(key, squares)| (key.clone(), info(squares)))
        .collect();
    let writer = Writer::create(&tensors, metadata, options)?;
    let width = dtype.size_bytes();
    let mut bytes = vec![0; PIECE * width];
    for (index, (key, squares)) in sums.iter().enumerate() {
        for (number, piece) in squares.values.chunks(PIECE).enumerate() {
            if progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let scaled: Vec<f64> = piece.iter().map(|value| factor * value).collect();
            let bytes = &mut bytes[..piece.len() * width];
            encode_f64(key, dtype, &scaled, bytes)?;
            writer.write(index, (number * PIECE * width) as u64, bytes)?;
        }
    }
    writer.finish(metadata)?;
    Ok(())
}

/// The sums that a file holds.
///
/// # Errors
/// When it cannot be read.
pub fn read(file: &Checkpoint) -> Result<Sums> {
    let read = |(key, info): (&str, &TensorInfo)| {
        let mut squares = Squares::zeros(&info.shape);
        decode_f64(key, info.dtype, &file.read_all(key)?, &mut squares.values)?;
        Ok((key.to_owned(), squares))
    };
    file.tensors().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::OpenOptions;
    use crate::progress::Silent;

    #[test]
    fn sums_are_written_as_means_and_the_file_says_of_what() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("f.safetensors");
        let mut squares = Squares::zeros(&[2, 1]);
        squares.values_mut().copy_from_slice(&[3.0, 1e-30]);
        let sums = Sums::from([("w".to_owned(), squares)]);
        let record = FisherRecord {
            objectives: vec!["vqa".to_owned()],
            checkpoint: vec![InputFile {
                name: "model.safetensors".to_owned(),
                n_bytes: 7,
                blake3: None,
                sha256: None,
                etag: None,
            }],
            examples_at_once: 1,
            ..FisherRecord::default()
        };
        let (metadata, options) = (record.to_metadata(), WriteOptions::new(&path));
        write(&sums, 0.5, DType::F32, &metadata, &options, &Silent).expect("written");
        let file = crate::io::open(&path, &OpenOptions::default()).expect("it opens");
        assert_eq!(FisherRecord::of(&file), Some(record));
        let found = read(&file).expect("it reads");
        assert_eq!(found["w"].shape(), [2, 1]);
        assert_eq!(found["w"].values(), [1.5, f64::from(5e-31_f32)]);
    }
}
