//! Batch norms of models that run: by the statistics that they keep, or by those of a batch, which are noted.

use std::cell::RefCell;
use std::collections::BTreeMap;

use candle_core::{DType, Result, Tensor};

use crate::Weights;
use crate::weights::Init;

/// The number added to the variance.
const EPSILON: f64 = 1e-5;

/// Sums of the statistics of batches, by the name of the norm.
///
/// Jordan et al. 2023, "REPAIR", <https://arxiv.org/abs/2211.08403>, section 4: what batch norms of a merged model keep is
/// estimated again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchStatistics(BTreeMap<String, Sums>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    n_batches: usize,
    means: Vec<f64>,
    variances: Vec<f64>,
}

impl BatchStatistics {
    /// Adds means and unbiased variances of the channels of a batch.
    fn add(&mut self, name: &str, means: &[f64], variances: &[f64]) {
        let sums = self.0.entry(name.to_owned()).or_default();
        sums.n_batches += 1;
        for (sum, values) in [(&mut sums.means, means), (&mut sums.variances, variances)] {
            sum.resize(values.len(), 0.0);
            sum.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        }
    }

    /// Each norm with the means over batches of its means and of its unbiased variances, every batch counted once: what
    /// torch keeps with `momentum=None`.
    pub fn means(&self) -> impl Iterator<Item = (&str, [Vec<f32>; 2])> {
        self.0.iter().map(|(name, sums)| {
            let n = sums.n_batches.max(1) as f64;
            let mean = |sums: &[f64]| sums.iter().map(|sum| (sum / n) as f32).collect();
            (name.as_str(), [mean(&sums.means), mean(&sums.variances)])
        })
    }
}

/// The statistics that a batch norm subtracts and divides by.
#[derive(Clone, Copy)]
pub enum Norming<'a> {
    /// Those that it keeps.
    Kept,
    /// Those of the batch, which are noted.
    Observed(&'a RefCell<BatchStatistics>),
}

/// A batch norm over the channels of `(b, c, h, w)`.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
}

impl BatchNorm {
    /// Loads `{name}.weight`, `bias`, `running_mean` and `running_var`, `(c)` each.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn load(weights: &Weights, name: &str, channels: usize) -> crate::Result<Self> {
        let get = |part: &str, init| weights.get(&format!("{name}.{part}"), &[channels], init);
        Ok(Self {
            name: name.to_owned(),
            weight: get("weight", Init::Ones)?,
            bias: get("bias", Init::Zeros)?,
            mean: get("running_mean", Init::Zeros)?,
            variance: get("running_var", Init::Ones)?,
        })
    }

    /// `(b, c, h, w) -> (b, c, h, w)`.
    ///
    /// # Errors
    /// When a channel of a batch to be observed has a single number, or the device fails.
    pub fn forward(&self, x: &Tensor, norming: Norming<'_>) -> Result<Tensor> {
        match norming {
            Norming::Kept => self.by(x, &self.mean, &self.variance),
            Norming::Observed(statistics) => {
                let (b, c, h, w) = x.dims4()?;
                let n = b * h * w;
                if n < 2 {
                    candle_core::bail!(
                        "`{}` sees one number of each channel, which has no variance: give larger batches",
                        self.name
                    );
                }
                let rows = x.transpose(0, 1)?.contiguous()?.reshape((c, n))?;
                let rows = rows.to_dtype(DType::F64)?;
                let mean = rows.mean_keepdim(1)?;
                let variance = rows.broadcast_sub(&mean)?.sqr()?.mean(1)?;
                let mean = mean.squeeze(1)?;
                let unbiased = (&variance * (n as f64 / (n - 1) as f64))?;
                statistics.borrow_mut().add(
                    &self.name,
                    &mean.to_vec1::<f64>()?,
                    &unbiased.to_vec1::<f64>()?,
                );
                let own = |of: Tensor| of.to_dtype(x.dtype());
                self.by(x, &own(mean)?, &own(variance)?)
            }
        }
    }

    /// `(x - mean) / sqrt(variance + epsilon) · weight + bias`.
    fn by(&self, x: &Tensor, mean: &Tensor, variance: &Tensor) -> Result<Tensor> {
        let scale = (&self.weight / (variance + EPSILON)?.sqrt()?)?;
        let shift = (&self.bias - (mean * &scale)?)?;
        let channels = |of: Tensor| of.reshape((1, (), 1, 1));
        x.broadcast_mul(&channels(scale)?)?
            .broadcast_add(&channels(shift)?)
    }
}
