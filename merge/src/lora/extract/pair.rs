//! The two models whose difference is taken.

use ndarray::Array2;
use rayon::prelude::*;

use super::zeros;
use crate::plan::PIECE_ELEMENTS;
use crate::recipe::Place;
use crate::{Checkpoint, Error, MergeFault, Result, TensorInfo, decode_f64};

/// The two models.
pub(super) struct Pair<'a> {
    pub(super) base: &'a Checkpoint,
    pub(super) tuned: &'a Checkpoint,
}

/// Sums of squares over a tensor.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Squares {
    pub(super) difference: f64,
    pub(super) base: f64,
}

impl Squares {
    /// Length of the difference beside that of the base; infinite beside a base of zeros.
    pub(super) fn relative_change(&self) -> f64 {
        (self.difference / self.base).sqrt()
    }

    fn sum(parts: Vec<Self>) -> Self {
        parts.into_iter().fold(Self::default(), |sum, part| Self {
            difference: sum.difference + part.difference,
            base: sum.base + part.base,
        })
    }
}

impl Pair<'_> {
    /// The chosen tensors, which both models must have in the same shape.
    pub(super) fn names(
        &self,
        is_asked: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(String, TensorInfo)>> {
        let mut faults = Vec::new();
        let mut names = Vec::new();
        for (name, info) in self.base.tensors().filter(|(name, _)| is_asked(name)) {
            match self.tuned.require(name) {
                Err(fault) => faults.push(fault),
                Ok(other) if other.shape != info.shape => {
                    faults.push(Error::from(MergeFault::Shapes {
                        key: name.to_owned(),
                        model: self.tuned.path().display().to_string(),
                        found: other.shape.clone(),
                        first: self.base.path().display().to_string(),
                        expected: info.shape.clone(),
                        place: Place::default(),
                    }))
                }
                Ok(_) => names.push((name.to_owned(), info.clone())),
            }
        }
        for (name, _) in self.tuned.tensors().filter(|(name, _)| is_asked(name)) {
            match self.base.require(name) {
                Err(fault) => faults.push(fault),
                // A tensor of its own that the base has as another name of one.
                Ok(info) if self.base.aliases().contains_key(name) => {
                    names.push((name.to_owned(), info.clone()));
                }
                Ok(_) => {}
            }
        }
        match faults.len() {
            0 => Ok(names),
            1 => Err(faults.remove(0)),
            _ => Err(Error::Several(faults)),
        }
    }

    /// The difference as a matrix, further axes as columns.
    pub(super) fn difference(
        &self,
        name: &str,
        info: &TensorInfo,
    ) -> Result<(Array2<f32>, Squares)> {
        let mut matrix = zeros(&info.shape);
        // Made row by row just now.
        let values = matrix.as_slice_mut().unwrap_or_default();
        let parts = (values.par_chunks_mut(PIECE_ELEMENTS).enumerate())
            .map(|(chunk, out)| self.subtract(name, chunk * PIECE_ELEMENTS, out))
            .collect::<Result<Vec<Squares>>>()?;
        Ok((matrix, Squares::sum(parts)))
    }

    /// The sums of squares alone.
    pub(super) fn squares(&self, name: &str, info: &TensorInfo) -> Result<Squares> {
        let n_elements = info.n_elements();
        let starts: Vec<usize> = (0..n_elements).step_by(PIECE_ELEMENTS).collect();
        let parts = (starts.into_par_iter())
            .map(|first| {
                let mut out = vec![0.0; PIECE_ELEMENTS.min(n_elements - first)];
                self.subtract(name, first, &mut out)
            })
            .collect::<Result<Vec<Squares>>>()?;
        Ok(Squares::sum(parts))
    }

    /// Elements `first..` of the difference, rounded once.
    fn subtract(&self, name: &str, first: usize, out: &mut [f32]) -> Result<Squares> {
        let base = values(self.base, name, first, out.len())?;
        let tuned = values(self.tuned, name, first, out.len())?;
        let mut squares = Squares::default();
        for ((out, base), tuned) in out.iter_mut().zip(&base).zip(&tuned) {
            *out = (tuned - base) as f32;
            squares.difference += f64::from(*out).powi(2);
            squares.base += base * base;
        }
        if squares.difference.is_finite() && squares.base.is_finite() {
            return Ok(squares);
        }
        let culprit = [(self.base, &base), (self.tuned, &tuned)].map(|(source, values)| {
            let found = values.iter().position(|value| !value.is_finite());
            found.map(|element| (source, element))
        });
        // Finite values whose difference is beyond f32 are the tuned model's.
        let (source, element) = culprit
            .into_iter()
            .flatten()
            .next()
            .unwrap_or((self.tuned, 0));
        Err(Error::NonFiniteInput {
            path: source.path().into(),
            key: name.to_owned(),
            element: first + element,
        })
    }
}

fn values(source: &Checkpoint, name: &str, first: usize, n: usize) -> Result<Vec<f64>> {
    let dtype = source.require(name)?.dtype;
    let mut bytes = vec![0; n * dtype.size_bytes()];
    source.read(name, first, &mut bytes)?;
    let mut values = vec![0.0; n];
    decode_f64(name, dtype, &bytes, &mut values)?;
    Ok(values)
}
