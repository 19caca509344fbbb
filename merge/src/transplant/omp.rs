//! Orthogonal matching pursuit.
//!
//! Step by step the shared row joins that has the largest inner product with the rest, and the factors of all
//! are those of least squares. The factors come from a Cholesky factor of the chosen rows' products, in f64, which grows
//! by a row each step. Inner products that choose are in f32: with the products of all shared rows at hand, a step adds
//! up as many numbers per shared row as rows are chosen, and not as many as a row is wide.
//!
//! Goddard and Fernandes Neto 2025, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
//! <https://arxiv.org/abs/2506.06607>; Rubinstein et al. 2008, "Efficient Implementation of the K-SVD Algorithm using
//! Batch Orthogonal Matching Pursuit".

use rayon::prelude::*;

use super::sparse::{Combination, Solver};
use super::table::Rows;
use crate::Result;
use crate::linear_algebra::single::{inner_product, inner_products};

/// A pursuit ends where this share of the row is left over: what f32 can tell.
const ENOUGH: f64 = 1e-6;

/// A row of which the chosen ones leave less than this share of its square says nothing new.
const DEPENDENT: f64 = 1e-10;

/// Rows whose products with all others one task computes.
const GRAM_ROWS: usize = 64;

/// Shared rows whose inner products are brought up to date together, so that they stay in the nearest cache.
const TILE: usize = 4096;

/// Finds combinations of at most `k` shared rows.
pub(super) struct Pursuit<'a> {
    points: &'a Rows,
    squares: Vec<f64>,
    /// The products of all shared rows with each other, row-major, if there is room for them.
    gram: Option<Vec<f32>>,
    k: usize,
}

/// Bytes of the products of a number of rows; `None` if they do not fit `most`.
pub(super) fn gram_bytes(n_points: usize, most: u64) -> Option<u64> {
    let n = n_points as u64;
    let n_bytes = n.checked_mul(n)?.checked_mul(4)?;
    (n_bytes <= most).then_some(n_bytes)
}

impl<'a> Pursuit<'a> {
    pub(super) fn new(points: &'a Rows, k: usize, most_bytes: u64) -> Self {
        let n = points.len();
        let squares = (0..n).into_par_iter().map(|row| {
            let row = points.row(row);
            inner_product(row, row)
        });
        Self {
            points,
            squares: squares.collect(),
            gram: gram_bytes(n, most_bytes).map(|_| gram(points)),
            k,
        }
    }
}

/// The products of all rows with each other.
fn gram(points: &Rows) -> Vec<f32> {
    let n = points.len();
    let mut products = vec![0.0; n * n];
    let blocks = products.par_chunks_mut((GRAM_ROWS * n).max(1));
    blocks.enumerate().for_each(|(block, out)| {
        let rows = &points.values[block * GRAM_ROWS * points.width..];
        let rows = &rows[..out.len() / n * points.width];
        inner_products(rows, &points.values, points.width, out);
    });
    products
}

/// A pursuit under way.
struct Chase<'a> {
    target: &'a [f32],
    /// The square of the target's length, and of the rest's.
    square: f64,
    left: f64,
    atoms: Vec<usize>,
    /// Rows of the lower Cholesky factor of the chosen rows' products.
    factor: Vec<Vec<f64>>,
    /// The target along the orthonormal directions of the chosen rows.
    along: Vec<f64>,
    blocked: Vec<bool>,
}

impl<'a> Chase<'a> {
    fn new(target: &'a [f32], excluded: &[bool]) -> Self {
        let square = inner_product(target, target);
        Self {
            target,
            square,
            left: square,
            atoms: Vec::new(),
            factor: Vec::new(),
            along: Vec::new(),
            blocked: excluded.to_vec(),
        }
    }

    fn is_done(&self, k: usize) -> bool {
        self.atoms.len() >= k || self.left <= ENOUGH * ENOUGH * self.square
    }

