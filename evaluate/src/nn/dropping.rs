//! Dropout at a site of a pass.

use std::fmt;
use std::sync::Arc;

use candle_core::{Result, Tensor};
use merge::random::Draws;

use super::Omission;
use super::omission::{keep_or_drop, raised, scaled};

/// Rows of a matrix of attention shares stand this far apart among the draws of an example, so that
/// what a pair of tokens draws does not depend on the padding.
const ROW: usize = 1 << 16;

/// Masks that take the place of draws, to compute what another program computed under its own.
pub trait GivenDrops: Send + Sync {
    /// The numbers of a tensor `(b, ...)` that `site` keeps, where the first example is number `first` of the whole
    /// batch: other than 0 for a kept number. `None` leaves the site to draws.
    ///
    /// # Errors
    /// Where a mask is missing or of another shape; it ends the pass.
    fn kept(&self, site: &str, first: usize, shape: &[usize]) -> Result<Option<Vec<u8>>>;
}

/// Dropout at one site: owned, so that a recorded segment draws the same when it runs again.
///
/// Draws are keyed by seed, pass (which holds the step), site (which holds the layer) and example of
/// the whole batch, and within an example by position. So a part of a batch draws the numbers that the whole
/// batch draws, whatever its padding.
#[derive(Clone, Default)]
pub struct Dropping(Option<Arc<Site>>);

struct Site {
    omission: Omission,
    name: String,
}

impl Dropping {
    /// Nothing is left out.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    pub(super) fn at(omission: &Omission, name: String) -> Self {
        if omission.dropout <= 0.0 {
            return Self(None);
        }
        let omission = omission.clone();
        Self(Some(Arc::new(Site { omission, name })))
    }

    /// Whether anything may be left out.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.0.is_some()
    }

    /// `x: (b, ...)` with numbers left out and the others scaled up by one over the share that stays.
    ///
    /// # Errors
    /// When the device fails.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self.factors(x.dims())? {
            Some(factors) => scaled(x, factors),
            None => Ok(x.clone()),
        }
    }

    /// The factor of every number of a tensor `(b, ...)`; `None` where all stay.
    ///
    /// # Errors
    /// As [`GivenDrops::kept`].
    pub fn factors(&self, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        match &self.0 {
            None => Ok(None),
            Some(site) => site.factors(shape).map(Some),
        }
    }
}

impl Site {
    fn factors(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let Omission {
            dropout,
            seed,
            ref name,
            first,
            ref given,
            ..
        } = self.omission;
        let n: usize = shape.iter().product();
        if let Some(given) = given
            && let Some(kept) = given.kept(&self.name, first, shape)?
        {
            if kept.len() != n {
                candle_core::bail!("{} masks for {n} numbers at `{}`", kept.len(), self.name);
            }
            let raised = raised(dropout);
            let factor = |&kept: &u8| if kept == 0 { 0.0 } else { raised };
            return Ok(kept.iter().map(factor).collect());
        }
        let mut factors = vec![0.0; n];
        if n == 0 {
            return Ok(factors);
        }
        let examples = shape.first().copied().unwrap_or(1);
        // Shares, `(b, h, n, m)`, have rows of their own; tokens, `(b, n, d)`, follow one another.
        let (queries, row) = match *shape {
            [_, _, queries, keys] => (queries, keys),
            _ => (1, n / examples),
        };
        for (example, factors) in factors.chunks_exact_mut(n / examples).enumerate() {
            let key = format!("{name}/{}/{}", self.name, first + example);
            let draws = Draws::new(seed, &key);
            for (index, factors) in factors.chunks_exact_mut(row).enumerate() {
                let (head, query) = (index / queries, index % queries);
                draws.fill_uniform((head * ROW + query) * ROW, factors);
            }
        }
        keep_or_drop(&mut factors, dropout);
        Ok(factors)
    }
}

impl fmt::Debug for Dropping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.0.as_ref().map(|site| &site.name);
        f.debug_tuple("Dropping").field(&site).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(first: usize, shape: &[usize]) -> Vec<f32> {
        let omission = Omission {
            dropout: 0.25,
            seed: 3,
            name: "7/pass".into(),
            first,
            ..Omission::default()
        };
        let dropping = Dropping::at(&omission, "text.layer0.ffn_output".into());
        let factors = dropping.factors(shape).expect("it draws");
        factors.expect("something is left out")
    }

    #[test]
    fn a_part_of_a_batch_draws_what_the_whole_draws_whatever_its_padding() {
        // Tokens: the first five examples have up to 7 tokens, the others 3.
        let whole = factors(0, &[8, 7, 4]);
        let part = factors(5, &[3, 3, 4]);
        for example in 0..3 {
            let of_whole = &whole[(5 + example) * 28..][..12];
            assert_eq!(of_whole, &part[example * 12..][..12]);
        }
        // Shares of attention: two heads.
        let whole = factors(0, &[8, 2, 7, 7]);
        let part = factors(5, &[3, 2, 3, 3]);
        for (at, value) in part.iter().enumerate() {
            let [example, head, query, key] = [at / 18, at / 9 % 2, at / 3 % 3, at % 3];
            let of_whole = whole[(((5 + example) * 2 + head) * 7 + query) * 7 + key];
            assert_eq!(*value, of_whole);
        }
    }

    #[test]
    fn as_many_are_left_out_as_asked_for_and_the_others_make_up_for_it() {
        let factors = factors(0, &[100, 10, 10]);
        let left_out = factors.iter().filter(|factor| **factor == 0.0).count();
        // Five standard errors of sqrt(10000 · 0.25 · 0.75).
        assert!((left_out as f64 - 2500.0).abs() < 217.0, "{left_out}");
        assert!(factors.iter().all(|&f| f == 0.0 || f == 4.0 / 3.0));
    }

    struct Given;

    impl GivenDrops for Given {
        fn kept(&self, site: &str, first: usize, shape: &[usize]) -> Result<Option<Vec<u8>>> {
            assert_eq!((site, first, shape), ("a.site", 4, &[2, 2][..]));
            Ok(Some(vec![1, 0, 0, 1]))
        }
    }

    #[test]
    fn given_masks_take_the_place_of_draws() {
        let omission = Omission {
            dropout: 0.5,
            first: 4,
            given: Some(Arc::new(Given)),
            ..Omission::default()
        };
        let dropping = Dropping::at(&omission, "a.site".into());
        let factors = dropping.factors(&[2, 2]).expect("it is given");
        assert_eq!(factors, Some(vec![2.0, 0.0, 0.0, 2.0]));
    }
}
