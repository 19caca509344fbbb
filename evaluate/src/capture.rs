//! Filling gram matrices, or samples of rows, from the inputs of linear layers as they pass by. Their names are
//! the layout's to say ([`GramNames`]); a layer that passes by under another name is an error.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Result, Tensor};
use merge::activations::RowSample;
use merge::gram::Gram;
use merge::layouts::GramNames;

use crate::nn::{Mask, Tap};

/// Sums, and room for the products that are added to them.
#[derive(Debug, Default)]
struct Sums {
    grams: BTreeMap<String, Gram>,
    products: Vec<f32>,
}

/// A sample of at most `n_rows` rows per layer.
#[derive(Debug, Default)]
struct Sampling {
    n_rows: usize,
    samples: Mutex<BTreeMap<String, RowSample>>,
}

/// Sums `XᵀX` per layer, or keeps a sample of the rows of `X`.
///
/// Jin et al. 2023, "Dataless Knowledge Fusion by Merging Weights of Language Models",
/// <https://arxiv.org/abs/2212.09849>, section 3.2.
#[derive(Debug, Default)]
pub struct Capture {
    names: GramNames,
    sums: Mutex<Sums>,
    counts_padding: bool,
    takes_shared: bool,
    /// The rows that are kept instead of sums.
    sampling: Option<Sampling>,
}

impl Capture {
    /// Of the layers that experts own: those are merged. Rows of padding are left out.
    #[must_use]
    pub fn new(names: GramNames) -> Self {
        Self {
            names,
            ..Self::default()
        }
    }

    /// Rows of padding are counted, as published code does.
    #[must_use]
    pub fn counting_padding(mut self, counts: bool) -> Self {
        self.counts_padding = counts;
        self
    }

    pub(crate) fn counts_padding(&self) -> bool {
        self.counts_padding
    }

    /// Of shared layers too.
    #[must_use]
    pub fn with_shared(mut self, takes_shared: bool) -> Self {
        self.takes_shared = takes_shared;
        self
    }

    /// Goes on from sums made before.
    #[must_use]
    pub fn resumed(mut self, grams: BTreeMap<String, Gram>) -> Self {
        self.sums = Mutex::new(Sums {
            grams,
            products: Vec::new(),
        });
        self
    }

    /// Keeps at most `n_rows` rows of each layer instead of sums, the same for every model that the same rows go through.
    /// Each row counts once.
    #[must_use]
    pub fn sampling(mut self, n_rows: usize) -> Self {
        self.sampling = Some(Sampling {
            n_rows,
            samples: Mutex::default(),
        });
        self
    }

    /// The samples, in the end; none of a capture that sums.
    #[must_use]
    pub fn into_samples(self) -> BTreeMap<String, RowSample> {
        let samples = self.sampling.map(|sampling| sampling.samples.into_inner());
        let samples = samples.map(|samples| samples.unwrap_or_else(PoisonError::into_inner));
        samples.unwrap_or_default()
    }

    /// A tap that counts every row `times` times: once for each text that shares the image.
    #[must_use]
    pub fn times(&self, times: u32) -> Counted<'_> {
        Counted {
            capture: self,
            times,
        }
    }

    /// The sums so far.
    #[must_use]
    pub fn grams(&self) -> BTreeMap<String, Gram> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.grams.clone()
    }

    /// The sums, in the end.
    #[must_use]
    pub fn into_grams(self) -> BTreeMap<String, Gram> {
        let sums = self.sums.into_inner();
        sums.unwrap_or_else(PoisonError::into_inner).grams
    }

    fn add(&self, key: &str, input: &Tensor, mask: Option<&Mask>, times: u32) -> Result<()> {
        match self.names.is_owned(key) {
            Some(is_owned) if is_owned || self.takes_shared => {}
            Some(_) => return Ok(()),
            None => candle_core::bail!(
                "a layer called `{key}` passes by, and the layout {} has no such gram matrix",
                self.names.layout()
            ),
        }
        let width = input.dim(candle_core::D::Minus1)?;
        let rows: Vec<f32> = input.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let kept = match mask {
            Some(mask) if !self.counts_padding => mask.kept()?,
            _ => Vec::new(),
        };
        let rows = match kept.iter().all(|&kept| kept) {
            true => rows,
            false => (rows.chunks_exact(width).zip(&kept))
                .filter(|(_, kept)| **kept)
                .flat_map(|(row, _)| row.iter().copied())
                .collect(),
        };
        if let Some(Sampling { n_rows, samples }) = &self.sampling {
            let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
            let sample = samples
                .entry(key.to_owned())
                .or_insert_with(|| RowSample::new(width, *n_rows));
            sample.add_rows(&rows);
            return Ok(());
        }
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let Sums { grams, products } = &mut *sums;
        let gram = grams
            .entry(key.to_owned())
            .or_insert_with(|| Gram::new(width));
        gram.add_rows(&rows, times, products);
        Ok(())
    }
}

/// A [`Capture`] that counts rows several times.
pub struct Counted<'a> {
    capture: &'a Capture,
    times: u32,
}

impl Tap for Counted<'_> {
    fn linear_input(&self, key: &str, input: &Tensor, mask: Option<&Mask>) -> Result<()> {
        self.capture.add(key, input, mask, self.times)
    }
}
