//! Experts that answer a few rows each in passes without gradients, each on a thread of its own.

use candle_core::{Result, Tensor};
use faer::MatRef;
use rayon::prelude::*;

use super::routed::Taken;
use crate::nn::Mlp;
use crate::nn::cpu::gemm::Matrix;
use crate::nn::cpu::host::Host;
use crate::nn::cpu::slices::{Threads, turned_linear_into};

/// Most numbers of answers that wait to be added up, unless one expert gives more.
const MAX_ANSWERS: usize = 16 << 20;

/// An expert, and the rows that it serves.
type Serving<'a> = (&'a Mlp, &'a [Taken]);

/// Adds what experts answer to `out`: row `r` becomes `Σ w[r, choice] expert(x[r])`. Answers are added in the order of
/// the experts, so the sums do not depend on threads.
pub(super) fn serve(
    experts: &[Mlp],
    taken: &[Vec<Taken>],
    weights: &Tensor,
    x: &Tensor,
    out: &mut [f32],
) -> Result<()> {
    let ((_, width), (_, n_choices)) = (x.dims2()?, weights.dims2()?);
    let (x, weights) = (Host::of(x)?, Host::of(weights)?);
    let (x, weights) = (x.values(), weights.values());
    let all = experts
        .iter()
        .zip(taken)
        .map(|(expert, taken)| (expert, taken.as_slice()));
    let all: Vec<Serving<'_>> = all.filter(|(_, taken)| !taken.is_empty()).collect();
    let mut rest = all.as_slice();
    while !rest.is_empty() {
        let (now, later) = rest.split_at(wave(rest, width));
        let answers: Vec<Result<Vec<f32>>> = match now.len() < rayon::current_num_threads() {
            true => (now.iter())
                .map(|&of| answer(of, x, width, Threads::All))
                .collect(),
            false => (now.par_iter())
                .map(|&of| answer(of, x, width, Threads::One))
                .collect(),
        };
        for ((_, taken), answers) in now.iter().zip(answers) {
            let answers = answers?; // (d, rows)
            for (at, taken) in taken.iter().enumerate() {
                let weight = weights[taken.row * n_choices + taken.choice];
                let out = &mut out[taken.row * width..][..width];
                let answer = answers[at * width..][..width].iter();
                for (out, answer) in out.iter_mut().zip(answer) {
                    *out += weight * answer;
                }
            }
        }
        rest = later;
    }
    Ok(())
}

/// The number of the next experts that answer at a time.
fn wave(rest: &[Serving<'_>], width: usize) -> usize {
    let mut n_numbers = 0;
    let fitting = rest.iter().take_while(|(_, taken)| {
        n_numbers += taken.len() * width;
        n_numbers <= MAX_ANSWERS
    });
    fitting.count().max(1)
}

/// The answers of an expert to the rows that it serves, `(rows, d)`.
fn answer(
    (expert, taken): Serving<'_>,
    x: &[f32],
    width: usize,
    threads: Threads,
) -> Result<Vec<f32>> {
    let n_rows = taken.len();
    let mut part = vec![0.0; n_rows * width];
    for (part, taken) in part.chunks_exact_mut(width).zip(taken) {
        part.copy_from_slice(&x[taken.row * width..][..width]);
    }
    let (fc1, fc2) = (expert.fc1(), expert.fc2());
    let run = |linear: &crate::nn::Linear, x: MatRef<'_, f32>, activation| -> Result<Vec<f32>> {
        let (weight, bias) = (Host::of(linear.weight())?, Host::of(linear.bias())?);
        let mut out = vec![0.0; linear.weight().dim(0)? * n_rows];
        turned_linear_into(
            &mut out,
            x,
            weight.values(),
            bias.values(),
            activation,
            threads,
        );
        Ok(out)
    };
    let part = Matrix::packed(&part, n_rows, width);
    let inner = run(fc1, part.view(), Some(expert.activation()))?; // (f, rows)
    let n_inner = inner.len() / n_rows;
    let inner = Matrix::packed(&inner, n_inner, n_rows);
    let answers = run(fc2, inner.view().transpose(), None)?; // (d, rows)
    let mut turned = vec![0.0; answers.len()];
    turn(&mut turned, &answers, n_rows);
    Ok(turned)
}

