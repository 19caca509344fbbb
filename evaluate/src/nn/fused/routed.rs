//! Networks that serve a few rows each, on slices: the experts behind a router.

use candle_core::{Result, Tensor};

use super::{OnSlices, fits_slices, input_gradient, output, record_on_slices, weight_gradient};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::math::sum_of;
use crate::nn::cpu::slices;
use crate::nn::{Buffer, Buffers, Gradients, Mlp, Tape};

/// A row that an expert serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub row: usize,
    /// Which of the row's choices this is.
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
}

/// Rows of `x`, which has `width` numbers a row.
fn gather(x: &[f32], taken: &[Taken], width: usize, buffers: &Buffers) -> Buffer {
    let mut part = buffers.take(taken.len() * width);
    for (part, taken) in part.chunks_exact_mut(width).zip(taken) {
        part.copy_from_slice(&x[taken.row * width..][..width]);
    }
    part
}

impl OnSlices for RoutedExperts {
    /// Each expert's inner numbers before the activation.
    type Inside = Vec<Buffer>;

    fn forward(&self, x: &Tensor, out: &mut [f32], buffers: &Buffers) -> Result<Vec<Buffer>> {
        let ((_, width), (_, n_choices)) = (x.dims2()?, self.weights.dims2()?);
        let (x, weights) = (Host::of(x)?, Host::of(&self.weights)?);
        let weights = weights.values();
        out.fill(0.0);
        let mut inside = Vec::with_capacity(self.experts.len());
        for (expert, taken) in self.experts.iter().zip(&self.taken) {
            if taken.is_empty() {
                inside.push(buffers.take(0));
                continue;
            }
            let before = {
                let part = gather(x.values(), taken, width, buffers);
                output(expert.fc1(), &part, buffers)?
            };
            let mut after = buffers.take(before.len());
            slices::activate_into(&mut after, &before, expert.activation());
            let answers = output(expert.fc2(), &after, buffers)?;
            for (answer, taken) in answers.chunks_exact(width).zip(taken) {
                let weight = weights[taken.row * n_choices + taken.choice];
                let out = &mut out[taken.row * width..][..width];
                for (out, answer) in out.iter_mut().zip(answer) {
                    *out += weight * answer;
                }
            }
            inside.push(before);
        }
        Ok(inside)
    }

    fn backward(
        &self,
        x: &Tensor,
        g: &mut [f32],
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
        for ((expert, taken), mut before) in self.experts.iter().zip(&self.taken).zip(inside) {
            if taken.is_empty() {
                // An expert that nobody chose has a gradient all the same, of zeros.
                for weight in expert.weights() {
                    gradients.host(weight);
                }
                continue;
            }
            let (fc1, fc2) = (expert.fc1(), expert.fc2());
            let inner = fc1.weight().dim(0)?;
            let mut part_g = gather(&by_output, taken, width, buffers);
            let mut by_inner = input_gradient(fc2, &part_g, buffers)?; // (r, f)
            let mut after = buffers.take(before.len());
            slices::activate_into(&mut after, &before, expert.activation());
            {
                let bias = Host::of(fc2.bias())?;
                let of_rows = part_g.chunks_exact_mut(width).zip(taken);
                let of_inner = by_inner.chunks_exact_mut(inner);
                let of_inner = of_inner.zip(after.chunks_exact(inner));
                for ((part_g, taken), (by_inner, after)) in of_rows.zip(of_inner) {
                    let place = taken.row * n_choices + taken.choice;
                    by_weights[place] = sum_of(by_inner, after, |a, b| a * b)
                        + sum_of(part_g, bias.values(), |a, b| a * b);
                    let weight = weights[place];
                    part_g.iter_mut().for_each(|g| *g *= weight);
                    by_inner.iter_mut().for_each(|g| *g *= weight);
                }
            }
            let by_bias = weight_gradient(fc2.weight(), &part_g, &after, gradients, buffers)?;
            gradients.add_values(fc2.bias(), &by_bias);
            drop((after, part_g));
            slices::activate_backward_in_place(&mut by_inner, &mut before, expert.activation());
            drop(before);
            let part = gather(x.values(), taken, width, buffers);
            let by_bias = weight_gradient(fc1.weight(), &by_inner, &part, gradients, buffers)?;
            gradients.add_values(fc1.bias(), &by_bias);
            let by_part = input_gradient(fc1, &by_inner, buffers)?;
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