    /// Takes the next row. Returns whether there was one.
    fn choose(&mut self, products: &[f32], points: &Rows, squares: &[f64]) -> bool {
        loop {
            let mut best: Option<(usize, f32)> = None;
            for (index, (product, blocked)) in products.iter().zip(&self.blocked).enumerate() {
                let size = product.abs();
                if !blocked && best.is_none_or(|(_, most)| size > most) {
                    best = Some((index, size));
                }
            }
            let Some((atom, size)) = best else {
                return false;
            };
            if size == 0.0 {
                return false;
            }
            self.blocked[atom] = true;
            if self.add(atom, points, squares[atom]) {
                return true;
            }
        }
    }

    /// Adds a row, unless the chosen ones make it up.
    fn add(&mut self, atom: usize, points: &Rows, square: f64) -> bool {
        let own = points.row(atom);
        let mut row = Vec::with_capacity(self.atoms.len() + 1);
        for (chosen, known) in self.atoms.iter().zip(&self.factor) {
            let before: f64 = row.iter().zip(known).map(|(a, b)| a * b).sum();
            let product = inner_product(own, points.row(*chosen));
            row.push((product - before) / known[row.len()]);
        }
        let rest = square - row.iter().map(|value| value * value).sum::<f64>();
        let is_new = rest > DEPENDENT * square;
        if !is_new {
            return false;
        }
        let before: f64 = row.iter().zip(&self.along).map(|(a, b)| a * b).sum();
        let pivot = rest.sqrt();
        let along = (inner_product(own, self.target) - before) / pivot;
        row.push(pivot);
        self.factor.push(row);
        self.along.push(along);
        self.atoms.push(atom);
        self.left = (self.left - along * along).max(0.0);
        true
    }

    /// The factors of the chosen rows.
    fn factors(&self) -> Vec<f64> {
        let n = self.atoms.len();
        let mut factors = self.along.clone();
        for at in (0..n).rev() {
            let later: f64 = (at + 1..n)
                .map(|row| self.factor[row][at] * factors[row])
                .sum();
            factors[at] = (factors[at] - later) / self.factor[at][at];
        }
        factors
    }

    /// The rest of the target.
    fn rest(&self, points: &Rows, out: &mut [f32]) {
        let mut rest: Vec<f64> = self.target.iter().map(|value| f64::from(*value)).collect();
        for (&atom, factor) in self.atoms.iter().zip(self.factors()) {
            for (rest, value) in rest.iter_mut().zip(points.row(atom)) {
                *rest -= factor * f64::from(*value);
            }
        }
        for (out, rest) in out.iter_mut().zip(rest) {
            *out = rest as f32;
        }
    }
}

impl Pursuit<'_> {
    /// The products of all shared rows with the rest, from those with the target itself.
    fn update(&self, gram: &[f32], chase: &Chase<'_>, first: &[f32], products: &mut [f32]) {
        let n = products.len();
        let factors = chase.factors();
        for from in (0..n).step_by(TILE) {
            let tile = from..n.min(from + TILE);
            let out = &mut products[tile.clone()];
            out.copy_from_slice(&first[tile.clone()]);
            for (&atom, factor) in chase.atoms.iter().zip(&factors) {
                let row = &gram[atom * n..][tile.clone()];
                let factor = *factor as f32;
                crate::vectorized(
                    #[inline(always)]
                    || {
                        for (out, value) in out.iter_mut().zip(row) {
                            *out -= factor * value;
                        }
                    },
                );
            }
        }
    }
}

