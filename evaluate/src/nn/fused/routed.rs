//! Networks that serve a few rows each, on slices: the experts behind a router.

use candle_core::{Result, Tensor};

use super::served;
use super::{OnSlices, fits_slices, input_gradient, output, record_on_slices, weight_gradient};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::math::sum_of;
use crate::nn::cpu::pool::in_pool;
use crate::nn::cpu::{slices, takes};
use crate::nn::{Buffer, Buffers, Gradients, Mlp, Tape};

/// A row that an expert serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub row: usize,
    /// The number of this choice among the row's.
    pub choice: usize,
}

/// Experts, the rows that each serves, and how much the rows listen to them: row `r` becomes
/// `Σ w[r, choice] expert(x[r])` over the experts that take it.
pub(crate) struct RoutedExperts {
    pub experts: Vec<Mlp>,
    /// For each expert; no row comes twice in one.
    pub taken: Vec<Vec<Taken>>,
    /// `(rows, choices)`.
    pub weights: Tensor,
}

impl RoutedExperts {
    /// Whether they can run on slices.
    pub fn is_fusible(&self, tape: &Tape, x: &Tensor) -> bool {
        fits_slices(tape, x, self.experts.iter().flat_map(Mlp::weights))
    }

    /// Runs them on `x: (rows, d)` and notes them on the tape.
    pub fn record(self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        let weights = self.weights.clone();
        let own = Self {
            weights: weights.detach().contiguous()?,
            ..self
        };
        record_on_slices(tape, own, x, Some(&weights))
    }

    /// Runs them on `x: (rows, d)` without gradients; `None` where they cannot run on slices, or something is to be
    /// learned.
    pub fn run(self, x: &Tensor) -> Result<Option<Tensor>> {
        let tensors = || {
            self.experts
                .iter()
                .flat_map(Mlp::weights)
                .chain([x, &self.weights])
        };
        if !tensors().all(takes) || tensors().any(Tensor::track_op) {
            return Ok(None);
        }
        let (x, mut out) = (x.contiguous()?, vec![0.0; x.elem_count()]);
        let weights = self.weights.contiguous()?;
        in_pool(|| served::serve(&self.experts, &self.taken, &weights, &x, &mut out))?;
        Tensor::from_vec(out, x.shape(), x.device()).map(Some)
    }

    /// Adds up what experts answer; `inside` receives each one's inner numbers before the activation.
    fn each(
        &self,
        x: &Tensor,
        out: &mut [f32],
        buffers: &Buffers,
        mut inside: impl FnMut(Buffer),
    ) -> Result<()> {
        let ((_, width), (_, n_choices)) = (x.dims2()?, self.weights.dims2()?);
        let (x, weights) = (Host::of(x)?, Host::of(&self.weights)?);
        let weights = weights.values();
        out.fill(0.0);
        for (expert, taken) in self.experts.iter().zip(&self.taken) {
            if taken.is_empty() {
                inside(buffers.take(0));
                continue;
            }
            let part = gather(x.values(), taken, width, buffers);
            let [before, answers] = answer(expert, &part, buffers)?;
            for (answer, taken) in answers.chunks_exact(width).zip(taken) {
                let weight = weights[taken.row * n_choices + taken.choice];
                let out = &mut out[taken.row * width..][..width];
                for (out, answer) in out.iter_mut().zip(answer) {
                    *out += weight * answer;
                }
            }
            inside(before);
        }
        Ok(())
    }
}

/// Rows of `x`, which has `width` numbers a row.
fn gather(x: &[f32], taken: &[Taken], width: usize, buffers: &Buffers) -> Buffer {
    let mut part = buffers.take(taken.len() * width);
    for (part, taken) in part.chunks_exact_mut(width).zip(taken) {
        part.copy_from_slice(&x[taken.row * width..][..width]);
    }
    part
}

/// An expert's answers to rows, and its inner numbers before the activation.
pub(super) fn answer(expert: &Mlp, part: &[f32], buffers: &Buffers) -> Result<[Buffer; 2]> {
    let before = output(expert.fc1(), part, buffers)?;
    let mut after = buffers.take(before.len());
    slices::activate_into(&mut after, &before, expert.activation());
    let answers = output(expert.fc2(), &after, buffers)?;
    Ok([before, answers])
}

