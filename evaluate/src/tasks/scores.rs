//! Similarities of features, computed block by block.

use std::sync::{Mutex, PoisonError};

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

use crate::Result;
use crate::metrics::retrieval::ScoreMatrix;

/// Images of a tile.
const ROWS: usize = 64;

/// Texts of a tile.
const COLUMNS: usize = 1024;

/// Scalar products of images and texts, tile by tile, so that memory does not grow with the
/// number of scores.
///
/// All tiles have one size (the last are filled up with zeros), so a score has the same bits
/// whichever way it is asked for: a tie stays a tie.
pub struct Similarities {
    images: Vec<f32>,
    texts: Vec<f32>,
    n_images: usize,
    n_texts: usize,
    width: usize,
    /// The tile that was asked for last.
    last: Mutex<Option<(usize, usize, Vec<f32>)>>,
}

impl Similarities {
    /// Of features with `width` numbers each, one after the other.
    #[must_use]
    pub fn new(mut images: Vec<f32>, mut texts: Vec<f32>, width: usize) -> Self {
        let (n_images, n_texts) = (images.len() / width, texts.len() / width);
        images.resize(n_images.next_multiple_of(ROWS) * width, 0.0);
        texts.resize(n_texts.next_multiple_of(COLUMNS) * width, 0.0);
        Self {
            images,
            texts,
            n_images,
            n_texts,
            width,
            last: Mutex::default(),
        }
    }

    /// Scores of rows `ROWS · row ..` with columns `COLUMNS · column ..`.
    fn tile(&self, row: usize, column: usize, out: &mut [f32]) {
        let images = &self.images[row * ROWS * self.width..][..ROWS * self.width];
        let texts = &self.texts[column * COLUMNS * self.width..][..COLUMNS * self.width];
        matmul(
            MatMut::from_row_major_slice_mut(out, ROWS, COLUMNS),
            Accum::Replace,
            MatRef::from_row_major_slice(images, ROWS, self.width),
            MatRef::from_row_major_slice(texts, COLUMNS, self.width).transpose(),
            1.0f32,
            Par::Seq,
        );
    }
}

impl ScoreMatrix for Similarities {
    type Score = f32;

    fn shape(&self) -> (usize, usize) {
        (self.n_images, self.n_texts)
    }

    fn rows_at_once(&self) -> usize {
        ROWS
    }

    fn read(&self, row: usize, column: usize, out: &mut [f32]) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while done < out.len() {
            let place = (row / ROWS, (column + done) / COLUMNS);
            let is_there = matches!(&*last, Some((r, c, _)) if (*r, *c) == place);
            if !is_there {
                let mut scores = vec![0.0; ROWS * COLUMNS];
                self.tile(place.0, place.1, &mut scores);
                *last = Some((place.0, place.1, scores));
            }
            let first = (column + done) % COLUMNS;
            let n = (COLUMNS - first).min(out.len() - done);
            if let Some((_, _, scores)) = &*last {
                let from = row % ROWS * COLUMNS + first;
                out[done..done + n].copy_from_slice(&scores[from..from + n]);
            }
            done += n;
        }
        Ok(())
    }

    fn read_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let mut scores = vec![0.0; ROWS * COLUMNS];
        for column in 0..self.n_texts.div_ceil(COLUMNS) {
            self.tile(first / ROWS, column, &mut scores);
            let from = column * COLUMNS;
            let n = COLUMNS.min(self.n_texts - from);
            let rows = out
                .chunks_exact_mut(self.n_texts)
                .zip(scores.chunks_exact(COLUMNS));
            for (out, scores) in rows {
                out[from..from + n].copy_from_slice(&scores[..n]);
            }
        }
        Ok(())
    }
}
