//! The likeness of the experts of two checkpoints, by their weights.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView2, Axis};

use super::{ExpertTensor, Mixture};
use crate::random::Draws;
use crate::{Checkpoint, Result, decode_f32};

/// The experts of a checkpoint at one place.
#[derive(Clone, Copy)]
pub(super) struct Experts<'a> {
    pub source: &'a Checkpoint,
    pub mixture: &'a Mixture,
}

/// The elements that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elements {
    /// All.
    All,
    /// Of each tensor a few runs, with the mean over the experts taken away: what tells experts apart.
    SampleOfDifferences,
}

/// Elements of all experts of a side that are held at a time.
const BLOCK_ELEMENTS: usize = 1 << 20;
/// Elements of a run of a sample, and runs of a tensor.
const RUN_ELEMENTS: usize = 1024;
const N_RUNS: usize = 4;

/// Cosines between the experts of two checkpoints, `(experts of one, experts of the other)`, and how many elements
/// of an expert they are of. The cosine of each tensor by itself, so that no scale matters, on average over the
/// tensors by their sizes; a tensor of zeros has cosine 0 with any.
pub(super) fn cosines(
    one: Experts<'_>,
    other: Experts<'_>,
    elements: Elements,
) -> Result<(Array2<f64>, usize)> {
    let n = one.mixture.n_experts;
    let mut sum = Array2::zeros((n, n));
    let mut n_elements = 0;
    let theirs = other.mixture.tensors.iter().map(|of| (of.part(), of));
    let theirs: BTreeMap<&str, &ExpertTensor> = theirs.collect();
    for tensor in &one.mixture.tensors {
        let Some(&of_other) = theirs.get(tensor.part()) else {
            continue;
        };
        if of_other.info.shape != tensor.info.shape || !tensor.info.dtype.is_float() {
            continue;
        }
        let mut products = Products::new(n);
        for (first, length) in runs(tensor, n, elements) {
            let mut blocks = [
                one.block(tensor, first, length)?,
                other.block(of_other, first, length)?,
            ];
            if elements == Elements::SampleOfDifferences {
                blocks.iter_mut().for_each(take_away_mean);
            }
            let [own, theirs] = &blocks;
            products.add(own.view(), theirs.view());
            n_elements += length;
            let weight = length as f64;
            products.n_elements += weight;
        }
        sum.scaled_add(products.n_elements, &products.cosines());
    }
    Ok((sum / (n_elements.max(1) as f64), n_elements))
}

/// Cosines of the rows of two routers, one an expert, and the length of a row; `None` where the two have no weight of
/// one shape.
pub(super) fn router_cosines(
    (one, mixture): (&Checkpoint, &Mixture),
    (other, theirs): (&Checkpoint, &Mixture),
    elements: Elements,
) -> Result<Option<(Array2<f64>, usize)>> {
    let n = mixture.n_experts;
    let is_weight = |key: &str| {
        let info = one.get(key).filter(|info| info.dtype.is_float());
        info.is_some_and(|info| info.shape.len() == 2 && info.shape[0] == n)
    };
    let mut rows = mixture.router.iter().zip(&theirs.router);
    let Some((own, of_other)) = rows.find(|(tensor, _)| is_weight(&tensor.key)) else {
        return Ok(None);
    };
    let width = one.require(&own.key)?.shape[1];
    if other.require(&of_other.key)?.shape != [n, width] {
        return Ok(None);
    }
    let rows = |source: &Checkpoint, key: &str| -> Result<Array2<f32>> {
        let mut rows = Array2::zeros((n, width));
        read(source, key, 0, rows.as_slice_mut().unwrap_or_default())?;
        if elements == Elements::SampleOfDifferences {
            take_away_mean(&mut rows);
        }
        Ok(rows)
    };
    let cosines = cosines_of(&rows(one, &own.key)?, &rows(other, &of_other.key)?);
    Ok(Some((cosines, width)))
}

