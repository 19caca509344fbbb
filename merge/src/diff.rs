//! Differences between two checkpoints: keys, shapes, dtypes and values.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use crate::io::{self, OpenOptions};
use crate::spans::{self, RUN_ELEMENTS, Run, Span};
use crate::{Checkpoint, DType, Progress, Result, TensorInfo, quantized};

/// The parts to compare, and the tolerance.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Elements up to this far apart count as equal.
    pub tolerance: f64,
    /// Compare names, shapes and dtypes only; no tensor data are read.
    pub headers_only: bool,
}

/// A tensor that only one checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unmatched {
    /// Its name.
    pub key: String,
    /// Its shape and dtype.
    #[serde(flatten)]
    pub info: TensorInfo,
}

/// A tensor whose shape or dtype differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reshaped {
    /// Its name.
    pub key: String,
    /// Shape and dtype in the first checkpoint.
    pub left: TensorInfo,
    /// Shape and dtype in the second.
    pub right: TensorInfo,
}

/// The distance between a tensor's values. Only tensors with some difference are listed.
///
/// A NaN equals a NaN, an infinity equals itself, and `-0` equals `0`. An element that is NaN or
/// infinite on one side only, or infinite with opposite signs, differs whatever the tolerance; it
/// is counted in `n_non_finite` and left out of maximum and mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ValueDifference {
    /// Its name.
    pub key: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// Mean absolute difference over all elements but those of `n_non_finite`.
    pub mean_abs: f64,
    /// Index of the largest difference, one number per axis; the first in row-major order.
    pub max_at: Vec<usize>,
    /// The elements of the two checkpoints there.
    pub max_values: [f64; 2],
    /// Elements that are not equal.
    pub n_different: u64,
    /// Elements further apart than the tolerance, those of `n_non_finite` included.
    pub n_beyond_tolerance: u64,
    /// Elements that are NaN or infinite on one side only, or infinite with opposite signs.
    pub n_non_finite: u64,
    /// Elements compared.
    pub n_elements: u64,
}

/// All differences between two checkpoints, by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DiffReport {
    /// Tensors that only the first holds.
    pub only_left: Vec<Unmatched>,
    /// Tensors that only the second holds.
    pub only_right: Vec<Unmatched>,
    /// Tensors whose shape or dtype differs. Values are compared where only the dtype does.
    pub reshaped: Vec<Reshaped>,
    /// Tensors whose values differ, however little.
    pub values: Vec<ValueDifference>,
    /// Tensors of both whose values were compared.
    pub n_compared: usize,
}

impl DiffReport {
    /// Whether nothing differs by more than the tolerance.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.only_left.is_empty()
            && self.only_right.is_empty()
            && self.reshaped.is_empty()
            && self
                .values
                .iter()
                .all(|value| value.n_beyond_tolerance == 0)
    }

    /// The report with the compared files, as `vlmerge diff --json` prints it.
    #[must_use]
    pub fn to_json(&self, left: &Path, right: &Path, tolerance: f64) -> Value {
        json!({
            "left": left.display().to_string(),
            "right": right.display().to_string(),
            "tolerance": tolerance,
            "equal": self.is_equal(),
            "report": self,
        })
    }
}

/// The differences within one run of elements.
#[derive(Clone, Copy, Default)]
struct RunDifference {
    max_abs: f64,
    max_at: usize,
    max_values: [f64; 2],
    sum_abs: f64,
    n_different: u64,
    n_beyond_tolerance: u64,
    n_non_finite: u64,
}

impl RunDifference {
    fn add(&mut self, at: usize, values: [f64; 2], apart: f64, tolerance: f64) {
        if apart == 0.0 {
            return;
        }
        self.n_different += 1;
        if !apart.is_finite() {
            self.n_non_finite += 1;
            self.n_beyond_tolerance += 1;
            return;
        }
        self.n_beyond_tolerance += u64::from(apart > tolerance);
        self.sum_abs += apart;
        if apart > self.max_abs {
            (self.max_abs, self.max_at, self.max_values) = (apart, at, values);
        }
    }

