//! Experts that are shared out among ranks: each holds its own, and computes them for the tokens of all.
//!
//! Rows travel to the ranks of their experts and answers back, and in the backward pass gradients likewise (Lepikhin et
//! al. 2020, "GShard", <https://arxiv.org/abs/2006.16668>, section 3). Rows travel as f32 through memory.

use std::rc::Rc;

use candle_core::{DType, Device, Result, Tensor, Var};

use super::fits_slices;
use super::routed::{Taken, answer, learn, learn_nothing};
use crate::nn::cpu::pool::in_pool;
use crate::nn::{Buffer, Buffers, Gradients, Mlp, Pass, Recorded, Residual, Tape};
use crate::ranks::{Collective, ExpertShare};

/// The experts of this rank, the rows that own tokens send to those of all ranks, and how much the rows listen to them:
/// row `r` becomes `Σ w[r, choice] expert(x[r])` over the experts that take it.
pub(crate) struct ExchangedExperts {
    /// Those of this rank's [`ExpertShare`].
    pub own: Vec<Mlp>,
    /// For each expert of all ranks; no row comes twice in one.
    pub taken: Vec<Vec<Taken>>,
    /// `(rows, choices)`.
    pub weights: Tensor,
    pub ranks: Rc<dyn Collective>,
}

/// The values that an own expert keeps for its backward pass.
enum Kept {
    /// Nobody chose it.
    Nothing,
    /// Rows, and its inner numbers before the activation.
    Slices(Buffer, Buffer),
    /// Rows and answers with their graph, `(r, d)`.
    Graph(Var, Tensor),
}

/// Own experts for the rows of all ranks, after their forward pass.
struct Run {
    experts: ExchangedExperts,
    buffers: Buffers,
    /// For each own expert, how many rows each rank has sent.
    counts: Vec<Vec<usize>>,
    kept: Vec<Kept>,
    width: usize,
    device: Device,
    dtype: DType,
}

fn lost(what: &str) -> candle_core::Error {
    candle_core::Error::Msg(format!("ranks that share experts do not agree: {what}"))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytemuck::pod_collect_to_vec(bytes)
}

/// The values of a tensor in memory, in f32.
fn on_host(x: &Tensor) -> Result<Vec<f32>> {
    x.to_device(&Device::Cpu)?
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()
}

impl ExchangedExperts {
    fn rank_of(&self, expert: usize) -> usize {
        ExpertShare::of(self.ranks.as_ref()).owner(expert, self.taken.len())
    }

    fn exchange(&self, messages: &[Vec<f32>]) -> Result<Vec<Vec<f32>>> {
        let bytes = messages.iter();
        let bytes: Vec<Vec<u8>> = bytes
            .map(|row| bytemuck::cast_slice(row).to_vec())
            .collect();
        let received = self.ranks.exchange(&bytes);
        let received = received.map_err(|error| lost(&error.to_string()))?;
        Ok(received.iter().map(|bytes| floats(bytes)).collect())
    }

    /// The number of rows that each rank sends to each own expert.
    fn counts(&self) -> Result<Vec<Vec<usize>>> {
        let mut messages = vec![Vec::new(); self.ranks.size()];
        for (expert, taken) in self.taken.iter().enumerate() {
            let n = (taken.len() as u32).to_le_bytes();
            messages[self.rank_of(expert)].extend_from_slice(&n);
        }
        let received = self.ranks.exchange(&messages);
        let received = received.map_err(|error| lost(&error.to_string()))?;
        let counts = (0..self.own.len()).map(|nth| {
            let of_ranks = received.iter().map(|bytes| {
                let counts = bytes.as_chunks::<4>().0;
                let count = counts.get(nth).ok_or_else(|| lost("a count is missing"))?;
                Ok(u32::from_le_bytes(*count) as usize)
            });
            of_ranks.collect::<Result<Vec<usize>>>()
        });
        counts.collect()
    }

    /// Sends `width` numbers a row to the ranks of their experts: `row` writes those of one.
    fn send(
        &self,
        width: usize,
        mut row: impl FnMut(Taken, &mut Vec<f32>),
    ) -> Result<Vec<Vec<f32>>> {
        let mut messages: Vec<Vec<f32>> = vec![Vec::new(); self.ranks.size()];
        for (expert, taken) in self.taken.iter().enumerate() {
            let message = &mut messages[self.rank_of(expert)];
            message.reserve(taken.len() * width);
            taken.iter().for_each(|&taken| row(taken, message));
        }
        self.exchange(&messages)
    }

