//! A head of words on a tape: the gradient of its largest weight goes to the sum at once, and where words are guessed,
//! logits of few rows are in memory at a time.

use candle_core::{Result, Tensor};

use super::{fits_slices, input_gradient, norm_backward, norm_into, output, weight_gradient};
use crate::nn::cpu::host::Host;
use crate::nn::cpu::pool::in_pool;
use crate::nn::cpu::{cross_entropy, slices};
use crate::nn::cross_entropy::check_targets;
use crate::nn::{
    Activation, Buffer, Buffers, Gradients, Guessed, LayerNorm, Linear, Recorded, Tape,
};

/// Logits that are in memory at a time where words are guessed. Fewer would read the decoder's weight too often.
const LOGITS_BYTES: usize = 16 << 20;

/// `decoder(norm(gelu(dense(x))))`, one of many classes for each row.
#[derive(Clone, Debug)]
pub(crate) struct WordHead {
    pub dense: Linear,
    pub norm: LayerNorm,
    pub decoder: Linear,
}

impl WordHead {
    /// Whether the head can run on slices.
    pub fn fits(&self, tape: &Tape, x: &Tensor) -> bool {
        let linear = [&self.dense, &self.decoder].into_iter();
        let weights = linear.flat_map(Linear::weights).chain(self.norm.weights());
        fits_slices(tape, x, weights)
    }

    /// The mean cross entropy of guessing `targets` from rows, `x: (n, d)`, as a segment of a tape. Logits are computed
    /// a few rows at a time, and again in the backward pass.
    ///
    /// # Errors
    /// When there are not as many targets as rows, a target is no class, or shapes do not fit.
    pub fn record_guess(&self, tape: &Tape, x: &Tensor, targets: &[u32]) -> Result<Guessed> {
        let own = x.detach().contiguous()?;
        let (n, classes) = (own.dim(0)?, self.decoder.weight().dim(0)?);
        check_targets(targets, (n, classes))?;
        let buffers = tape.buffers().clone();
        let (before, sum, n_right) = in_pool(|| self.judge(&own, targets, &buffers))?;
        let run = Guess {
            head: self.clone(),
            x: own,
            targets: targets.to_vec(),
            before,
            buffers,
        };
        let mean = (sum / n as f64) as f32;
        Ok(Guessed {
            mean: tape.record_values(vec![x.clone()], vec![mean], &().into(), Box::new(run))?,
            n_right: n_right as f64,
        })
    }

    /// The numbers before GELU, the sum of the losses, and the number of rows guessed right.
    fn judge(
        &self,
        x: &Tensor,
        targets: &[u32],
        buffers: &Buffers,
    ) -> Result<(Buffer, f64, usize)> {
        let before = output(&self.dense, Host::of(x)?.values(), buffers)?;
        let normed = self.normed(&self.active(&before, buffers), buffers)?;
        let (mut sum, mut n_right) = (0.0, 0);
        for (normed, targets) in self.pieces(&normed, targets)? {
            let logits = output(&self.decoder, normed, buffers)?;
            let (of_piece, right) = cross_entropy::judge(&logits, targets);
            sum += of_piece;
            n_right += right;
        }
        Ok((before, sum, n_right))
    }

    /// Rows in pieces whose logits take at most [`LOGITS_BYTES`], with their targets.
    fn pieces<'a>(
        &self,
        normed: &'a [f32],
        targets: &'a [u32],
    ) -> Result<impl Iterator<Item = (&'a [f32], &'a [u32])> + use<'a>> {
        let (classes, width) = self.decoder.weight().dims2()?;
        let n_rows = (LOGITS_BYTES / size_of::<f32>() / classes.max(1)).max(1);
        Ok((normed.chunks(n_rows * width)).zip(targets.chunks(n_rows)))
    }

    fn active(&self, before: &[f32], buffers: &Buffers) -> Buffer {
        let mut active = buffers.take(before.len());
        slices::activate_into(&mut active, before, Activation::Gelu);
        active
    }

    fn normed(&self, active: &[f32], buffers: &Buffers) -> Result<Buffer> {
        let mut normed = buffers.take(active.len());
        norm_into(&mut normed, active, &self.norm)?;
        Ok(normed)
    }
}

/// A head that has guessed words.
struct Guess {
    head: WordHead,
    x: Tensor,
    targets: Vec<u32>,
    /// Before GELU.
    before: Buffer,
    buffers: Buffers,
}

