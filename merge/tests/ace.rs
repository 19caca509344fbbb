//! ACE beside a computation of its own: Gauss and Jordan's elimination of a matrix that is not symmetric, and singular
//! vectors by Jacobi's rotations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fixtures::{Raw, first_difference};
use merge::execute::{RunOptions, in_memory};
use merge::progress::Silent;
use merge::random::Draws;
use merge::{MergePlan, MergeRecipe};
use safetensors::Dtype;
use tempfile::TempDir;

type Matrix = Vec<Vec<f64>>;

const KEY: &str = "blocks.0.fc.weight";

/// Of the largest element: sums go in another order here, and inverses by another way.
const TOLERANCE: f64 = 1e-9;

fn times(a: &Matrix, b: &Matrix) -> Matrix {
    let product = |row: &Vec<f64>, column: usize| -> f64 {
        row.iter().zip(b).map(|(x, of)| x * of[column]).sum()
    };
    let columns = b[0].len();
    a.iter()
        .map(|row| (0..columns).map(|at| product(row, at)).collect())
        .collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len())
        .map(|column| a.iter().map(|row| row[column]).collect())
        .collect()
}

/// `a + factor b`.
fn plus(a: &Matrix, factor: f64, b: &Matrix) -> Matrix {
    let rows = a.iter().zip(b);
    rows.map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + factor * b).collect())
        .collect()
}

fn identity(n: usize) -> Matrix {
    (0..n)
        .map(|row| {
            (0..n)
                .map(|column| f64::from(u8::from(row == column)))
                .collect()
        })
        .collect()
}

fn squares(a: &Matrix) -> f64 {
    a.iter().flatten().map(|value| value * value).sum()
}

fn row_mean(a: &Matrix) -> Vec<f64> {
    let sums = transposed(a).into_iter();
    sums.map(|column| column.iter().sum::<f64>() / column.len() as f64)
        .collect()
}

fn inverse(a: &Matrix) -> Matrix {
    let n = a.len();
    let mut rows: Matrix = (0..n)
        .map(|row| [a[row].clone(), identity(n)[row].clone()].concat())
        .collect();
    for pivot in 0..n {
        let best =
            (pivot..n).max_by(|&x, &y| rows[x][pivot].abs().total_cmp(&rows[y][pivot].abs()));
        rows.swap(pivot, best.expect("a row"));
        let divisor = rows[pivot][pivot];
        rows[pivot].iter_mut().for_each(|value| *value /= divisor);
        for row in (0..n).filter(|row| *row != pivot) {
            let factor = rows[row][pivot];
            let own = rows[pivot].clone();
            for (value, pivot) in rows[row].iter_mut().zip(own) {
                *value -= factor * pivot;
            }
        }
    }
    rows.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// Eigenvalues and eigenvectors, the largest first, by Jacobi's rotations.
fn eigen(a: &Matrix) -> Vec<(f64, Vec<f64>)> {
    let n = a.len();
    let (mut a, mut vectors) = (a.clone(), identity(n));
    for _ in 0..60 {
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q].abs() < 1e-300 {
                    continue;
                }
                let angle = 0.5 * (2.0 * a[p][q]).atan2(a[q][q] - a[p][p]);
                let mut turn = identity(n);
                (turn[p][p], turn[q][q]) = (angle.cos(), angle.cos());
                (turn[p][q], turn[q][p]) = (angle.sin(), -angle.sin());
                a = times(&transposed(&turn), &times(&a, &turn));
                vectors = times(&vectors, &turn);
            }
        }
    }
    let columns = transposed(&vectors).into_iter().enumerate();
    let mut found: Vec<_> = columns.map(|(at, vector)| (a[at][at], vector)).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    found
}

