//! The choices of the routers of a pass.

use std::fmt;
use std::sync::Arc;

use candle_core::Result;
use merge::random::Draws;

/// The number of tokens that an expert takes of one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Capacity {
    /// All that choose it.
    Unlimited,
    /// As many as would come if `choices` choices of each token were spread evenly, times this factor, and at least
    /// `least`. Those that come later are dropped.
    Even {
        /// The factor.
        factor: f64,
        /// The least.
        least: usize,
    },
}

impl Capacity {
    /// As EVE's program has it.
    pub const PUBLISHED: Self = Self::Even {
        factor: 1.0,
        least: 4,
    };

    /// The number of tokens that each of `experts` experts takes of `rows` tokens with `choices` choices each.
    #[must_use]
    pub fn of(self, rows: usize, experts: usize, choices: usize) -> usize {
        match self {
            Self::Unlimited => rows,
            Self::Even { factor, least } => {
                let even = factor * choices as f64 * rows as f64 / experts.max(1) as f64;
                (even.ceil() as usize).max(least)
            }
        }
    }
}

/// Numbers of a router that a caller gives instead of draws.
pub trait GivenNoise: Send + Sync {
    /// The numbers added to the scores of a router, `rows` times `experts`; `site` is the block, as taps call it
    /// (`vl.block10`). `None` where nothing is given.
    ///
    /// # Errors
    /// When the numbers cannot be read.
    fn noise(&self, site: &str, rows: usize, experts: usize) -> Result<Option<Vec<f32>>>;
}

/// The noise in the scores of a second choice.
#[derive(Clone, Default)]
pub enum Noise {
    /// Nothing.
    #[default]
    None,
    /// Gumbel noise, keyed by seed, pass, block and example, so that a part of a batch chooses as the whole does.
    Drawn {
        /// The seed.
        seed: u64,
        /// The name of the pass.
        name: String,
        /// The number of the first example in the whole batch.
        first: usize,
    },
    /// Given numbers, and nothing where none are given.
    Given(Arc<dyn GivenNoise>),
}

impl fmt::Debug for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Drawn { .. } => "Drawn",
            Self::Given(_) => "Given",
        })
    }
}

impl Noise {
    /// Noise for `examples` sequences of `tokens` tokens each, `(examples · tokens) × experts` numbers.
    ///
    /// # Errors
    /// As [`GivenNoise::noise`], and when as many numbers are not given.
    pub fn of(
        &self,
        site: &str,
        [examples, tokens, experts]: [usize; 3],
    ) -> Result<Option<Vec<f32>>> {
        match self {
            Self::None => Ok(None),
            Self::Drawn { seed, name, first } => {
                let mut numbers = vec![0.0; examples * tokens * experts];
                let of_examples = numbers.chunks_exact_mut((tokens * experts).max(1));
                for (example, numbers) in of_examples.enumerate() {
                    let key = format!("{name}/routing/{site}/{}", first + example);
                    Draws::new(*seed, &key).fill_uniform(0, numbers);
                    numbers
                        .iter_mut()
                        .for_each(|number| *number = gumbel(*number));
                }
                Ok(Some(numbers))
            }
            Self::Given(given) => {
                let rows = examples * tokens;
                let noise = given.noise(site, rows, experts)?;
                if let Some(noise) = &noise
                    && noise.len() != rows * experts
                {
                    let n = noise.len();
                    candle_core::bail!(
                        "{n} numbers for {rows} tokens and {experts} experts at `{site}`"
                    );
                }
                Ok(noise)
            }
        }
    }
}

/// A number of the standard Gumbel distribution, from one that is uniform in `[0, 1)`. The ends are kept away, where it
/// would be infinite.
#[must_use]
pub fn gumbel(uniform: f32) -> f32 {
    let inside = f64::from(uniform).clamp(f64::from(f32::MIN_POSITIVE), 1.0 - f64::EPSILON);
    (-(-inside.ln()).ln()) as f32
}

/// The choice of a pass's routers, instead of the model's own.
#[derive(Clone, Debug)]
pub struct Routing {
    /// The noise in the scores.
    pub noise: Noise,
    /// The number of tokens that an expert takes.
    pub capacity: Capacity,
}

impl Default for Routing {
    /// Each token goes to the experts that score highest, whatever else is in the batch.
    fn default() -> Self {
        Self {
            noise: Noise::None,
            capacity: Capacity::Unlimited,
        }
    }
}
