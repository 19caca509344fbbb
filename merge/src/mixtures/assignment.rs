//! The best one-to-one assignment, by the Hungarian algorithm.

/// For each row of a matrix of `n` by `n` gains, `gain(row, column)`, the column that it gets, each column once, so
/// that the sum of the gains is the largest there is. Rows that are best served by their own best column get it at once; each other row costs
/// one search for a shortest augmenting path, `O(n²)`.
///
/// Kuhn 1955, "The Hungarian method for the assignment problem"; with potentials and shortest paths as in Jonker and
/// Volgenant 1987. A gain that is no number counts as 0.
#[must_use]
pub fn assign(n: usize, gain: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let cost = |row: usize, column: usize| match gain(row, column) {
        gain if gain.is_finite() => -gain,
        _ => 0.0,
    };
    // Potentials with `cost - of_rows - of_columns >= 0`, and 0 where assigned.
    let mut of_columns = vec![0.0; n];
    let mut of_rows = vec![0.0; n];
    let mut row_of: Vec<Option<usize>> = vec![None; n];
    let mut free = Vec::new();
    for (row, of_row) in of_rows.iter_mut().enumerate() {
        let best = (0..n).min_by(|&a, &b| cost(row, a).total_cmp(&cost(row, b)));
        let best = best.unwrap_or_default();
        *of_row = cost(row, best);
        match row_of[best] {
            None => row_of[best] = Some(row),
            Some(_) => free.push(row),
        }
    }
    for row in free {
        augment(row, &cost, &mut of_rows, &mut of_columns, &mut row_of);
    }
    let mut columns = vec![0; n];
    for (column, row) in row_of.into_iter().enumerate() {
        if let Some(row) = row {
            columns[row] = column;
        }
    }
    columns
}

/// As [`assign`] where rows and columns stand in `n_groups` groups of equal sizes, one after the other, that must stay
/// together: each group of rows gets the columns of one group. `n` must be a multiple of `n_groups`, or else there are
/// no groups.
#[must_use]
pub fn assign_in_groups(
    n: usize,
    n_groups: usize,
    gain: impl Fn(usize, usize) -> f64,
) -> Vec<usize> {
    if n_groups < 2 || !n.is_multiple_of(n_groups) {
        return assign(n, gain);
    }
    let size = n / n_groups;
    let gain = |row, column| Some(gain(row, column)).filter(|gain| gain.is_finite());
    let of_pairs = (0..n_groups * n_groups).map(|pair| {
        let (row, column) = (pair / n_groups * size, pair % n_groups * size);
        let gain = |r: usize, c: usize| gain(row + r, column + c).unwrap_or(0.0);
        let columns = assign(size, gain);
        let sum: f64 = columns.iter().enumerate().map(|(r, &c)| gain(r, c)).sum();
        (sum, columns)
    });
    let of_pairs: Vec<(f64, Vec<usize>)> = of_pairs.collect();
    let groups = assign(n_groups, |row, column| of_pairs[row * n_groups + column].0);
    let columns = groups.iter().enumerate().flat_map(|(row, &column)| {
        let within = &of_pairs[row * n_groups + column].1;
        within.iter().map(move |at| column * size + at)
    });
    columns.collect()
}