impl Solver for Pursuit<'_> {
    fn block(&self, targets: &Rows, excluded: &[bool]) -> Result<Vec<Combination>> {
        let (n, width) = (self.points.len(), targets.width);
        let mut first = vec![0.0; targets.len() * n];
        inner_products(&targets.values, &self.points.values, width, &mut first);
        let mut products = first.clone();
        let mut chases: Vec<Chase<'_>> = (0..targets.len())
            .map(|row| Chase::new(targets.row(row), excluded))
            .collect();
        let mut rests = vec![0.0; targets.values.len()];
        let mut open: Vec<bool> = chases.iter().map(|chase| chase.square > 0.0).collect();
        for step in 0..self.k {
            for ((chase, open), products) in chases
                .iter_mut()
                .zip(&mut open)
                .zip(products.chunks_exact(n))
            {
                if *open {
                    *open = !chase.is_done(self.k)
                        && chase.choose(products, self.points, &self.squares);
                }
            }
            if step + 1 == self.k || !open.contains(&true) {
                break;
            }
            match &self.gram {
                Some(gram) => {
                    let each = chases.iter().zip(&open).zip(first.chunks_exact(n));
                    for (((chase, open), first), products) in each.zip(products.chunks_exact_mut(n))
                    {
                        if *open {
                            self.update(gram, chase, first, products);
                        }
                    }
                }
                None => {
                    for (chase, rest) in chases.iter().zip(rests.chunks_exact_mut(width)) {
                        chase.rest(self.points, rest);
                    }
                    inner_products(&rests, &self.points.values, width, &mut products);
                }
            }
        }
        let made = chases.into_iter().map(|chase| {
            let made = Combination {
                atoms: chase.atoms.iter().map(|&atom| atom as u32).collect(),
                factors: chase.factors(),
                error: 0.0,
            };
            made.measured(self.points, chase.target)
        });
        Ok(made.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draws;

    fn drawn(name: &str, n: usize, width: usize) -> Rows {
        let mut values = vec![0.0; n * width];
        Draws::new(1, name).add_normal(1.0, 0, &mut values);
        Rows { width, values }
    }

    /// 2 · 3rd row − 17th row + ½ 40th row.
    fn combined(points: &Rows) -> Rows {
        let parts = [(3, 2.0), (17, -1.0), (40, 0.5)];
        let value = |column: usize| -> f32 {
            parts
                .iter()
                .map(|&(row, factor): &(usize, f32)| factor * points.row(row)[column])
                .sum()
        };
        Rows {
            width: points.width,
            values: (0..points.width).map(value).collect(),
        }
    }

    #[test]
    fn a_combination_of_few_rows_is_found_exactly_with_products_and_without() {
        let points = drawn("points", 60, 48);
        let target = combined(&points);
        for most_bytes in [0, 1 << 20] {
            let pursuit = Pursuit::new(&points, 8, most_bytes);
            assert_eq!(pursuit.gram.is_some(), most_bytes > 0);
            let found = pursuit.block(&target, &[false; 60]).expect("found");
            let found: Vec<(u32, f64)> = found[0]
                .atoms
                .iter()
                .copied()
                .zip(found[0].factors.clone())
                .collect();
            assert_eq!(found.len(), 3, "{found:?}");
            for (atom, expected) in [(3, 2.0), (17, -1.0), (40, 0.5)] {
                let (_, factor) = found.iter().find(|(own, _)| *own == atom).expect("chosen");
                assert!((factor - expected).abs() < 1e-6, "{atom}: {factor}");
            }
        }
    }

    #[test]
    fn rows_that_are_excluded_or_said_already_are_not_chosen() {
        let mut points = drawn("points", 20, 8);
        // The second row is the first, times three.
        let first: Vec<f32> = points.row(0).iter().map(|value| 3.0 * value).collect();
        points.values[8..16].copy_from_slice(&first);
        let target = Rows {
            width: 8,
            values: points.row(0).to_vec(),
        };
        let pursuit = Pursuit::new(&points, 8, 1 << 20);
        let found = pursuit.block(&target, &[false; 20]).expect("found");
        assert_eq!(found[0].atoms, [1]);
        assert!((found[0].factors[0] - 1.0 / 3.0).abs() < 1e-7);
        let mut excluded = [false; 20];
        excluded[..2].fill(true);
        let found = pursuit.block(&target, &excluded).expect("found");
        assert!(found[0].atoms.iter().all(|atom| *atom > 1));
        // Eight rows of eight numbers make up any row.
        assert_eq!(found[0].atoms.len(), 8);
        assert!(found[0].error < 1e-5, "{}", found[0].error);
        let zero = Rows {
            width: 8,
            values: vec![0.0; 8],
        };
        let found = pursuit.block(&zero, &[false; 20]).expect("found");
        assert_eq!(found[0], Combination::default());
    }
}
