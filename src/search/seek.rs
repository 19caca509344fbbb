//! The order in which a search tries the points of the unit cube.

use anyhow::{Result, anyhow};
use cmaes::{CMAESOptions, DVector};

use crate::output::UsageError;

/// The most points of a grid.
const MAX_POINTS: usize = 10_000;

/// First spread of CMA-ES around the middle of the cube.
const SPREAD: f64 = 0.3;

/// Tries `n_trials` points, or up to a generation more, by CMA-ES (Hansen: The CMA Evolution
/// Strategy, arXiv 1604.00772) from the middle of the cube, for the greatest value. The same seed
/// and values give the same points.
pub fn cma_es(
    n_axes: usize,
    n_trials: usize,
    seed: u64,
    mut value: impl FnMut(&[f64]) -> Result<f64>,
) -> Result<()> {
    let mut failed = None;
    let mut n_tried = 0;
    // What fails is no number, which ends the search.
    let objective = |at: &DVector<f64>| {
        n_tried += 1;
        match value(at.as_slice()) {
            Ok(value) => -value,
            Err(error) => {
                failed.get_or_insert(error);
                f64::NAN
            }
        }
    };
    let options = CMAESOptions::new(vec![0.5; n_axes], SPREAD)
        .seed(seed)
        .max_function_evals(n_trials);
    let mut state = options
        .build(objective)
        .map_err(|error| anyhow!("the search cannot begin: {error:?}"))?;
    // It ends sooner where nothing changes any more.
    let _ = state.run();
    drop(state);
    match failed {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Tries all points of a grid with the given number of values an axis, both ends among them.
pub fn grid(
    n_axes: usize,
    n_values: usize,
    mut value: impl FnMut(&[f64]) -> Result<f64>,
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
    for point in 0..n_points {
        let mut rest = point;
        let mut at = vec![0.5; n_axes];
        for place in at.iter_mut().rev() {
            if n_values > 1 {
                *place = (rest % n_values) as f64 / (n_values - 1) as f64;
            }
            rest /= n_values;
        }
        value(&at)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_of_a_hill_is_found_and_the_way_is_the_same_again() {
        let climb = |seed| {
            let mut tried = Vec::new();
            let hill = |at: &[f64]| {
                let height = -(at[0] - 0.7).powi(2) - 4.0 * (at[1] - 0.2 - 0.5 * at[0]).powi(2);
                tried.push((at.to_vec(), height));
                Ok(height)
            };
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
    fn one_number_can_be_searched_for() {
        let mut best = f64::MIN;
        let hill = |at: &[f64]| {
            best = best.max(-(at[0] - 0.9).abs());
            Ok(-(at[0] - 0.9).abs())
        };
        cma_es(1, 80, 3, hill).expect("it runs");
        assert!(best > -1e-3, "{best}");
    }

    #[test]
    fn a_failure_ends_the_search() {
        let mut n = 0;
        let failed = cma_es(2, 50, 1, |_| {
            n += 1;
            match n {
                3 => Err(anyhow!("broken")),
                _ => Ok(0.0),
            }
        });
        assert_eq!(failed.expect_err("it fails").to_string(), "broken");
    }

    #[test]
    fn a_grid_holds_both_ends_of_each_axis() {
        let mut tried = Vec::new();
        grid(2, 3, |at| {
            tried.push(at.to_vec());
            Ok(0.0)
        })
        .expect("it runs");
        assert_eq!(tried.len(), 9);
        assert_eq!(
            (&tried[0][..], &tried[1][..]),
            (&[0.0, 0.0][..], &[0.0, 0.5][..])
        );
        assert_eq!(tried[8], [1.0, 1.0]);
        assert!(grid(9, 10, |_| Ok(0.0)).is_err());
    }
}