    /// Sends `width` numbers a row back to where rows came from, and hands those that come back to `row`.
    fn send_back(
        &self,
        width: usize,
        replies: &[Vec<f32>],
        mut row: impl FnMut(Taken, &[f32]),
    ) -> Result<()> {
        let received = self.exchange(replies)?;
        let mut rests: Vec<&[f32]> = received.iter().map(Vec::as_slice).collect();
        for (expert, taken) in self.taken.iter().enumerate() {
            let rest = &mut rests[self.rank_of(expert)];
            for &taken in taken {
                let split = rest.split_at_checked(width);
                let (numbers, behind) = split.ok_or_else(|| lost("answers are missing"))?;
                row(taken, numbers);
                *rest = behind;
            }
        }
        match rests.iter().all(|rest| rest.is_empty()) {
            true => Ok(()),
            false => Err(lost("there are more answers than questions")),
        }
    }

    /// Runs them on `x: (rows, d)` and notes them on the tape. Every rank that shares experts does so at the same time.
    pub fn record(self, tape: &Tape, x: &Tensor) -> Result<Tensor> {
        let is_fusible = fits_slices(tape, x, self.own.iter().flat_map(Mlp::weights));
        let weights = self.weights.clone();
        let (rows, width) = x.dims2()?;
        let values = on_host(&x.detach())?;
        let listened = on_host(&weights.detach())?;
        let n_choices = weights.dim(1)?;
        let counts = self.counts()?;
        let received = self.send(width, |taken, message| {
            message.extend_from_slice(&values[taken.row * width..][..width]);
        })?;
        let mut run = Run {
            counts,
            kept: Vec::new(),
            width,
            buffers: tape.buffers().clone(),
            device: x.device().clone(),
            dtype: x.dtype(),
            experts: self,
        };
        let parts = run.parts(&received, width)?;
        let mut answers = Vec::with_capacity(parts.len());
        let mut kept = Vec::with_capacity(parts.len());
        for (expert, part) in run.experts.own.iter().zip(parts) {
            let (found, keeps) = run.answer(expert, part, is_fusible)?;
            answers.push(found);
            kept.push(keeps);
        }
        run.kept = kept;
        let replies = run.replies(&answers, width);
        let mut out = vec![0.0; rows * width];
        run.experts.send_back(width, &replies, |taken, answer| {
            let weight = listened[taken.row * n_choices + taken.choice];
            let out = &mut out[taken.row * width..][..width];
            out.iter_mut()
                .zip(answer)
                .for_each(|(out, answer)| *out += weight * answer);
        })?;
        let out = Tensor::from_vec(out, (rows, width), &Device::Cpu)?;
        let out = out.to_device(x.device())?.to_dtype(x.dtype())?;
        tape.record(vec![x.clone(), weights], &out, Box::new(run))
    }
}

impl Run {
    /// Rows of `width` numbers for each own expert, those of each rank one after the other.
    fn parts(&self, received: &[Vec<f32>], width: usize) -> Result<Vec<Vec<f32>>> {
        let mut rests: Vec<&[f32]> = received.iter().map(Vec::as_slice).collect();
        let mut parts = Vec::with_capacity(self.counts.len());
        for counts in &self.counts {
            let mut part = Vec::with_capacity(counts.iter().sum::<usize>() * width);
            for (rest, n) in rests.iter_mut().zip(counts) {
                let split = rest.split_at_checked(n * width);
                let (rows, behind) = split.ok_or_else(|| lost("rows are missing"))?;
                part.extend_from_slice(rows);
                *rest = behind;
            }
            parts.push(part);
        }
        Ok(parts)
    }

    /// The answers of `width` numbers a row for each rank, by own expert.
    fn replies(&self, answers: &[Vec<f32>], width: usize) -> Vec<Vec<f32>> {
        let mut replies = vec![Vec::new(); self.experts.ranks.size()];
        for (answers, counts) in answers.iter().zip(&self.counts) {
            let mut from = 0;
            for (reply, n) in replies.iter_mut().zip(counts) {
                reply.extend_from_slice(&answers[from..from + n * width]);
                from += n * width;
            }
        }
        replies
    }

    fn answer(&self, expert: &Mlp, part: Vec<f32>, is_fusible: bool) -> Result<(Vec<f32>, Kept)> {
        if part.is_empty() {
            return Ok((Vec::new(), Kept::Nothing));
        }
        if is_fusible {
            let mut rows = self.buffers.take(part.len());
            rows.copy_from_slice(&part);
            let buffers = &self.buffers;
            let [before, answers] = in_pool(|| answer(expert, &rows, buffers))?;
            return Ok((answers.to_vec(), Kept::Slices(rows, before)));
        }
        let n = part.len() / self.width;
        let rows = Tensor::from_vec(part, (n, self.width), &Device::Cpu)?;
        let rows = Var::from_tensor(&rows.to_device(&self.device)?.to_dtype(self.dtype)?)?;
        let sequence = rows.unsqueeze(0)?;
        let nothing = sequence.detach().zeros_like()?;
        let residual = Residual::plain(&nothing);
        let answers = expert.forward(&sequence, residual, None, &Pass::new())?;
        let answers = answers.squeeze(0)?;
        Ok((on_host(&answers.detach())?, Kept::Graph(rows, answers)))
    }