/// The change of the base; `k` singular vectors are added if the sizes differ by more than `threshold`.
fn ace(tasks: &[Matrix], ridge: f64, threshold: f64, k: usize) -> Matrix {
    let (n, t) = (tasks[0][0].len(), tasks.len() as f64);
    let norms: Vec<f64> = tasks.iter().map(squares).collect();
    let logs: Vec<f64> = norms.iter().map(|norm| (norm + 1e-12).ln()).collect();
    let mean = logs.iter().sum::<f64>() / t;
    let variance = logs.iter().map(|log| (log - mean).powi(2)).sum::<f64>() / (t - 1.0);
    let is_uneven = variance / (mean * mean + 1e-12) > threshold;
    let centered: Vec<Matrix> = (tasks.iter())
        .map(|task| {
            let mean = vec![row_mean(task); task.len()];
            plus(task, -1.0, &mean)
        })
        .collect();
    let share = |task: &Matrix| match is_uneven {
        true => 1.0 / (squares(task) + 1e-12),
        false => 1.0,
    };
    let zeros = vec![vec![0.0; n]; n];
    let own: Vec<Matrix> = (centered.iter())
        .map(|task| plus(&zeros, share(task), &times(&transposed(task), task)))
        .collect();
    let (mut sum, mut plain) = (zeros.clone(), zeros.clone());
    let mut target = vec![vec![0.0; n]; tasks[0].len()];
    for (task, own) in centered.iter().zip(&own) {
        let with_ridge = plus(own, ridge * share(task), &identity(n));
        target = plus(&target, 1.0, &times(task, &with_ridge));
        sum = plus(&sum, 1.0, &with_ridge);
        plain = plus(&plain, 1.0, own);
    }
    let size = match is_uneven {
        true => norms.iter().sum::<f64>() / t + 1e-12,
        false => 1.0,
    };
    let prior = vec![row_mean(&plain); n];
    let merged = times(&target, &inverse(&plus(&sum, 1.0 / size, &prior)));
    if !is_uneven || k == 0 {
        return merged;
    }
    let mut refined = merged.clone();
    for (task, own) in tasks.iter().zip(&own) {
        refined = plus(&refined, 1.0, &times(task, &plus(own, -1.0 / t, &sum)));
    }
    let first: Vec<_> = eigen(&times(&transposed(&refined), &refined))
        .into_iter()
        .take(k)
        .collect();
    let mean = first.iter().map(|(square, _)| square.sqrt()).sum::<f64>() / k as f64;
    first.iter().fold(merged, |merged, (square, right)| {
        let left = times(&refined, &transposed(&vec![right.clone()]));
        let part = times(&left, &vec![right.clone()]);
        plus(&merged, mean / square.sqrt(), &part)
    })
}

/// A base and models of one matrix, each its change times `scale`.
struct Models {
    folder: TempDir,
    size: (usize, usize),
    scales: Vec<f64>,
}

impl Models {
    fn new(size: (usize, usize), scales: &[f64]) -> Self {
        let models = Self {
            folder: TempDir::new().expect("a folder"),
            size,
            scales: scales.to_vec(),
        };
        let base = models.base();
        models.write("base", &base);
        for index in 0..scales.len() {
            models.write(&index.to_string(), &plus(&base, 1.0, &models.task(index)));
        }
        models
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.safetensors"))
    }

    fn drawn(&self, name: &str, scale: f64) -> Matrix {
        let (rows, columns) = self.size;
        let mut values = vec![0.0; rows * columns];
        Draws::new(11, name).add_normal(1.0, 0, &mut values);
        // Few bits, so that a change comes back from its sum with the base.
        let round = |value: &f32| (f64::from(*value) * scale * 1024.0).round() / 1024.0;
        values
            .chunks(columns)
            .map(|row| row.iter().map(round).collect())
            .collect()
    }

    fn base(&self) -> Matrix {
        self.drawn("base", 1.0)
    }

    fn task(&self, index: usize) -> Matrix {
        self.drawn(&index.to_string(), self.scales[index])
    }

    fn tasks(&self) -> Vec<Matrix> {
        (0..self.scales.len())
            .map(|index| self.task(index))
            .collect()
    }

    fn write(&self, name: &str, values: &Matrix) {
        let bytes = values
            .iter()
            .flatten()
            .flat_map(|value| value.to_le_bytes());
        let raw = Raw {
            dtype: Dtype::F64,
            shape: vec![self.size.0, self.size.1],
            bytes: bytes.collect(),
        };
        fixtures::write(&self.path(name), &BTreeMap::from([(KEY.to_owned(), raw)]));
    }