impl Guess {
    /// The gradient by the decoder's input, piece by piece; those by its weights are added.
    fn by_normed(&self, active: &[f32], share: f32, gradients: &mut Gradients) -> Result<Buffer> {
        let Self { head, buffers, .. } = self;
        let normed = head.normed(active, buffers)?;
        let mut by_normed = buffers.take(normed.len());
        let mut left = &mut by_normed[..];
        for (normed, targets) in head.pieces(&normed, &self.targets)? {
            let mut logits = output(&head.decoder, normed, buffers)?;
            cross_entropy::gradient_in_place(&mut logits, targets, share);
            let weight = head.decoder.weight();
            let by_bias = weight_gradient(weight, &logits, normed, gradients, buffers)?;
            gradients.add_values(head.decoder.bias(), &by_bias);
            let by_piece = input_gradient(&head.decoder, &logits, buffers)?;
            let (of_piece, others) = left.split_at_mut(by_piece.len());
            of_piece.copy_from_slice(&by_piece);
            left = others;
        }
        Ok(by_normed)
    }
}

impl Recorded for Guess {
    fn backward(
        mut self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let share = by_output.to_scalar::<f32>()? / self.targets.len() as f32;
        in_pool(|| {
            let active = self.head.active(&self.before, &self.buffers);
            let by_normed = self.by_normed(&active, share, gradients)?;
            let Self {
                head,
                x,
                before,
                buffers,
                ..
            } = &mut *self;
            let mut by_active = buffers.take(active.len());
            by_active.fill(0.0);
            norm_backward(&mut by_active, &by_normed, &active, &head.norm, gradients)?;
            slices::activate_backward_in_place(&mut by_active, before, Activation::Gelu);
            let (weight, input) = (head.dense.weight(), Host::of(x)?);
            let by_bias = weight_gradient(weight, &by_active, input.values(), gradients, buffers)?;
            gradients.add_values(head.dense.bias(), &by_bias);
            let by_x = input_gradient(&head.dense, &by_active, buffers)?.to_vec();
            Ok(vec![Some(Tensor::from_vec(by_x, x.shape(), x.device())?)])
        })
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::nn::Gradient;

    fn variable(seed: f32, shape: &[usize]) -> Var {
        let n = shape.iter().product::<usize>();
        let values = (0..n).map(|at| (at as f32 * 0.37 + seed).sin());
        let values = values.collect::<Vec<_>>();
        Var::from_vec(values, shape, &Device::Cpu).expect("a variable")
    }

    /// More rows than logits are in memory of: two pieces give the same numbers as one graph.
    #[test]
    fn words_guessed_piece_by_piece_teach_what_all_at_once_teach() -> Result<()> {
        let (n, width, classes) = (180, 3, 40_000);
        assert!(n * classes * size_of::<f32>() > LOGITS_BYTES);
        let shapes: [&[usize]; 7] = [
            &[n, width],
            &[width, width],
            &[width],
            &[width],
            &[width],
            &[classes, width],
            &[classes],
        ];
        let variables: Vec<Var> = (0..)
            .zip(shapes)
            .map(|(seed, s)| variable(seed as f32, s))
            .collect();
        let of = |at: usize| variables[at].as_tensor().clone();
        let head = WordHead {
            dense: Linear::new(of(1), of(2)),
            norm: LayerNorm::new(of(3), of(4), 1e-12),
            decoder: Linear::new(of(5), of(6)),
        };
        let targets: Vec<u32> = (0..n).map(|row| (row * 211 % classes) as u32).collect();
        let logits = head.norm.forward(&head.dense.forward_gelu(&of(0))?)?;
        let expected = Guessed::by(&head.decoder.forward(&logits)?, &targets)?;
        let mut wanted = Gradients::of(&variables);
        wanted.absorb(&(&expected.mean * 2.0)?.backward()?)?;
        let tape = Tape::new();
        assert!(head.fits(&tape, &of(0)));
        let found = head.record_guess(&tape, &of(0), &targets)?;
        assert_eq!(found.n_right, expected.n_right);
        let [mean, expected] = [&found.mean, &expected.mean].map(|mean| mean.to_scalar::<f32>());
        let (mean, expected) = (mean?, expected?);
        assert!(
            (mean - expected).abs() < 1e-5 * expected,
            "{mean}, {expected}"
        );
        let mut gradients = Gradients::of(&variables);
        tape.backward(&(found.mean * 2.0)?, &mut gradients)?;
        for (at, variable) in variables.iter().enumerate() {
            let [found, wanted] = [&gradients, &wanted].map(|all| match all.get(variable) {
                Some(Gradient::Host(values)) => values.to_vec(),
                _ => panic!("variable {at} has no gradient in memory"),
            });
            let norm = |of: &mut dyn Iterator<Item = f32>| {
                of.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt()
            };
            let error = norm(&mut found.iter().zip(&wanted).map(|(a, b)| a - b));
            let size = norm(&mut wanted.iter().copied());
            assert!(
                error <= 1e-4 * size,
                "variable {at} is off by {error} of {size}"
            );
        }
        Ok(())
    }
}