/// The parts of a tensor that are compared.
fn runs(tensor: &ExpertTensor, n_experts: usize, elements: Elements) -> Vec<(usize, usize)> {
    let n = tensor.info.n_elements();
    let length = match elements {
        Elements::All => (BLOCK_ELEMENTS / n_experts.max(1)).max(1),
        Elements::SampleOfDifferences if n > N_RUNS * RUN_ELEMENTS => {
            let mut draws = Draws::new(0, tensor.part()).sequence();
            let part = n / N_RUNS;
            let start = |run: usize, draw: usize| run * part + draw;
            return (0..N_RUNS)
                .map(|run| {
                    (
                        start(run, draws.below(part - RUN_ELEMENTS + 1)),
                        RUN_ELEMENTS,
                    )
                })
                .collect();
        }
        Elements::SampleOfDifferences => n.max(1),
    };
    let starts = (0..n).step_by(length);
    starts.map(|first| (first, length.min(n - first))).collect()
}

impl Experts<'_> {
    /// Elements `first..first + length` of a tensor of each expert: `(experts, length)`.
    fn block(self, tensor: &ExpertTensor, first: usize, length: usize) -> Result<Array2<f32>> {
        let mut block = Array2::zeros((self.mixture.n_experts, length));
        for (expert, mut row) in block.rows_mut().into_iter().enumerate() {
            let (key, start) = tensor.place(expert);
            let values = row.as_slice_mut().unwrap_or_default();
            read(self.source, &key, start + first, values)?;
        }
        Ok(block)
    }
}

/// Elements of a tensor as `f32`.
pub(super) fn read(source: &Checkpoint, key: &str, first: usize, out: &mut [f32]) -> Result<()> {
    let dtype = source.require(key)?.dtype;
    let mut bytes = vec![0; dtype.bytes_of(out.len())];
    source.read(key, first, &mut bytes)?;
    decode_f32(key, dtype, &bytes, out)
}

fn take_away_mean(block: &mut Array2<f32>) {
    if let Some(mean) = block.mean_axis(Axis(0)) {
        *block -= &mean;
    }
}

/// Cosines of the rows of two matrices; zeros where rows have other lengths.
pub(super) fn cosines_of(own: &Array2<f32>, theirs: &Array2<f32>) -> Array2<f64> {
    let mut products = Products::new(own.nrows());
    if own.dim() == theirs.dim() {
        products.add(own.view(), theirs.view());
    }
    products.cosines()
}

/// Inner products of rows of two matrices.
pub(super) struct Products {
    cross: Array2<f64>,
    own: Vec<f64>,
    theirs: Vec<f64>,
    pub n_elements: f64,
}

impl Products {
    pub(super) fn new(n: usize) -> Self {
        Self {
            cross: Array2::zeros((n, n)),
            own: vec![0.0; n],
            theirs: vec![0.0; n],
            n_elements: 0.0,
        }
    }

    pub(super) fn add(&mut self, own: ArrayView2<'_, f32>, theirs: ArrayView2<'_, f32>) {
        self.cross += &own.dot(&theirs.t()).mapv(f64::from);
        let square = |row: ndarray::ArrayView1<'_, f32>| -> f64 {
            row.iter().map(|&value| f64::from(value).powi(2)).sum()
        };
        for (sums, block) in [(&mut self.own, own), (&mut self.theirs, theirs)] {
            for (sum, row) in sums.iter_mut().zip(block.rows()) {
                *sum += square(row);
            }
        }
    }

    pub(super) fn cosines(&self) -> Array2<f64> {
        Array2::from_shape_fn(self.cross.dim(), |(row, column)| {
            let norm = (self.own[row] * self.theirs[column]).sqrt();
            match norm > 0.0 && norm.is_finite() {
                true => self.cross[(row, column)] / norm,
                false => 0.0,
            }
        })
    }
}
