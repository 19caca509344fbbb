//! Rows as combinations of the nearest shared rows.

use ndarray::Array2;

use super::options::WeightScheme;
use super::sparse::{Combination, Solver};
use super::table::Rows;
use crate::Result;
use crate::linear_algebra::single::{inner_product, inner_products};
use crate::linear_algebra::spectral::Eigen;
use crate::low_rank::NoConvergence;

/// The least distance, product of lengths and sum of factors that are divided by, as mergekit has them.
const LEAST: f64 = 1e-6;

/// Eigenvalues of products of rows below this share of the largest are rounding.
const SMALLEST: f64 = 1e-12;

/// Rows that are compared exactly beside those that single precision finds nearest: it may take two for each other.
const SPARE: usize = 8;

/// Finds the nearest shared rows, and their factors.
pub(super) struct Nearest<'a> {
    points: &'a Rows,
    lengths: Vec<f64>,
    k: usize,
    is_cosine: bool,
    scheme: WeightScheme,
    /// The table, for errors.
    key: &'a str,
}

impl<'a> Nearest<'a> {
    pub(super) fn new(
        points: &'a Rows,
        (k, is_cosine, scheme): (usize, bool, WeightScheme),
        key: &'a str,
    ) -> Self {
        let lengths = (0..points.len()).map(|row| {
            let row = points.row(row);
            inner_product(row, row).sqrt()
        });
        Self {
            points,
            lengths: lengths.collect(),
            k,
            is_cosine,
            scheme,
            key,
        }
    }

    /// A number that grows with the distance.
    fn far(&self, product: f64, length: f64, point: usize) -> f64 {
        let own = self.lengths[point];
        match self.is_cosine {
            true => 1.0 - product / (length * own).max(LEAST),
            false => own * own - 2.0 * product,
        }
    }

    /// The nearest rows, the nearest first, with their distances.
    fn neighbors(&self, target: &[f32], products: &[f32], excluded: &[bool]) -> Vec<(u32, f64)> {
        let length = inner_product(target, target).sqrt();
        let candidates = products.iter().zip(excluded).enumerate();
        let mut found: Vec<(f64, u32)> = candidates
            .filter(|(_, (_, excluded))| !**excluded)
            .map(|(point, (product, _))| {
                (self.far(f64::from(*product), length, point), point as u32)
            })
            .collect();
        let n = (self.k + SPARE).min(found.len());
        if n < found.len() {
            found.select_nth_unstable_by(n, |a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            found.truncate(n);
        }
        let mut exact: Vec<(u32, f64)> = found
            .into_iter()
            .map(|(_, point)| (point, self.distance(target, length, point as usize)))
            .collect();
        exact.sort_unstable_by(|a, b| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0)));
        exact.truncate(self.k);
        exact
    }

    fn distance(&self, target: &[f32], length: f64, point: usize) -> f64 {
        let own = self.points.row(point);
        match self.is_cosine {
            true => self.far(inner_product(target, own), length, point),
            false => {
                let squares = target.iter().zip(own).map(|(a, b)| {
                    let difference = f64::from(*a) - f64::from(*b);
                    difference * difference
                });
                squares.sum::<f64>().sqrt()
            }
        }
    }

    fn factors(&self, target: &[f32], neighbors: &[(u32, f64)]) -> Result<Vec<f64>, NoConvergence> {
        if self.scheme == WeightScheme::DistanceProportional {
            let weight = |distance: f64| match self.is_cosine {
                true => 1.0 - distance,
                false => 1.0 / distance.max(LEAST),
            };
            let weights: Vec<f64> = neighbors.iter().map(|(_, far)| weight(*far)).collect();
            let sum = weights.iter().sum::<f64>();
            // Cosines that cancel each other, or point away, say nothing.
            return Ok(match sum > LEAST {
                true => weights.into_iter().map(|weight| weight / sum).collect(),
                false => Vec::new(),
            });
        }
        let k = neighbors.len();
        let row = |at: usize| self.points.row(neighbors[at].0 as usize);
        // The sum of factors is one more equation, with a multiplier of its own.
        let n = match self.scheme {
            WeightScheme::Barycentric => k + 1,
            _ => k,
        };
        let mut products = Array2::<f64>::zeros((n, n));
        let mut wanted = vec![1.0; n];
        for (a, wanted) in wanted.iter_mut().enumerate().take(k) {
            *wanted = inner_product(target, row(a));
            for b in 0..=a {
                let product = inner_product(row(a), row(b));
                (products[(a, b)], products[(b, a)]) = (product, product);
            }
        }
        if n > k {
            for a in 0..k {
                (products[(a, k)], products[(k, a)]) = (1.0, 1.0);
            }
        }
        let mut factors = least_norm(&products, wanted)?;
        factors.truncate(k);
        Ok(factors)
    }
}

