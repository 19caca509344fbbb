//! Whether the experts of two checkpoints stand in one order, by a sample of their weights.

use ndarray::Array2;

use super::Mixture;
use super::assignment::assign;
use super::similarity::{Elements, Experts, cosines, router_cosines};
use crate::{Checkpoint, Result};

/// The order of experts, compared with those of the same numbers in another checkpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// Nothing says that another order is meant.
    Common,
    /// Some experts are plainly others.
    Shuffled {
        /// Experts that are.
        n_moved: usize,
        /// Their mean cosine with the experts of the same number.
        in_place: f64,
        /// Their mean cosine with the experts that they are.
        matched: f64,
    },
}

/// The least by which experts must be more alike to others than to those of their number.
const LEAST_GAIN: f64 = 0.2;
/// The same in deviations of the cosine of unrelated vectors: chance does not reach it among the pairs of a model.
const LEAST_DEVIATIONS: f64 = 8.0;

/// Compares a few thousand elements of each expert, without what all experts of a checkpoint have in common (as copies
/// of one dense network have most): the best one-to-one assignment must gain so much over the order of numbers that it
/// is no chance. Experts that were trained apart have nothing to gain, so they count as in order. Where weights do not
/// say that experts of one number are alike, the rows of the router are asked, too: they know experts whose hidden units
/// are in another order.
///
/// # Errors
/// When a tensor cannot be read.
pub(crate) fn order_of(
    (one, mixture): (&Checkpoint, &Mixture),
    (other, theirs): (&Checkpoint, &Mixture),
) -> Result<Order> {
    const SAMPLE: Elements = Elements::SampleOfDifferences;
    let own = Experts {
        source: one,
        mixture,
    };
    let of_other = Experts {
        source: other,
        mixture: theirs,
    };
    let (weights, n_elements) = cosines(own, of_other, SAMPLE)?;
    let order = judged(&weights, n_elements);
    let in_place = weights.diag().mean().unwrap_or(0.0);
    if order != Order::Common || in_place > least(n_elements) {
        return Ok(order);
    }
    let router = router_cosines((one, mixture), (other, theirs), SAMPLE)?;
    Ok(router.map_or(Order::Common, |(rows, width)| judged(&rows, width)))
}

/// The least gain of cosines over `n_elements` elements that is no chance.
fn least(n_elements: usize) -> f64 {
    LEAST_GAIN.max(LEAST_DEVIATIONS / (n_elements.max(1) as f64).sqrt())
}

/// The order by cosines over `n_elements` elements.
fn judged(cosines: &Array2<f64>, n_elements: usize) -> Order {
    let n = cosines.nrows();
    let columns = assign(n, |row, column| cosines[(row, column)]);
    let moved = columns.iter().enumerate();
    let moved: Vec<(usize, usize)> = moved
        .filter(|(row, column)| row != *column)
        .map(|(row, &column)| (row, column))
        .collect();
    if moved.is_empty() {
        return Order::Common;
    }
    let mean = |of: &dyn Fn((usize, usize)) -> f64| -> f64 {
        moved.iter().map(|&pair| of(pair)).sum::<f64>() / moved.len() as f64
    };
    let in_place = mean(&|(row, _)| cosines[(row, row)]);
    let matched = mean(&|pair| cosines[pair]);
    match matched - in_place > least(n_elements) {
        false => Order::Common,
        true => Order::Shuffled {
            n_moved: moved.len(),
            in_place,
            matched,
        },
    }
}