/// Side of the squares that are turned: a line of the cache.
const SIDE: usize = 16;

/// `from: (d, rows)` as `(rows, d)`, square by square.
fn turn(to: &mut [f32], from: &[f32], n_rows: usize) {
    let width = from.len() / n_rows;
    for first_row in (0..n_rows).step_by(SIDE) {
        for first in (0..width).step_by(SIDE) {
            for row in first_row..(first_row + SIDE).min(n_rows) {
                let to = &mut to[row * width..][first..(first + SIDE).min(width)];
                for (at, to) in to.iter_mut().enumerate() {
                    *to = from[(first + at) * n_rows + row];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::nn::{Activation, Linear, Mask, Pass, Residual};

    fn numbers(shape: &[usize], seed: usize) -> Tensor {
        let n: usize = shape.iter().product();
        let values = (0..n).map(|at| ((at * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5);
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).expect("a tensor")
    }

    fn expert(seed: usize, [width, inner]: [usize; 2]) -> Mlp {
        let linear = |out: usize, into: usize, seed: usize| {
            Linear::new(numbers(&[out, into], seed), numbers(&[out], seed + 1))
        };
        Mlp::new(
            linear(inner, width, seed),
            linear(width, inner, seed + 2),
            Activation::QuickGelu,
        )
    }

    #[test]
    fn rows_become_the_weighted_answers_of_the_experts_that_they_chose() {
        let (rows, width) = (37, 20);
        let experts: Vec<Mlp> = (0..5).map(|seed| expert(10 * seed, [width, 33])).collect();
        let (x, weights) = (numbers(&[rows, width], 7), numbers(&[rows, 2], 8));
        // The fourth expert has no row, and the last row no expert.
        let choices = [[0, 1], [1, 2], [2, 0], [4, 0]];
        let mut taken: Vec<Vec<Taken>> = vec![Vec::new(); experts.len()];
        for row in 0..rows - 1 {
            for (choice, &expert) in choices[row % 4].iter().enumerate() {
                taken[expert].push(Taken { row, choice });
            }
        }
        let mut expected = vec![0.0_f32; rows * width];
        let values = weights
            .flatten_all()
            .and_then(|all| all.to_vec1::<f32>())
            .expect("numbers");
        for (expert, taken) in experts.iter().zip(&taken) {
            for taken in taken {
                let row = x
                    .narrow(0, taken.row, 1)
                    .expect("a row")
                    .unsqueeze(0)
                    .expect("a batch");
                let nothing = row.zeros_like().expect("zeros");
                let none: Option<&Mask> = None;
                let answer = expert
                    .forward(&row, Residual::plain(&nothing), none, &Pass::new())
                    .and_then(|answer| answer.flatten_all()?.to_vec1::<f32>())
                    .expect("an answer");
                let weight = values[2 * taken.row + taken.choice];
                for (sum, answer) in expected[taken.row * width..].iter_mut().zip(answer) {
                    *sum += weight * answer;
                }
            }
        }
        let served = |n_threads: usize| {
            let mut out = vec![0.0; rows * width];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            pool.build()
                .expect("threads")
                .install(|| serve(&experts, &taken, &weights, &x, &mut out))
                .expect("served");
            out
        };
        let alone = served(1);
        for (found, expected) in alone.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
        assert!(
            alone[(rows - 1) * width..]
                .iter()
                .all(|&value| value == 0.0)
        );
        for n_threads in [2, 4, 8] {
            assert_eq!(served(n_threads), alone);
        }
    }

    #[test]
    fn answers_wait_in_waves_of_bounded_memory() {
        let one = expert(0, [4, 4]);
        let taken = vec![Taken { row: 0, choice: 0 }; 3 << 20];
        let all = vec![(&one, taken.as_slice()); 5];
        assert_eq!(wave(&all, 2), 2);
        assert_eq!(wave(&all, 1), 5);
        assert_eq!(wave(&all, 100), 1);
    }
}