/// Finds a column for a row, moving others along the shortest path of reduced costs.
fn augment(
    first: usize,
    cost: &impl Fn(usize, usize) -> f64,
    of_rows: &mut [f64],
    of_columns: &mut [f64],
    row_of: &mut [Option<usize>],
) {
    let n = of_columns.len();
    let mut distance = vec![f64::INFINITY; n];
    let mut before: Vec<Option<usize>> = vec![None; n];
    let mut is_done = vec![false; n];
    let mut done = Vec::new();
    let (mut row, mut reached, mut last_column) = (first, 0.0, None);
    let end = loop {
        let (mut nearest, mut column) = (f64::INFINITY, None);
        for next in (0..n).filter(|&next| !is_done[next]) {
            let length = reached + cost(row, next) - of_rows[row] - of_columns[next];
            if length < distance[next] {
                (distance[next], before[next]) = (length, last_column);
            }
            // Of equally near columns one that nobody has ends the search.
            let is_better =
                distance[next] < nearest || (distance[next] <= nearest && row_of[next].is_none());
            if is_better {
                (nearest, column) = (distance[next], Some(next));
            }
        }
        let Some(column) = column else {
            return;
        };
        (reached, is_done[column]) = (nearest, true);
        match row_of[column] {
            None => break column,
            Some(next) => {
                done.push(column);
                (row, last_column) = (next, Some(column));
            }
        }
    };
    of_rows[first] += reached;
    for column in done {
        let slack = reached - distance[column];
        of_columns[column] -= slack;
        if let Some(row) = row_of[column] {
            of_rows[row] += slack;
        }
    }
    let mut column = end;
    while let Some(previous) = before[column] {
        row_of[column] = row_of[previous];
        column = previous;
    }
    row_of[column] = Some(first);
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;
    use crate::random::Draws;

    fn assigned(gains: &Array2<f64>) -> Vec<usize> {
        assign(gains.nrows(), |row, column| gains[(row, column)])
    }

    fn total(gains: &Array2<f64>, columns: &[usize]) -> f64 {
        let chosen = columns.iter().enumerate();
        chosen.map(|(row, &column)| gains[(row, column)]).sum()
    }

    /// Every order of `0..n`.
    fn orders(n: usize) -> Vec<Vec<usize>> {
        if n == 0 {
            return vec![Vec::new()];
        }
        let shorter = orders(n - 1).into_iter();
        let longer = shorter.flat_map(|order| {
            (0..n).map(move |at| {
                let mut longer = order.clone();
                longer.insert(at, n - 1);
                longer
            })
        });
        longer.collect()
    }

    #[test]
    fn an_example_by_hand_is_assigned_as_it_should() {
        // The greedy choice 9 + 1 is worse than 8 + 8.
        let gains = array![[9.0, 8.0], [8.0, 1.0]];
        assert_eq!(assigned(&gains), [1, 0]);
        assert_eq!(assigned(&Array2::eye(5)), [0, 1, 2, 3, 4]);
        assert!(assigned(&Array2::zeros((0, 0))).is_empty());
    }

    #[test]
    fn no_order_is_better_than_the_assignment() {
        let mut draws = Draws::new(5, "assignment").sequence();
        for case in 0..120 {
            let n = 1 + case % 6;
            // Few different values at first, so that many orders are equally good.
            let n_values = if case < 60 { 5 } else { 1000 };
            let gains = Array2::from_shape_simple_fn((n, n), || draws.below(n_values) as f64);
            let found = assigned(&gains);
            let mut sorted = found.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let best = orders(n)
                .iter()
                .map(|order| total(&gains, order))
                .fold(f64::MIN, f64::max);
            assert_eq!(total(&gains, &found), best, "{gains}");
        }
    }

    #[test]
    fn no_order_that_keeps_groups_together_is_better() {
        let mut draws = Draws::new(6, "groups").sequence();
        for n_groups in [2, 3] {
            let is_kept = |order: &[usize]| {
                let mut groups = order.chunks(6 / n_groups);
                groups.all(|of| of.iter().all(|at| at / of.len() == of[0] / of.len()))
            };
            for _ in 0..20 {
                let gains = Array2::from_shape_simple_fn((6, 6), || draws.below(50) as f64);
                let found = assign_in_groups(6, n_groups, |row, column| gains[(row, column)]);
                assert!(is_kept(&found), "{found:?}");
                let best = (orders(6).iter())
                    .filter(|order| is_kept(order))
                    .map(|order| total(&gains, order))
                    .fold(f64::MIN, f64::max);
                assert_eq!(total(&gains, &found), best, "{gains}");
            }
        }
        assert_eq!(
            assign_in_groups(3, 2, |row, column| (row + column == 2).into()),
            [2, 1, 0]
        );
    }

    #[test]
    fn gains_that_are_no_numbers_count_as_nothing() {
        let gains = array![[f64::NAN, 1.0], [2.0, f64::NAN]];
        assert_eq!(assigned(&gains), [1, 0]);
    }
}