    /// Gradients by rows, each followed by the one by how much it listens, from `width` numbers by the answer to each row
    /// and how much it listens.
    fn learn(
        &self,
        expert: &Mlp,
        kept: Kept,
        part: &[f32],
        gradients: &mut Gradients,
    ) -> Result<Vec<f32>> {
        let (width, n) = (self.width, part.len() / (self.width + 1));
        let mut part_g = self.buffers.take(n * width);
        let mut listened = Vec::with_capacity(n);
        for (part_g, row) in part_g
            .chunks_exact_mut(width)
            .zip(part.chunks_exact(width + 1))
        {
            part_g.copy_from_slice(&row[..width]);
            listened.push(row[width]);
        }
        let (by_part, by_listened): (Vec<f32>, Vec<f32>) = match kept {
            Kept::Nothing => {
                learn_nothing(expert, gradients)?;
                (Vec::new(), Vec::new())
            }
            Kept::Slices(rows, before) => {
                let (by_answers, buffers) = ((part_g, listened.as_slice()), &self.buffers);
                let (by_part, by_listened) =
                    in_pool(|| learn(expert, &rows, by_answers, before, gradients, buffers))?;
                (by_part.to_vec(), by_listened)
            }
            Kept::Graph(rows, answers) => {
                let g = Tensor::from_slice(&part_g, (n, width), &Device::Cpu)?;
                let g = g.to_device(&self.device)?;
                let by_listened = (answers.detach().to_dtype(DType::F32)? * &g)?.sum(1)?;
                let listened = Tensor::from_vec(listened, (n, 1), &Device::Cpu)?;
                let g = g.broadcast_mul(&listened.to_device(&self.device)?)?;
                let found = (answers * g.to_dtype(self.dtype)?)?.sum_all()?.backward()?;
                gradients.absorb(&found)?;
                let by_part = found.get(rows.as_tensor());
                let by_part = by_part.ok_or_else(|| lost("rows have no gradient"))?;
                (on_host(by_part)?, on_host(&by_listened)?)
            }
        };
        let mut replies = Vec::with_capacity(part.len());
        for (by_row, by_listened) in by_part.chunks_exact(width).zip(by_listened) {
            replies.extend_from_slice(by_row);
            replies.push(by_listened);
        }
        Ok(replies)
    }
}

impl Recorded for Run {
    fn backward(
        mut self: Box<Self>,
        by_output: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Vec<Option<Tensor>>> {
        let (rows, width) = by_output.dims2()?;
        let g = on_host(by_output)?;
        let weights = &self.experts.weights;
        let (listened, n_choices) = (on_host(&weights.detach())?, weights.dim(1)?);
        let place = |taken: Taken| taken.row * n_choices + taken.choice;
        let received = self.experts.send(width + 1, |taken, message| {
            message.extend_from_slice(&g[taken.row * width..][..width]);
            message.push(listened[place(taken)]);
        })?;
        let kept = std::mem::take(&mut self.kept);
        let parts = self.parts(&received, width + 1)?;
        let own = self.experts.own.iter().zip(kept).zip(&parts);
        let replies = own.map(|((expert, kept), part)| self.learn(expert, kept, part, gradients));
        let replies = self.replies(&replies.collect::<Result<Vec<_>>>()?, width + 1);
        let mut by_x = vec![0.0; rows * width];
        let mut by_weights = vec![0.0; listened.len()];
        self.experts.send_back(width + 1, &replies, |taken, row| {
            let by_x = &mut by_x[taken.row * width..][..width];
            by_x.iter_mut()
                .zip(row)
                .for_each(|(sum, by_row)| *sum += by_row);
            by_weights[place(taken)] = row[width];
        })?;
        let tensor = |values: Vec<f32>, n: usize| {
            let tensor = Tensor::from_vec(values, (rows, n), &Device::Cpu)?;
            tensor.to_device(&self.device)
        };
        let by_x = tensor(by_x, width)?.to_dtype(self.dtype)?;
        Ok(vec![Some(by_x), Some(tensor(by_weights, n_choices)?)])
    }
}