    fn join(self, later: Self) -> Self {
        let largest = if later.max_abs > self.max_abs {
            later
        } else {
            self
        };
        Self {
            sum_abs: self.sum_abs + later.sum_abs,
            n_different: self.n_different + later.n_different,
            n_beyond_tolerance: self.n_beyond_tolerance + later.n_beyond_tolerance,
            n_non_finite: self.n_non_finite + later.n_non_finite,
            ..largest
        }
    }
}

/// Opens a checkpoint to compare it.
///
/// * `path`: a file, a folder, or an address.
/// * `options`: the dictionary that holds the weights; with `raw`, quantized weights stay the codes that the file stores.
///   Otherwise they are the numbers that the codes stand for.
/// * `headers_only`: whether only names, shapes and dtypes are compared. If not, each tensor must be readable as numbers.
///
/// # Errors
/// As [`io::open`] and [`quantized::dequantized`]; without `headers_only` also as [`quantized::check_readable`].
///
/// # Example
/// ```no_run
/// use merge::diff::{DiffOptions, diff, opened};
/// use merge::io::OpenOptions;
/// let open = |path: &str| opened(path.as_ref(), &OpenOptions::default(), false);
/// let (left, right) = (open("a.safetensors")?, open("b.ckpt")?);
/// let report = diff(&left, &right, &DiffOptions::default(), &merge::progress::Silent)?;
/// println!("{} tensors are different", report.values.len());
/// # Ok::<(), merge::Error>(())
/// ```
pub fn opened(path: &Path, options: &OpenOptions, headers_only: bool) -> Result<Arc<Checkpoint>> {
    let checkpoint = io::open(path, options)?;
    if !headers_only {
        quantized::check_readable(&checkpoint)?;
    }
    let checkpoint = Arc::new(checkpoint);
    match options.raw {
        true => Ok(checkpoint),
        false => quantized::dequantized(checkpoint),
    }
}

/// Compares the chosen roots of two checkpoints. The result does not depend on the number of
/// threads.
///
/// # Errors
/// When a file cannot be read, a name is not unique, and [`crate::Error::Cancelled`].
pub fn diff(
    left: &Checkpoint,
    right: &Checkpoint,
    options: &DiffOptions,
    progress: &dyn Progress,
) -> Result<DiffReport> {
    left.require_unique_names()?;
    right.require_unique_names()?;
    let mut report = DiffReport {
        only_left: unmatched(left, right),
        only_right: unmatched(right, left),
        ..DiffReport::default()
    };
    let mut same_shape = Vec::new();
    // Another name of a tensor on one side may be a tensor of its own on the other.
    let of_both = |key: &str| left.aliases().contains_key(key) && right.get(key).is_some();
    let tied = (right.tensors()).filter(|(key, _)| of_both(key));
    let tied = tied.filter_map(|(key, _)| Some((key, left.get(key)?)));
    for (key, info) in left.tensors().chain(tied) {
        let Some(other) = right.get(key) else {
            continue;
        };
        if info != other {
            report.reshaped.push(Reshaped {
                key: key.to_owned(),
                left: info.clone(),
                right: other.clone(),
            });
        }
        if info.shape == other.shape {
            same_shape.push((key, info, other));
        }
    }
    if !options.headers_only {
        report.n_compared = same_shape.len();
        report.values = values(left, right, &same_shape, options.tolerance, progress)?;
    }
    Ok(report)
}

/// Names that the other side knows under no name, other names of tied tensors included.
fn unmatched(holder: &Checkpoint, other: &Checkpoint) -> Vec<Unmatched> {
    let aliases = holder.aliases().keys();
    let aliases = aliases.filter_map(|name| Some((name.as_str(), holder.get(name)?)));
    holder
        .tensors()
        .chain(aliases)
        .filter(|(key, _)| other.get(key).is_none())
        .map(|(key, info)| Unmatched {
            key: key.to_owned(),
            info: info.clone(),
        })
        .collect()
}

