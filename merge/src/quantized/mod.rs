//! Quantized tensors, read as the numbers that they stand for.
//!
//! A quantized weight is stored as codes of few bits with scales beside it: the codes alone mean nothing,
//! and averaging those of two models gives neither's weights nor their mean. [`recognize`] finds such
//! weights by their names, dtypes and the `quantization_config` of config.json; [`dequantized`] is the
//! checkpoint with every one of them under the name and in the shape that the model gives it, computed in
//! f32 while it is read, by the formula that the format's own library has. Scales, zero points and all
//! else beside the codes are gone from it.
//!
//! | module | formats |
//! |---|---|
//! | `scaled` | 8-bit floats and integers with a scale per tensor, row, block or group; MXFP8 |
//! | `fours` | 4-bit floats with scales: MXFP4 (in rows, and turned as in gpt-oss), NVFP4 |
//! | `columns` | GPTQ and AWQ: integers of few bits, packed by columns |
//! | `packed` | compressed-tensors' packed integers |
//! | `lookup` | bitsandbytes' NF4 and FP4 |
//! | `sparse` | compressed-tensors' sparse weights with a bit for each element, of numbers or of codes with scales |

mod columns;
mod config;
mod fours;
mod lookup;
mod packed;
mod recognize;
mod scaled;
mod sparse;
mod stored;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

pub use recognize::recognize;

use crate::io::{self, OpenOptions};
use crate::{Checkpoint, DType, QuantizationFault, Result, TensorInfo};
use stored::Kept;

/// Computes the elements of one weight.
trait Dequantize: Send + Sync {
    /// Writes elements `first..` of the weight, row-major, to `out`, whatever is in it.
    fn fill(&self, source: &Checkpoint, kept: &Kept, first: usize, out: &mut [f32]) -> Result<()>;

    /// The tensors that it is computed of.
    fn keys(&self) -> Vec<&str>;

    /// The type in which it is written unless somebody says otherwise. Codes are no dtype to write: bf16 is what such models are
    /// made from.
    fn dtype(&self) -> DType {
        DType::BF16
    }

    /// Most bytes that it keeps in memory from one read to the next.
    fn kept_bytes(&self) -> u64 {
        0
    }
}

/// A weight that is stored as codes.
pub struct Weight {
    /// The scheme, in words: `FP8 in blocks of 128 x 128`.
    pub scheme: String,
    /// Its real shape.
    pub shape: Vec<usize>,
    codes: Box<dyn Dequantize>,
}

/// The quantized weights of a checkpoint.
pub struct Quantization {
    /// The weights, by their names.
    weights: BTreeMap<String, Weight>,
    /// Tensors beside the codes that mean nothing without them.
    beside: BTreeSet<String>,
}

/// The number of weights that are stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SchemeCount {
    /// The way, in words.
    pub scheme: String,
    /// Weights.
    pub n_weights: usize,
    /// Their elements.
    pub n_elements: u64,
}

impl Quantization {
    /// The weights that are stored as codes, by name.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &Weight)> {
        self.weights
            .iter()
            .map(|(name, weight)| (name.as_str(), weight))
    }

    /// The number of weights that are stored in each way, by its name.
    #[must_use]
    pub fn schemes(&self) -> Vec<SchemeCount> {
        let mut counts: Vec<SchemeCount> = Vec::new();
        for weight in self.weights.values() {
            let n_elements = weight.shape.iter().product::<usize>() as u64;
            match counts
                .iter_mut()
                .find(|count| count.scheme == weight.scheme)
            {
                Some(count) => {
                    count.n_weights += 1;
                    count.n_elements += n_elements;
                }
                None => counts.push(SchemeCount {
                    scheme: weight.scheme.clone(),
                    n_weights: 1,
                    n_elements,
                }),
            }
        }
        counts.sort_by(|a, b| a.scheme.cmp(&b.scheme));
        counts
    }

    /// Elements of the model once it is dequantized: codes count as the elements that they stand for, and
    /// tensors beside them do not count.
    #[must_use]
    pub fn n_parameters(&self, checkpoint: &Checkpoint) -> u64 {
        let of_weights: u64 = (self.weights.values())
            .map(|weight| weight.shape.iter().product::<usize>() as u64)
            .sum();
        let parts = self.parts();
        let others = checkpoint
            .tensors()
            .filter(|(key, _)| !parts.contains(*key));
        of_weights
            + others
                .map(|(_, info)| info.n_elements() as u64)
                .sum::<u64>()
    }

    /// The tensors of the file that are codes, or beside them.
    fn parts(&self) -> BTreeSet<&str> {
        let codes = self.weights.values().flat_map(|weight| weight.codes.keys());
        codes
            .chain(self.beside.iter().map(String::as_str))
            .collect()
    }
}

