//! One token of each sequence.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{Buffer, Buffers};
use crate::crossing;

/// The token that stands for each sequence: where nothing else of a block is read, the part after attention is computed
/// for it alone.
#[derive(Clone, Debug)]
pub(crate) struct Picked {
    /// Of each sequence, which of its tokens.
    places: Arc<[usize]>,
}

impl Picked {
    /// Token `places[i]` of sequence `i`.
    pub fn new(places: impl IntoIterator<Item = usize>) -> Self {
        Self {
            places: places.into_iter().collect(),
        }
    }

    /// The first token of each of `batch` sequences.
    pub fn first(batch: usize) -> Self {
        Self::new(std::iter::repeat_n(0, batch))
    }

    /// `(b, n, d) -> (b, 1, d)` of each tensor, all of the same shape.
    ///
    /// # Errors
    /// When there are other sequences or fewer tokens, or the device fails.
    pub fn of<const N: usize>(&self, tensors: [&Tensor; N]) -> Result<[Tensor; N]> {
        let mut picked = tensors.map(Tensor::clone);
        let Some(&first) = tensors.first() else {
            return Ok(picked);
        };
        let (b, n, _) = first.dims3()?;
        self.check(b, n)?;
        if self.places.iter().all(|&place| place == 0) {
            for x in &mut picked {
                *x = x.narrow(1, 0, 1)?.contiguous()?;
            }
            return Ok(picked);
        }
        let rows = self.places.iter().enumerate();
        let rows: Vec<u32> = rows.map(|(at, place)| (at * n + place) as u32).collect();
        let rows = crossing::to_device(rows, b, first.device())?;
        for x in &mut picked {
            *x = x.contiguous()?.flatten(0, 1)?.index_select(&rows, 0)?;
            *x = x.unsqueeze(1)?;
        }
        Ok(picked)
    }

    /// Whether every place is one of `n` tokens of one of `batch` sequences.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self, batch: usize, n: usize) -> Result<()> {
        if self.places.len() != batch || self.places.iter().any(|&place| place >= n) {
            let places = &self.places;
            candle_core::bail!("{batch} sequences of {n} tokens have no tokens {places:?}");
        }
        Ok(())
    }

    /// Elements of a sequence, of `n` in all; 1 where there is no sequence.
    fn sequence(&self, n: usize) -> usize {
        n.checked_div(self.places.len()).unwrap_or(1)
    }

    /// Rows of `x: (b, n, d)` as `(b, d)`.
    pub fn gather(&self, x: &[f32], width: usize, buffers: &Buffers) -> Buffer {
        let mut rows = buffers.take(self.places.len() * width);
        let sequences = x.chunks_exact(self.sequence(x.len()));
        for ((row, x), place) in rows
            .chunks_exact_mut(width)
            .zip(sequences)
            .zip(&*self.places)
        {
            row.copy_from_slice(&x[place * width..][..width]);
        }
        rows
    }

    /// `rows: (b, d)` in their places of `out: (b, n, d)`, zeros elsewhere.
    pub fn scatter(&self, rows: &[f32], out: &mut [f32], width: usize) {
        out.fill(0.0);
        let sequences = out.chunks_exact_mut(self.sequence(out.len()));
        for ((row, out), place) in rows.chunks_exact(width).zip(sequences).zip(&*self.places) {
            out[place * width..][..width].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn picked_rows_go_back_to_their_places() -> Result<()> {
        let values: Vec<f32> = (0..24).map(|at| at as f32).collect();
        let x = Tensor::from_vec(values.clone(), (2, 3, 4), &Device::Cpu)?;
        let buffers = Buffers::default();
        for (picked, expected) in [
            (Picked::new([2, 0]), [8.0, 12.0]),
            (Picked::first(2), [0.0, 12.0]),
        ] {
            let [rows] = picked.of([&x])?;
            assert_eq!(rows.dims(), [2, 1, 4]);
            let rows = rows.flatten_all()?.to_vec1::<f32>()?;
            assert_eq!([rows[0], rows[4]], expected);
            assert_eq!(*picked.gather(&values, 4, &buffers), rows);
            let mut back = vec![1.0; 24];
            picked.scatter(&rows, &mut back, 4);
            assert_eq!(back.iter().sum::<f32>(), rows.iter().sum::<f32>());
            assert_eq!(*picked.gather(&back, 4, &buffers), rows);
        }
        Ok(())
    }

    #[test]
    fn places_outside_of_sequences_are_errors() {
        let x = Tensor::zeros((2, 3, 4), candle_core::DType::F32, &Device::Cpu).expect("zeros");
        for places in [vec![0, 3], vec![0], vec![0, 0, 0]] {
            assert!(Picked::new(places).of([&x]).is_err());
        }
    }
}