/// Gradients by rows that an expert has answered and by how much they listen, from those by its weighted answers,
/// `part_g`; those by its weights are added to `gradients`.
pub(super) fn learn(
    expert: &Mlp,
    part: &[f32],
    (mut part_g, weights): (Buffer, &[f32]),
    mut before: Buffer,
    gradients: &mut Gradients,
    buffers: &Buffers,
) -> Result<(Buffer, Vec<f32>)> {
    let (fc1, fc2) = (expert.fc1(), expert.fc2());
    let (inner, width) = fc1.weight().dims2()?;
    let mut by_inner = input_gradient(fc2, &part_g, buffers)?; // (r, f)
    let mut after = buffers.take(before.len());
    slices::activate_into(&mut after, &before, expert.activation());
    let bias = Host::of(fc2.bias())?;
    let of_rows = part_g.chunks_exact_mut(width).zip(weights);
    let of_inner = by_inner.chunks_exact_mut(inner);
    let of_inner = of_inner.zip(after.chunks_exact(inner));
    let mut by_weights = Vec::with_capacity(weights.len());
    for ((part_g, weight), (by_inner, after)) in of_rows.zip(of_inner) {
        by_weights.push(
            sum_of(by_inner, after, |a, b| a * b) + sum_of(part_g, bias.values(), |a, b| a * b),
        );
        part_g.iter_mut().for_each(|g| *g *= weight);
        by_inner.iter_mut().for_each(|g| *g *= weight);
    }
    let by_bias = weight_gradient(fc2.weight(), &part_g, &after, gradients, buffers)?;
    gradients.add_values(fc2.bias(), &by_bias);
    drop((after, part_g));
    slices::activate_backward_in_place(&mut by_inner, &mut before, expert.activation());
    drop(before);
    let by_bias = weight_gradient(fc1.weight(), &by_inner, part, gradients, buffers)?;
    gradients.add_values(fc1.bias(), &by_bias);
    Ok((input_gradient(fc1, &by_inner, buffers)?, by_weights))
}

/// Gives an expert that no token chose a gradient of zeros, so that its weights decay.
pub(super) fn learn_nothing(expert: &Mlp, gradients: &mut Gradients) -> Result<()> {
    for weight in expert.weights() {
        if gradients.host(weight).is_none() {
            gradients.add(weight, &weight.zeros_like()?)?;
        }
    }
    Ok(())
}

impl OnSlices for RoutedExperts {
    /// Each expert's inner numbers before the activation.
    type Inside = Vec<Buffer>;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Vec<Buffer>> {
        let mut inside = Vec::with_capacity(self.experts.len());
        self.each(x, out, buffers, |before| inside.push(before))?;
        Ok(inside)
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut Vec<f32>,
        inside: Vec<Buffer>,
        gradients: &mut Gradients,
        buffers: &Buffers,
    ) -> Result<Vec<Option<Tensor>>> {
        let ((_, width), (rows, n_choices)) = (x.dims2()?, self.weights.dims2()?);
        let (x, weights) = (Host::of(x)?, Host::of(&self.weights)?);
        let weights = weights.values();
        let mut by_output = buffers.take(g.len());
        by_output.copy_from_slice(g);
        g.fill(0.0);
        let mut by_weights = vec![0.0; rows * n_choices];
        for ((expert, taken), before) in self.experts.iter().zip(&self.taken).zip(inside) {
            if taken.is_empty() {
                learn_nothing(expert, gradients)?;
                continue;
            }
            let place = |taken: &Taken| taken.row * n_choices + taken.choice;
            let listened: Vec<f32> = taken.iter().map(|taken| weights[place(taken)]).collect();
            let part = gather(x.values(), taken, width, buffers);
            let part_g = gather(&by_output, taken, width, buffers);
            let by_answers = (part_g, listened.as_slice());
            let (by_part, by_listened) =
                learn(expert, &part, by_answers, before, gradients, buffers)?;
            for (taken, by_listened) in taken.iter().zip(by_listened) {
                by_weights[place(taken)] = by_listened;
            }
            for (by_part, taken) in by_part.chunks_exact(width).zip(taken) {
                let g = &mut g[taken.row * width..][..width];
                for (g, by_part) in g.iter_mut().zip(by_part) {
                    *g += by_part;
                }
            }
        }
        let by_weights = Tensor::from_vec(by_weights, (rows, n_choices), self.weights.device())?;
        Ok(vec![Some(by_weights)])
    }
}
