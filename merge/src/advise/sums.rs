//! Sums over the elements of task vectors, taken in one pass.

use crate::spans::{self, RUN_ELEMENTS, Run, Span};
use crate::{Checkpoint, Error, Progress, Result, TensorInfo};

/// Sums over the elements of the same tensors of a base and its models.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    /// Elements.
    pub n: u64,
    /// Squares of the base.
    pub base: f64,
    /// Products of the task vectors of each pair of models, a model with itself among them.
    pub products: Vec<f64>,
    /// Elements that both models of a pair change.
    pub both: Vec<u64>,
    /// Those of them that they change in opposite directions.
    pub opposite: Vec<u64>,
    /// Elements that some model changes.
    pub any: u64,
    /// Elements that several models change.
    pub several: u64,
    /// Magnitudes of all task vectors.
    pub magnitudes: f64,
    /// Magnitudes of their sum.
    pub of_sum: f64,
}

/// The place of a pair in a triangle of `i ≤ j`.
pub(super) fn place(i: usize, j: usize) -> usize {
    j * (j + 1) / 2 + i
}

impl Sums {
    fn new(n_models: usize) -> Self {
        let n_pairs = n_models * (n_models + 1) / 2;
        Self {
            products: vec![0.0; n_pairs],
            both: vec![0; n_pairs],
            opposite: vec![0; n_pairs],
            ..Self::default()
        }
    }

    /// Of one run: the base, and task vectors of the models.
    fn of(base: &[f64], deltas: &[Vec<f64>]) -> Self {
        let mut sums = Self::new(deltas.len());
        sums.n = base.len() as u64;
        sums.base = base.iter().map(|value| value * value).sum();
        for (j, second) in deltas.iter().enumerate() {
            for (i, first) in deltas[..=j].iter().enumerate() {
                let (mut product, mut both, mut opposite) = (0.0, 0, 0);
                for (a, b) in first.iter().zip(second) {
                    product += a * b;
                    let is_both = *a != 0.0 && *b != 0.0;
                    both += u64::from(is_both);
                    opposite += u64::from(is_both && (*a > 0.0) != (*b > 0.0));
                }
                let at = place(i, j);
                (sums.products[at], sums.both[at], sums.opposite[at]) = (product, both, opposite);
            }
        }
        for element in 0..base.len() {
            let (mut n_changed, mut sum) = (0, 0.0);
            for delta in deltas {
                let value = delta[element];
                n_changed += u64::from(value != 0.0);
                sums.magnitudes += value.abs();
                sum += value;
            }
            sums.of_sum += sum.abs();
            sums.any += u64::from(n_changed > 0);
            sums.several += u64::from(n_changed > 1);
        }
        sums
    }

    /// Adds those of other elements.
    pub(super) fn add(&mut self, other: &Self) {
        if self.products.is_empty() {
            *self = other.clone();
            return;
        }
        self.n += other.n;
        self.base += other.base;
        for (sum, value) in self.products.iter_mut().zip(&other.products) {
            *sum += value;
        }
        for (sum, value) in self.both.iter_mut().zip(&other.both) {
            *sum += value;
        }
        for (sum, value) in self.opposite.iter_mut().zip(&other.opposite) {
            *sum += value;
        }
        self.any += other.any;
        self.several += other.several;
        self.magnitudes += other.magnitudes;
        self.of_sum += other.of_sum;
    }
}

/// Room for a run of each model.
#[derive(Default)]
struct Runs {
    base: Run,
    model: Run,
    deltas: Vec<Vec<f64>>,
}

/// Sums for each of the tensors, by their names and what the base says of them. All models have them in the same shape.
///
/// # Errors
/// [`Error::NonFiniteInput`], when a file cannot be read, and [`Error::Cancelled`].
pub(super) fn each(
    base: &Checkpoint,
    models: &[&Checkpoint],
    tensors: &[(&str, &TensorInfo)],
    progress: &dyn Progress,
) -> Result<Vec<Sums>> {
    let sizes = tensors.iter().map(|(_, info)| info.n_elements());
    let runs = spans::cut(sizes, RUN_ELEMENTS);
    let total: u64 = tensors.iter().map(|(_, info)| info.n_bytes()).sum();
    progress.start("task vectors", total * (1 + models.len() as u64));
    let parts = spans::map(&runs, progress, Runs::default, |room, span| {
        let (key, info) = tensors[span.item];
        room.deltas.resize_with(models.len(), Vec::new);
        let values = read(&mut room.base, base, key, span)?;
        for (model, delta) in models.iter().zip(&mut room.deltas) {
            let own = read(&mut room.model, model, key, span)?;
            delta.clear();
            delta.extend(own.iter().zip(values.iter()).map(|(own, base)| own - base));
        }
        progress.advance(info.dtype.bytes_of(span.len) as u64 * (1 + models.len() as u64));
        Ok(Sums::of(values, &room.deltas))
    });
    progress.finish();
    let mut sums = vec![Sums::new(models.len()); tensors.len()];
    for (span, part) in runs.iter().zip(parts?) {
        sums[span.item].add(&part);
    }
    Ok(sums)
}

fn read<'r>(run: &'r mut Run, of: &Checkpoint, key: &str, span: Span) -> Result<&'r [f64]> {
    let dtype = of.require(key)?.dtype;
    run.read_named(of, key, dtype, span)?;
    let values = run.decode(key, dtype)?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(at) => Err(Error::NonFiniteInput {
            path: of.path().into(),
            key: key.to_owned(),
            element: span.first + at,
        }),
    }
}