/// The checkpoint with its quantized weights as the numbers that they stand for; the same one if it has none.
///
/// # Errors
/// [`crate::QuantizationFault`] for weights that are quantized in a way that is not read, and for codes
/// whose scales are missing or do not fit.
pub fn dequantized(checkpoint: Arc<Checkpoint>) -> Result<Arc<Checkpoint>> {
    match recognize(&checkpoint)? {
        None => Ok(checkpoint),
        Some(found) => Ok(Arc::new(Checkpoint::new(Box::new(view::View::new(
            checkpoint, found,
        ))))),
    }
}

/// Opens a checkpoint as [`io::open`] does, and reads its quantized weights as the numbers that they stand for.
///
/// # Errors
/// As [`io::open`], [`check_readable`] and [`dequantized`].
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<Checkpoint>> {
    let checkpoint = io::open(path, options)?;
    check_readable(&checkpoint)?;
    dequantized(Arc::new(checkpoint))
}

/// Checks that every tensor of a checkpoint is read as numbers, before any work is done with them: of a GGUF file some
/// types are known by name alone.
///
/// # Errors
/// [`crate::GgufFault::Unreadable`] with the first tensor of such a type.
pub fn check_readable(checkpoint: &Checkpoint) -> Result<()> {
    for (key, _) in checkpoint.tensors() {
        if let Some(scheme) = checkpoint.stored_as(key).and_then(io::gguf::name_only) {
            return Err(crate::GgufFault::Unreadable {
                path: checkpoint.path().into(),
                key: key.to_owned(),
                scheme,
            }
            .into());
        }
    }
    Ok(())
}

/// Whether a configuration says that weights are quantized.
pub(crate) fn is_said(config: &Value) -> bool {
    config::said_by(config).is_some()
}

/// The shape and the dtype of a dequantized weight: computed in f32.
fn info(shape: &[usize]) -> TensorInfo {
    TensorInfo {
        dtype: DType::F32,
        shape: shape.to_vec(),
    }
}

/// Checks that the numbers of a checkpoint may be written in another dtype: codes may not.
///
/// # Errors
/// [`QuantizationFault::Cast`] with the first quantized weight; and as [`recognize`].
pub fn check_castable(checkpoint: &Checkpoint) -> Result<()> {
    refuse_codes(checkpoint, |path, scheme, key| QuantizationFault::Cast {
        path,
        scheme,
        key,
    })
}

/// Checks that other experts may be made of those of a checkpoint: of codes they may not.
///
/// # Errors
/// [`QuantizationFault::Experts`] with the first quantized weight; and as [`recognize`].
pub fn check_experts(checkpoint: &Checkpoint) -> Result<()> {
    refuse_codes(checkpoint, |path, scheme, key| QuantizationFault::Experts {
        path,
        scheme,
        key,
    })
}

/// The fault of the first quantized weight.
fn refuse_codes(
    checkpoint: &Checkpoint,
    fault: impl FnOnce(PathBuf, String, String) -> QuantizationFault,
) -> Result<()> {
    let found = recognize(checkpoint)?;
    match found.iter().flat_map(Quantization::weights).next() {
        None => Ok(()),
        Some((name, weight)) => {
            let (path, scheme) = (checkpoint.path().into(), weight.scheme.clone());
            Err(fault(path, scheme, name.to_owned()).into())
        }
    }
}
