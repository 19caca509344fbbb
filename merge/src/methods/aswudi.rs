use crate::methods::GroupShape;
use crate::methods::matrices::{
    CONV, Filter, Filtered, MATRIX, MatrixKernel, MatrixMethod, START, VECTORS, first,
};
use crate::methods::parameters::{Fallback, Kind, POSITIVE, ParameterSpec, SHARE};
use crate::methods::thinning::consensus::LAMBDA;
use crate::{Error, Result};

/// ## What it does
/// Is `swudi` with a number of eigenvalues chosen for each matrix and no other filter. With `e` the eigenvalues of
/// `C` and `y = √e`, a `rank_rule` says how many take part:
///
/// * `participation_sqrt`: `(Σ y)² / Σ y²`, rounded up, and `participation`: the same of `e`;
/// * `stable_rank`: `Σ e² / e₁²`, rounded up;
/// * `entropy`: the exponential of the entropy of `e / Σ e`, rounded up;
/// * `energy`: the first number whose eigenvalues add up to the share `energy` of all;
/// * `gavish_donoho`: those of `y` above the optimal hard threshold for the median of `y`.
/// ## Why
/// Matrices differ in how many of their eigenvalues are more than noise.
/// ## Cost
/// An eigenvalue decomposition for each matrix, of its columns by its columns, in f64.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `rank_rule` | `participation_sqrt` | the names above | how many eigenvalues take part; the paper takes `gavish_donoho` for language models |
/// | `energy` | - | `[0, 1]` | of `rank_rule: energy` |
/// | `start` | `sum` | `sum`, `mean`, `zero` | T₀ of `swudi` |
/// | `min_eigenvalue` | 1e-8 | above 0 | eigenvalues below it are raised to it |
/// | `lambda` | 1 | any number | factor on the merged task vector; with `start: sum` the paper takes 0.2 for five tasks |
/// | `matrix`, `conv`, `vectors` | - | - | as for `tsv_m` |
/// ## References
/// ASWUDI, <https://arxiv.org/abs/2606.07289>; Gavish and Donoho 2014, <https://arxiv.org/abs/1305.5870>, for the
/// threshold.
/// # Errors
/// [`Error::MethodNeeds`] and [`Error::MethodHasNoUse`] where `energy` does not go with the rule;
/// [`MergeFault::NoDecomposition`](crate::MergeFault::NoDecomposition).
#[derive(Clone, Copy, Debug)]
pub struct Aswudi;

const RULES: Kind = Kind::Choice {
    names: &[
        "participation_sqrt",
        "participation",
        "stable_rank",
        "entropy",
        "energy",
        "gavish_donoho",
    ],
    yes: "",
    no: "",
};

impl MatrixMethod for Aswudi {
    const NAME: &'static str = "aswudi";
    const PARAMETERS: &'static [ParameterSpec] = &[
        ParameterSpec::shared("rank_rule", RULES, Fallback::Text("participation_sqrt")),
        ParameterSpec::shared("energy", SHARE, Fallback::Absent),
        START,
        ParameterSpec::shared("min_eigenvalue", POSITIVE, Fallback::Number(1e-8)),
        LAMBDA,
        MATRIX,
        CONV,
        VECTORS,
    ];

    fn kernel(group: &GroupShape<'_>, _: (usize, usize)) -> Result<Box<dyn MatrixKernel>> {
        let values = group.values;
        let rule = values.text("rank_rule").unwrap_or_default().to_owned();
        let energy = values.number_if_any("energy");
        match (rule.as_str(), energy) {
            ("energy", None) => {
                return Err(Error::MethodNeeds {
                    method: Self::NAME,
                    what: "the parameter `energy` with `rank_rule: energy`",
                });
            }
            (rule, Some(_)) if rule != "energy" => {
                return Err(Error::MethodHasNoUse {
                    method: Self::NAME,
                    what: "`energy` without `rank_rule: energy`",
                });
            }
            _ => {}
        }
        let energy = energy.unwrap_or(1.0);
        let filter: Filter = Box::new(move |eigenvalues, size| {
            let n = eigenvalues.len();
            first(rank(&rule, energy, eigenvalues, size).clamp(1, n.max(1)), n)
        });
        Ok(Filtered::boxed(values, filter))
    }
}

/// The number of the eigenvalues, the largest first, that take part.
fn rank(rule: &str, energy: f64, eigenvalues: &[f64], (rows, columns): (usize, usize)) -> usize {
    let participation = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, squares) = values.fold((0.0, 0.0), |(sum, squares), value| {
            (sum + value, squares + value * value)
        });
        (sum * sum / squares).ceil() as usize
    };
    let own = eigenvalues.iter().copied();
    let total: f64 = own.clone().sum();
    let largest = eigenvalues.first().copied().unwrap_or(1.0);
    match rule {
        "participation" => participation(&mut own.clone()),
        "stable_rank" => (own.map(|e| (e / largest).powi(2)).sum::<f64>()).ceil() as usize,
        "entropy" => {
            let entropy = own.map(|e| e / total).map(|share| -share * share.ln());
            entropy.sum::<f64>().exp().ceil() as usize
        }
        "energy" => {
            let mut sum = 0.0;
            let reached = own.map(|e| {
                sum += e;
                sum / total
            });
            1 + reached.take_while(|share| *share < energy).count()
        }
        "gavish_donoho" => {
            let (short, long) = (rows.min(columns) as f64, rows.max(columns) as f64);
            let threshold = factor(short / long) * median_root(eigenvalues);
            own.filter(|e| e.sqrt() > threshold).count()
        }
        _ => participation(&mut own.map(f64::sqrt)),
    }
}

/// The lower median of the roots of values that are sorted from the largest.
fn median_root(eigenvalues: &[f64]) -> f64 {
    let n = eigenvalues.len();
    eigenvalues.get(n / 2).map_or(0.0, |value| value.sqrt())
}

/// The hard threshold in medians, for sides in this ratio, as the published program approximates it.
fn factor(ratio: f64) -> f64 {
    let inner = ratio + 1.0 + (ratio * ratio + 14.0 * ratio + 1.0).sqrt();
    let threshold = (2.0 * (ratio + 1.0) + 8.0 * ratio / inner).sqrt();
    let median = match ratio >= 0.9999 {
        true => (2.0 + 3f64.sqrt()).sqrt(),
        false => ((1.0 - ratio).powi(2) + ratio).max(1e-3).sqrt(),
    };
    threshold / median
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_by_hand() {
        let of = |rule| rank(rule, 0.9, &[4.0, 1.0, 1.0], (3, 3));
        // Roots 2, 1, 1: 16 / 6; values: 36 / 18; 18 / 16.
        assert_eq!(of("participation_sqrt"), 3);
        assert_eq!(of("participation"), 2);
        assert_eq!(of("stable_rank"), 2);
        // 4/6, 5/6, 6/6.
        assert_eq!(of("energy"), 3);
        // Entropy of ⅔, ⅙, ⅙: 0.868, whose exponential is 2.38.
        assert_eq!(of("entropy"), 3);
        // For a square: √(4 + 8/6) = 4/√3, over √(2 + √3), so 1.195 medians of 1: only 2 is above.
        assert_eq!(of("gavish_donoho"), 1);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_lower_one() {
        assert_eq!(median_root(&[9.0, 4.0, 1.0, 0.0]), 1.0);
        assert_eq!(median_root(&[9.0, 4.0, 1.0]), 2.0);
    }
}
