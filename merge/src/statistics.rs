//! Statistics and hashes of tensors: streaming, on all cores, in bounded memory.

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::provenance::hexadecimal;
use crate::spans::{self, RUN_ELEMENTS, Run};
use crate::{Error, Progress, Result, TensorSource};

/// Bytes read at once while hashing.
const HASH_BYTES: usize = 256 * 1024;

/// Statistics of a tensor's elements. Everything is computed in `f64`; minimum, maximum, mean and deviation are those
/// of the finite elements and `None` where there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Smallest finite element.
    pub min: Option<f64>,
    /// Largest finite element.
    pub max: Option<f64>,
    /// Mean of the finite elements.
    pub mean: Option<f64>,
    /// Standard deviation of the finite elements, divisor n.
    pub std: Option<f64>,
    /// Elements that are NaN or infinite.
    pub n_non_finite: u64,
    /// Elements that are exactly zero, of either sign.
    pub n_zero: u64,
}

/// Count, mean and summed squared deviation of a run: these add up without cancellation
/// (Chan, Golub and LeVeque 1983, equations 1.5).
#[derive(Clone, Copy, Default)]
struct Moments {
    n: f64,
    mean: f64,
    squared: f64,
    min: f64,
    max: f64,
    n_non_finite: u64,
    n_zero: u64,
}

impl Moments {
    fn of(values: &[f64]) -> Self {
        let (mut n, mut sum) = (0.0, 0.0);
        let (mut min, mut max) = (f64::INFINITY, f64::NEG_INFINITY);
        let mut n_zero = 0;
        for &value in values.iter().filter(|value| value.is_finite()) {
            n += 1.0;
            sum += value;
            min = min.min(value);
            max = max.max(value);
            n_zero += u64::from(value == 0.0);
        }
        let mean = if n > 0.0 { sum / n } else { 0.0 };
        let squared = values
            .iter()
            .filter(|value| value.is_finite())
            .map(|value| (value - mean) * (value - mean))
            .sum();
        Self {
            n,
            mean,
            squared,
            min,
            max,
            n_non_finite: values.len() as u64 - n as u64,
            n_zero,
        }
    }

    fn join(self, other: Self) -> Self {
        let n = self.n + other.n;
        let share = if n > 0.0 { other.n / n } else { 0.0 };
        let apart = other.mean - self.mean;
        Self {
            n,
            mean: self.mean + apart * share,
            squared: self.squared + other.squared + apart * apart * self.n * share,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            n_non_finite: self.n_non_finite + other.n_non_finite,
            n_zero: self.n_zero + other.n_zero,
        }
    }

    fn finish(self) -> Statistics {
        let finite = |value| (self.n > 0.0).then_some(value);
        Statistics {
            min: finite(self.min),
            max: finite(self.max),
            mean: finite(self.mean),
            std: finite((self.squared / self.n).sqrt()),
            n_non_finite: self.n_non_finite,
            n_zero: self.n_zero,
        }
    }
}

/// Statistics of the tensors `indices` of a source, in that order. Booleans count as 0 and 1,
/// complex numbers as their absolute values.
/// The result does not depend on the number of threads.
///
/// # Errors
/// When the file cannot be read, and [`Error::Cancelled`].
pub fn statistics(
    source: &dyn TensorSource,
    indices: &[usize],
    progress: &dyn Progress,
) -> Result<Vec<Statistics>> {
    let entries: Vec<_> = indices
        .iter()
        .map(|&index| &source.tensors()[index])
        .collect();
    let sizes = entries.iter().map(|entry| entry.info.n_elements());
    let runs = spans::cut(sizes, RUN_ELEMENTS);
    progress.start(
        "statistics",
        entries.iter().map(|entry| entry.info.n_bytes()).sum(),
    );
    let moments = spans::map(&runs, progress, Run::default, |run, span| {
        let entry = entries[span.item];
        run.read(source, indices[span.item], span.first, span.len)?;
        let moments = Moments::of(run.decode(&entry.path.to_string(), entry.info.dtype)?);
        progress.advance(run.bytes.len() as u64);
        Ok(moments)
    });
    progress.finish();

    let mut joined = vec![None; indices.len()];
    for (span, part) in runs.iter().zip(moments?) {
        let slot: &mut Option<Moments> = &mut joined[span.item];
        *slot = Some(slot.map_or(part, |sum| sum.join(part)));
    }
    Ok(joined
        .into_iter()
        .map(|moments| moments.map_or_else(Statistics::default, Moments::finish))
        .collect())
}

/// SHA-256, in hexadecimal, of the row-major little-endian bytes of the tensors `indices` of a
/// source, in that order; one tensor per core at a time.
///
/// # Errors
/// When the file cannot be read, and [`Error::Cancelled`].
pub fn sha256(
    source: &dyn TensorSource,
    indices: &[usize],
    progress: &dyn Progress,
) -> Result<Vec<String>> {
    let info = |index: usize| &source.tensors()[index].info;
    progress.start(
        "hashes",
        indices.iter().map(|&index| info(index).n_bytes()).sum(),
    );
    let hashes = indices
        .par_iter()
        .with_max_len(1)
        .map_init(Vec::new, |buffer, &index| {
            let dtype = info(index).dtype;
            let n_elements = info(index).n_elements();
            let run_elements = HASH_BYTES / dtype.size_bytes();
            let mut hasher = Sha256::new();
            for first in (0..n_elements).step_by(run_elements) {
                if progress.is_cancelled() {
                    return Err(Error::Cancelled);
                }
                buffer.resize(dtype.bytes_of(run_elements.min(n_elements - first)), 0);
                source.read(index, first, buffer)?;
                hasher.update(&buffer);
                progress.advance(buffer.len() as u64);
            }
            Ok(hexadecimal(&hasher.finalize()))
        })
        .collect();
    progress.finish();
    hashes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_runs_have_the_moments_of_the_whole() {
        let values: Vec<f64> = (0..1000).map(|i| 1e6 + f64::from(i % 17)).collect();
        let whole = Moments::of(&values).finish();
        let joined = values
            .chunks(37)
            .map(Moments::of)
            .reduce(Moments::join)
            .expect("there are runs")
            .finish();
        let close = |a: Option<f64>, b: Option<f64>| {
            let (a, b) = (a.expect("finite"), b.expect("finite"));
            assert!((a - b).abs() <= 1e-9, "{a} {b}");
        };
        close(whole.mean, joined.mean);
        close(whole.std, joined.std);
        assert_eq!((whole.min, whole.max), (joined.min, joined.max));
    }
}
