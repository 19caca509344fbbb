//! Drops whole residual branches and single numbers at random in training.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use merge::random::Draws;

use super::GivenDrops;
use crate::crossing;

/// Drop path and dropout of one pass.
///
/// Draws are keyed by seed, name and the number of the example in the whole batch, so they are the
/// same on every device, for every number of ranks and however the batch is cut.
#[derive(Clone, Default)]
pub struct Omission {
    /// The probability of leaving out a branch of the last block; it rises linearly from 0 at the
    /// first.
    pub drop_path: f64,
    /// The probability of leaving out a number at a dropout site: the multiway family has one after
    /// its text embedding, BERT three a layer and one after its embedding.
    pub dropout: f64,
    /// The seed of the draws.
    pub seed: u64,
    /// Tells this pass from all others under the same seed, e.g. `120/itm.positive`.
    pub name: String,
    /// The number of the first example in the whole batch.
    pub first: usize,
    /// Masks that take the place of draws at dropout sites, and of those of branches, which are called
    /// `block3.attn` and `block3.mlp`.
    pub given: Option<Arc<dyn GivenDrops>>,
}

impl fmt::Debug for Omission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Omission")
            .field("drop_path", &self.drop_path)
            .field("dropout", &self.dropout)
            .field("seed", &self.seed)
            .field("name", &self.name)
            .field("first", &self.first)
            .field("is_given", &self.given.is_some())
            .finish()
    }
}

impl Omission {
    /// The factor of a residual branch for each of `n` sequences, `(n)`: 0, or 1 over the
    /// probability of keeping it. `None` where nothing is left out.
    ///
    /// Huang et al. 2016, "Deep Networks with Stochastic Depth",
    /// <https://arxiv.org/abs/1603.09382>.
    ///
    /// # Errors
    /// When the device fails.
    pub fn branch(
        &self,
        block: usize,
        n_blocks: usize,
        branch: &str,
        n: usize,
        device: &Device,
    ) -> Result<Option<Tensor>> {
        let last = n_blocks.saturating_sub(1).max(1);
        let probability = self.drop_path * block as f64 / last as f64;
        if probability <= 0.0 {
            return Ok(None);
        }
        if let Some(given) = &self.given
            && let Some(kept) = given.kept(&format!("block{block}.{branch}"), self.first, &[n])?
        {
            if kept.len() != n {
                let found = kept.len();
                candle_core::bail!("{found} masks for {n} branches of block {block}");
            }
            let raised = raised(probability);
            let factor = |&kept: &u8| if kept == 0 { 0.0 } else { raised };
            let factors: Vec<f32> = kept.iter().map(factor).collect();
            return crossing::to_device(factors, n, device).map(Some);
        }
        let factors = self.factors(&format!("{block}.{branch}"), probability, self.first, n);
        crossing::to_device(factors, n, device).map(Some)
    }

    /// Leaves out numbers of `x: (b, ...)` and scales the others up. Draws go by example, and within it by
    /// position, so that those of tokens do not depend on the padding behind them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn dropout(&self, x: &Tensor) -> Result<Tensor> {
        let n = x.elem_count();
        if self.dropout <= 0.0 || n == 0 {
            return Ok(x.clone());
        }
        let mut factors = vec![0.0; n];
        let of_examples = factors.chunks_exact_mut(n / x.dim(0)?);
        for (example, factors) in of_examples.enumerate() {
            let key = format!("{}/dropout/{}", self.name, self.first + example);
            Draws::new(self.seed, &key).fill_uniform(0, factors);
        }
        keep_or_drop(&mut factors, self.dropout);
        scaled(x, factors)
    }

    fn factors(&self, of: &str, probability: f64, first: usize, n: usize) -> Vec<f32> {
        let mut draws = vec![0.0; n];
        Draws::new(self.seed, &format!("{}/{of}", self.name)).fill_uniform(first, &mut draws);
        keep_or_drop(&mut draws, probability);
        draws
    }
}

/// The factor of what stays where others are left out with this probability.
pub(super) fn raised(probability: f64) -> f32 {
    (1.0 / (1.0 - probability)) as f32
}

/// Turns uniform draws into factors: 0 with this probability, or what makes up for it.
pub(super) fn keep_or_drop(draws: &mut [f32], probability: f64) {
    let raised = raised(probability);
    for draw in draws {
        *draw = match f64::from(*draw) < probability {
            true => 0.0,
            false => raised,
        };
    }
}

/// `x` with a factor for every number.
pub(super) fn scaled(x: &Tensor, factors: Vec<f32>) -> Result<Tensor> {
    let factors = crossing::to_device(factors, x.shape(), x.device())?;
    x * factors.to_dtype(x.dtype())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn omission(first: usize) -> Omission {
        Omission {
            drop_path: 0.4,
            dropout: 0.25,
            seed: 3,
            name: "7/pass".into(),
            first,
            given: None,
        }
    }

    fn branch(first: usize, block: usize, n: usize) -> Option<Vec<f32>> {
        let factors = omission(first).branch(block, 5, "attn", n, &Device::Cpu);
        let factors = factors.expect("it draws");
        factors.map(|tensor| tensor.to_vec1().expect("numbers"))
    }

    #[test]
    fn the_first_block_is_never_left_out_and_the_last_as_often_as_asked_for() {
        assert_eq!(branch(0, 0, 8), None);
        let factors = branch(0, 4, 10_000).expect("factors");
        let left_out = factors.iter().filter(|factor| **factor == 0.0).count();
        // Five standard errors of sqrt(10000 · 0.4 · 0.6).
        assert!((left_out as f64 - 4000.0).abs() < 245.0, "{left_out}");
        let kept = 1.0 / 0.6_f32;
        assert!(
            factors
                .iter()
                .all(|f| *f == 0.0 || (*f - kept).abs() < 1e-6)
        );
    }

    #[test]
    fn draws_go_by_the_place_in_the_whole_batch() {
        let whole = branch(0, 3, 12).expect("factors");
        let rest = branch(5, 3, 7).expect("factors");
        assert_eq!(whole[5..], rest);
    }

    #[test]
    fn dropout_goes_by_example_and_place_whatever_the_padding() {
        let dropped = |first: usize, b: usize, t: usize| -> Vec<Vec<Vec<f32>>> {
            let ones = Tensor::ones((b, t, 4), candle_core::DType::F32, &Device::Cpu);
            let x = ones.and_then(|ones| omission(first).dropout(&ones));
            x.and_then(|x| x.to_vec3()).expect("numbers")
        };
        let (short, long) = (dropped(0, 3, 5), dropped(0, 3, 7));
        for (short, long) in short.iter().zip(&long) {
            assert_eq!(*short, long[..5]);
        }
        assert_ne!(long[0], long[1]);
        assert_eq!(dropped(1, 2, 7), long[1..]);
    }

    #[test]
    fn dropout_keeps_the_mean() {
        let ones = Tensor::ones((100, 100), candle_core::DType::F32, &Device::Cpu).expect("ones");
        let x = omission(0).dropout(&ones).expect("it drops");
        let mean = x
            .mean_all()
            .and_then(|mean| mean.to_scalar::<f32>())
            .expect("a mean");
        // Five standard errors of sqrt(1/3 / 10000).
        assert!((mean - 1.0).abs() < 0.029, "{mean}");
    }
}