    /// The change that the merge adds to the base.
    fn change(&self, parameters: &str) -> Vec<f64> {
        let list =
            (0..self.scales.len()).map(|index| format!("- {:?}\n", self.path(&index.to_string())));
        let yaml = format!(
            "merge_method: ace\nbase_model: {:?}\nparameters: {{ {parameters} }}\nmodels:\n{}",
            self.path("base"),
            list.collect::<String>()
        );
        let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("valid");
        let (plan, _) = MergePlan::resolve(&recipe).expect("a plan");
        let merged = in_memory(&plan, &RunOptions::default(), &Silent).expect("merged");
        let values = crate::zerovl::values(&merged, KEY).into_iter();
        let base = self.base().concat();
        values
            .zip(base)
            .map(|(merged, base)| merged - base)
            .collect()
    }

    fn check(&self, parameters: &str, expected: &Matrix) {
        let expected = expected.concat();
        let most = expected
            .iter()
            .fold(0.0, |most: f64, value| most.max(value.abs()));
        let differs = first_difference(&self.change(parameters), &expected, 0.0, TOLERANCE * most);
        assert_eq!(differs, None, "{parameters}");
    }
}

#[test]
fn even_and_uneven_matrices_are_those_of_a_dense_computation() {
    // Taller than wide and the other way round; more inputs than all rows together.
    for size in [(7, 5), (5, 7), (3, 11)] {
        let even = Models::new(size, &[0.1, 0.12, 0.09]);
        let tasks = even.tasks();
        even.check("", &ace(&tasks, 0.01, 0.3, 0));
        even.check("ridge: 0.5", &ace(&tasks, 0.5, 0.3, 0));
        let least = size.0.min(size.1);
        for (rank, k) in [
            (0.0, 0),
            (0.3, (0.3 * least as f64) as usize),
            (0.8, (0.8 * least as f64) as usize),
        ] {
            let parameters = format!("heterogeneity: 0, rank: {rank}");
            even.check(&parameters, &ace(&tasks, 0.01, 0.0, k));
        }
        // Squared lengths of about 0.2 and 1400: the logarithms differ.
        let uneven = Models::new(size, &[0.1, 6.0, 0.5]);
        let k = (0.3 * least as f64) as usize;
        let expected = ace(&uneven.tasks(), 0.01, 0.3, k);
        uneven.check("", &expected);
        let half: Matrix = expected
            .iter()
            .map(|row| row.iter().map(|value| 0.5 * value).collect())
            .collect();
        uneven.check("lambda: 0.5", &half);
        assert_ne!(expected, ace(&uneven.tasks(), 0.01, 1e9, k));
    }
}

#[test]
fn without_covariances_the_change_is_the_mean_and_a_model_like_the_base_takes_no_part() {
    // A lone row is its own mean.
    let row = Models::new((1, 4), &[0.5, 0.25]);
    let [one, two] = [row.task(0), row.task(1)];
    let mean: Matrix = vec![
        one[0]
            .iter()
            .zip(&two[0])
            .map(|(a, b)| (a + b) / 2.0)
            .collect(),
    ];
    row.check("", &mean);
    // The mean of three equal rows is not always the row, in binary.
    let alike = Models::new((3, 4), &[0.5, 0.25]);
    for index in 0..2 {
        let change = vec![alike.task(index)[0].clone(); 3];
        alike.write(&index.to_string(), &plus(&alike.base(), 1.0, &change));
    }
    let rows = [alike.task(0), alike.task(1)].map(|task| task[0].clone());
    let mean: Vec<f64> = rows[0]
        .iter()
        .zip(&rows[1])
        .map(|(a, b)| (a + b) / 2.0)
        .collect();
    alike.check("heterogeneity: 0", &vec![mean; 3]);
    let three = Models::new((6, 4), &[0.1, 0.0, 0.11]);
    let two = [three.task(0), three.task(2)];
    three.check("", &ace(&two, 0.01, 0.3, 0));
    three.check("heterogeneity: 0", &ace(&two, 0.01, 0.0, 1));
}