/// Compares tensors of equal shape: `(key, info on the left, info on the right)`.
fn values(
    left: &Checkpoint,
    right: &Checkpoint,
    tensors: &[(&str, &TensorInfo, &TensorInfo)],
    tolerance: f64,
    progress: &dyn Progress,
) -> Result<Vec<ValueDifference>> {
    let runs = spans::cut(
        tensors.iter().map(|(_, info, _)| info.n_elements()),
        RUN_ELEMENTS,
    );
    let bytes = |(_, a, b): &(&str, &TensorInfo, &TensorInfo)| a.n_bytes() + b.n_bytes();
    progress.start("values", tensors.iter().map(bytes).sum());
    let parts = spans::map(
        &runs,
        progress,
        <(Run, Run)>::default,
        |(a, b), span: Span| {
            let (key, left_info, right_info) = tensors[span.item];
            a.read_named(left, key, left_info.dtype, span)?;
            b.read_named(right, key, right_info.dtype, span)?;
            progress.advance((a.bytes.len() + b.bytes.len()) as u64);
            compare(
                key,
                span.first,
                (a, left_info.dtype),
                (b, right_info.dtype),
                tolerance,
            )
        },
    );
    progress.finish();

    let mut joined = vec![RunDifference::default(); tensors.len()];
    for (span, part) in runs.iter().zip(parts?) {
        joined[span.item] = joined[span.item].join(part);
    }
    let describe = |(&(key, info, _), sum): (&(&str, &TensorInfo, &TensorInfo), RunDifference)| {
        let n_elements = info.n_elements() as u64;
        let n_finite = (n_elements - sum.n_non_finite).max(1);
        ValueDifference {
            key: key.to_owned(),
            max_abs: sum.max_abs,
            mean_abs: sum.sum_abs / n_finite as f64,
            max_at: info.index_of(sum.max_at),
            max_values: sum.max_values,
            n_different: sum.n_different,
            n_beyond_tolerance: sum.n_beyond_tolerance,
            n_non_finite: sum.n_non_finite,
            n_elements,
        }
    };
    Ok(tensors
        .iter()
        .zip(joined)
        .filter(|(_, sum)| sum.n_different > 0)
        .map(describe)
        .collect())
}

/// Compares two runs that start at element `first` of their tensors.
fn compare(
    key: &str,
    first: usize,
    (left, left_dtype): (&mut Run, DType),
    (right, right_dtype): (&mut Run, DType),
    tolerance: f64,
) -> Result<RunDifference> {
    let mut difference = RunDifference::default();
    if left_dtype == right_dtype && left.bytes == right.bytes {
        return Ok(difference);
    }
    // Integers of 64 bits have neighbours that are the same number in f64.
    let exact = match (left_dtype, right_dtype) {
        (DType::I64, DType::I64) => Some(integers(left, right, |b| i64::from_le_bytes(b).into())),
        (DType::U64, DType::U64) => Some(integers(left, right, |b| u64::from_le_bytes(b).into())),
        // Numbers of one absolute value may lie far apart.
        (DType::C64, DType::C64) => Some(complex_numbers(left, right)),
        _ => None,
    };
    let left = left.decode(key, left_dtype)?;
    let right = right.decode(key, right_dtype)?;
    for (i, (&mut a, &mut b)) in left.iter_mut().zip(right).enumerate() {
        let apart = match &exact {
            Some(exact) => exact[i],
            None if a == b || (a.is_nan() && b.is_nan()) => 0.0,
            None => (a - b).abs(),
        };
        difference.add(first + i, [a, b], apart, tolerance);
    }
    Ok(difference)
}

/// Absolute differences of 64-bit integers.
fn integers(left: &Run, right: &Run, decode: impl Fn([u8; 8]) -> i128) -> Vec<f64> {
    let (a, _) = left.bytes.as_chunks::<8>();
    let (b, _) = right.bytes.as_chunks::<8>();
    a.iter()
        .zip(b)
        .map(|(&a, &b)| decode(a).abs_diff(decode(b)) as f64)
        .collect()
}

/// The distances between complex numbers.
fn complex_numbers(left: &Run, right: &Run) -> Vec<f64> {
    let (a, _) = left.bytes.as_chunks::<8>();
    let (b, _) = right.bytes.as_chunks::<8>();
    let apart = |a: f64, b: f64| match a == b || a.is_nan() && b.is_nan() {
        true => 0.0,
        false => a - b,
    };
    a.iter()
        .zip(b)
        .map(|(&a, &b)| {
            let ([a, c], [b, d]) = (spans::complex(a), spans::complex(b));
            spans::modulus([apart(a, b), apart(c, d)])
        })
        .collect()
}
