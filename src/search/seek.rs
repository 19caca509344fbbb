//! The order in which a search tries the points of the unit cube.

use anyhow::{Result, anyhow};
use cmaes::{CMAESOptions, DVector};

use crate::output::UsageError;

/// The most points of a grid.
const MAX_POINTS: usize = 10_000;

/// First spread of CMA-ES around the middle of the cube.
const SPREAD: f64 = 0.3;

/// The value of a point that failed, below that of every other. CMA-ES looks at the order of values alone; the number is far
/// enough from the largest one that sums of two are finite.
pub const FAILED: f64 = -1e300;

/// Tries `n_trials` points, or up to a generation more, by CMA-ES (Hansen: The CMA Evolution
/// Strategy, arXiv 1604.00772) from the middle of the cube, for the greatest value. `values` gets the
/// points of a generation at once and returns a finite value for each. The same seed and values give
/// the same points.
pub fn cma_es(
    n_axes: usize,
    n_trials: usize,
    seed: u64,
    mut values: impl FnMut(&[Vec<f64>]) -> Result<Vec<f64>>,
) -> Result<()> {
    let mut known: Vec<f64> = Vec::new();
    // The crate evaluates one point at a time, so that a generation is only known to one who has run through it: each
    // round repeats the generations whose values are known, and notes the points of the next one.
    for n_generations in 0.. {
        let mut points: Vec<Vec<f64>> = Vec::new();
        let objective = |at: &DVector<f64>| {
            let value = known.get(points.len()).copied().unwrap_or_default();
            points.push(at.as_slice().to_vec());
            -value
        };
        let options = CMAESOptions::new(vec![0.5; n_axes], SPREAD)
            .seed(seed)
            .max_function_evals(n_trials);
        let mut state = options
            .build(objective)
            .map_err(|error| anyhow!("the search cannot begin: {error:?}"))?;
        // It ends sooner where nothing changes any more.
        if (0..n_generations).any(|_| state.next().is_some()) {
            break;
        }
        let _ = state.next();
        drop(state);
        let next = points.split_off(known.len());
        known.extend(values(&next)?);
    }
    Ok(())
}

/// Tries all points of a grid with the given number of values an axis, both ends among them.
pub fn grid(
    n_axes: usize,
    n_values: usize,
    mut values: impl FnMut(&[Vec<f64>]) -> Result<Vec<f64>>,
) -> Result<()> {
    let n_points = u32::try_from(n_axes)
        .ok()
        .and_then(|n| n_values.checked_pow(n))
        .filter(|&n| n <= MAX_POINTS);
    let Some(n_points) = n_points else {
        let what = format!(
            "{n_values} values for each of {n_axes} numbers: more than {MAX_POINTS} points"
        );
        return Err(UsageError(what).into());
    };
    let point = |point: usize| {
        let mut rest = point;
        let mut at = vec![0.5; n_axes];
        for place in at.iter_mut().rev() {
            if n_values > 1 {
                *place = (rest % n_values) as f64 / (n_values - 1) as f64;
            }
            rest /= n_values;
        }
        at
    };
    values(&(0..n_points).map(point).collect::<Vec<_>>())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_hill_is_found_and_the_way_is_the_same_again() {
        let climb = |seed| {
            let mut tried = Vec::new();
            let mut height = |at: &Vec<f64>| {
                let height = -(at[0] - 0.7).powi(2) - 4.0 * (at[1] - 0.2 - 0.5 * at[0]).powi(2);
                tried.push((at.clone(), height));
                Ok(height)
            };
            let hill = |points: &[Vec<f64>]| points.iter().map(&mut height).collect();
            cma_es(2, 200, seed, hill).expect("it runs");
            tried
        };
        let tried = climb(1);
        assert!((200..210).contains(&tried.len()), "{}", tried.len());
        let best = tried
            .iter()
            .map(|(_, height)| *height)
            .fold(f64::MIN, f64::max);
        // 200 random points of the square come to 1e-3 at best.
        assert!(best > -1e-6, "{best}");
        assert_eq!(tried, climb(1));
        assert_ne!(tried, climb(2));
    }

    #[test]
    fn the_top_is_found_beside_points_that_fail() {
        let (mut best, mut n_failed) = (f64::MIN, 0);
        let hill = |points: &[Vec<f64>]| {
            let height = |at: &Vec<f64>| match at[0] + at[1] < 0.9 {
                true => FAILED,
                false => -(at[0] - 0.7).powi(2) - (at[1] - 0.4).powi(2),
            };
            let heights: Vec<f64> = points.iter().map(height).collect();
            n_failed += heights.iter().filter(|&&height| height == FAILED).count();
            best = heights.iter().copied().fold(best, f64::max);
            Ok(heights)
        };
        cma_es(2, 200, 1, hill).expect("it runs");
        assert!(n_failed > 10, "{n_failed}");
        assert!(best > -1e-6, "{best}");
    }

    #[test]
    fn one_number_can_be_searched_for() {
        let mut best = f64::MIN;
        let hill = |points: &[Vec<f64>]| {
            let heights: Vec<f64> = points.iter().map(|at| -(at[0] - 0.9).abs()).collect();
            best = heights.iter().copied().fold(best, f64::max);
            Ok(heights)
        };
        cma_es(1, 80, 3, hill).expect("it runs");
        assert!(best > -1e-3, "{best}");
    }

    #[test]
    fn a_failure_ends_the_search() {
        let mut n = 0;
        let failed = cma_es(2, 50, 1, |points| {
            n += 1;
            match n {
                3 => Err(anyhow!("broken")),
                _ => Ok(points.iter().map(|at| at[0]).collect()),
            }
        });
        assert_eq!(failed.expect_err("it fails").to_string(), "broken");
    }

    #[test]
    fn a_grid_holds_both_ends_of_each_axis() {
        let mut tried = Vec::new();
        grid(2, 3, |points| {
            tried = points.to_vec();
            Ok(vec![0.0; points.len()])
        })
        .expect("it runs");
        assert_eq!(tried.len(), 9);
        assert_eq!(
            (&tried[0][..], &tried[1][..]),
            (&[0.0, 0.0][..], &[0.0, 0.5][..])
        );
        assert_eq!(tried[8], [1.0, 1.0]);
        assert!(grid(9, 10, |_| Ok(Vec::new())).is_err());
    }
}