/// The shortest solution of a symmetric system, by least squares.
fn least_norm(matrix: &Array2<f64>, wanted: Vec<f64>) -> Result<Vec<f64>, NoConvergence> {
    // `Eigen` orders by value; the matrix may have negative ones.
    let eigen = Eigen::of(matrix)?;
    let largest = eigen
        .values
        .iter()
        .fold(0.0, |most: f64, value| most.max(value.abs()));
    let n = wanted.len();
    let inverse = |value: f64| match value.abs() > SMALLEST * largest {
        true => 1.0 / value,
        false => 0.0,
    };
    let wanted = Array2::from_shape_vec((1, n), wanted).unwrap_or_default();
    Ok(eigen.applied(&wanted, inverse).into_raw_vec_and_offset().0)
}

impl Solver for Nearest<'_> {
    fn block(&self, targets: &Rows, excluded: &[bool]) -> Result<Vec<Combination>> {
        let n = self.points.len();
        let mut products = vec![0.0; targets.len() * n];
        inner_products(
            &targets.values,
            &self.points.values,
            targets.width,
            &mut products,
        );
        let rows = (0..targets.len()).zip(products.chunks_exact(n));
        rows.map(|(row, products)| {
            let target = targets.row(row);
            if target.iter().all(|value| *value == 0.0) {
                return Ok(Combination::default());
            }
            let neighbors = self.neighbors(target, products, excluded);
            let failed = |_| crate::TransplantFault::NoConvergence {
                key: self.key.to_owned(),
            };
            let factors = match self.k {
                1 if self.scheme == WeightScheme::DistanceProportional => vec![1.0],
                _ => self.factors(target, &neighbors).map_err(failed)?,
            };
            if factors.is_empty() {
                return Ok(Combination::default());
            }
            let made = Combination {
                atoms: neighbors.iter().map(|(point, _)| *point).collect(),
                factors,
                error: 0.0,
            };
            Ok(made.measured(self.points, target))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (0, 1), (1, 0), (3, 0) and (−4, 0).
    fn points() -> Rows {
        Rows {
            width: 2,
            values: vec![0.0, 1.0, 1.0, 0.0, 3.0, 0.0, -4.0, 0.0],
        }
    }

    fn found(k: usize, is_cosine: bool, scheme: WeightScheme, target: [f32; 2]) -> Combination {
        let points = points();
        let nearest = Nearest::new(&points, (k, is_cosine, scheme), "table");
        let targets = Rows {
            width: 2,
            values: target.to_vec(),
        };
        let found = nearest.block(&targets, &[false; 4]).expect("found");
        found.into_iter().next().expect("one")
    }

    #[test]
    fn near_rows_count_by_the_inverse_of_their_distances() {
        // (2, 0) is 1 from (1, 0), 1 from (3, 0), √5 from (0, 1).
        let made = found(2, false, WeightScheme::DistanceProportional, [2.0, 0.0]);
        assert_eq!((made.atoms, made.factors), (vec![1, 2], vec![0.5, 0.5]));
        let made = found(1, false, WeightScheme::DistanceProportional, [2.6, 0.1]);
        assert_eq!((made.atoms, made.factors), (vec![2], vec![1.0]));
    }

    #[test]
    fn by_the_cosine_long_rows_are_as_near_as_short_ones() {
        let made = found(3, true, WeightScheme::DistanceProportional, [1.0, 1.0]);
        // Cosines of √½ with each of the first three rows, except for rounding.
        let mut atoms = made.atoms;
        atoms.sort_unstable();
        assert_eq!(atoms, [0, 1, 2]);
        assert!(
            made.factors
                .iter()
                .all(|factor| (factor - 1.0 / 3.0).abs() < 1e-9)
        );
    }

    #[test]
    fn rows_that_point_away_say_nothing() {
        // Cosines of −√½ with the first three rows, √½ with the last.
        let made = found(4, true, WeightScheme::DistanceProportional, [-1.0, -1.0]);
        assert_eq!(made, Combination::default());
    }

    #[test]
    fn least_squares_meets_the_row_and_barycentric_factors_add_up_to_one() {
        let made = found(2, false, WeightScheme::LeastSquares, [0.5, 0.75]);
        assert_eq!(made.atoms, [0, 1]);
        assert!((made.factors[0] - 0.75).abs() < 1e-9 && (made.factors[1] - 0.5).abs() < 1e-9);
        assert!(made.error < 1e-9);
        let made = found(2, false, WeightScheme::Barycentric, [0.5, 0.75]);
        // The foot of the perpendicular on x + y = 1 is (0.375, 0.625).
        assert!((made.factors[0] - 0.625).abs() < 1e-9 && (made.factors[1] - 0.375).abs() < 1e-9);
    }
}
