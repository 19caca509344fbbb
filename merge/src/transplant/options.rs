//! The ways of making rows, with their settings.

use std::fmt;

/// A transplantation's settings. Names are those of mergekit's tokensurgeon.
#[derive(Clone, Debug, PartialEq)]
pub struct TransplantOptions {
    /// The way of making rows of tokens that the model lacks.
    pub method: Approximation,
    /// Whether a token takes the row of the longest beginning of its text, and in which tables.
    pub prefix_match: AllowMatch,
    /// Whether a single byte is the same as a token of this text (`<0x0A>`, a new line), and in which tables.
    pub byte_match: AllowMatch,
    /// Whether tokens that hardly any training saw are left out.
    pub magikarp: bool,
    /// Deviation of normal noise on rows that are made.
    pub new_vocab_noise: Option<f64>,
    /// Factor on rows that are made.
    pub new_vocab_scale: Option<f64>,
    /// The number of rows is a multiple of this one.
    pub pad_to_multiple_of: usize,
    /// Shared tokens that are approximated as if they were not shared, to measure how well it goes.
    pub held_out: usize,
    /// Seed of draws.
    pub seed: u64,
}

impl Default for TransplantOptions {
    fn default() -> Self {
        Self {
            method: Approximation::Omp {
                k: DEFAULT_K,
                gram_bytes: DEFAULT_GRAM_BYTES,
            },
            prefix_match: AllowMatch::No,
            byte_match: AllowMatch::No,
            magikarp: false,
            new_vocab_noise: None,
            new_vocab_scale: None,
            pad_to_multiple_of: 1,
            held_out: DEFAULT_HELD_OUT,
            seed: 0,
        }
    }
}

/// Rows of which a new one is a combination, as mergekit has it.
pub const DEFAULT_K: usize = 64;

/// Most bytes of products of shared rows.
pub const DEFAULT_GRAM_BYTES: u64 = 4 << 30;

/// Shared tokens that are approximated to measure how well it goes.
pub const DEFAULT_HELD_OUT: usize = 256;

/// The largest divisor of the number of rows.
pub(super) const MAX_MULTIPLE: usize = 1 << 20;

/// A way of making the row of a token that the model lacks.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Approximation {
    /// Orthogonal matching pursuit: the donor's row as a combination of at most `k` of its shared rows; the same
    /// combination of the model's rows.
    Omp {
        /// Rows of a combination.
        k: usize,
        /// Most bytes of products of shared rows; without room for them each step is a product with all shared rows.
        gram_bytes: u64,
    },
    /// A combination of the `k` shared rows that are nearest to the donor's row.
    CommonInterpolation {
        /// Rows of a combination.
        k: usize,
        /// Their factors.
        scheme: WeightScheme,
        /// Whether near means a large cosine, not a small distance.
        is_cosine: bool,
    },
    /// The row of the nearest shared token.
    Nearest {
        /// Whether near means a large cosine, not a small distance.
        is_cosine: bool,
    },
    /// The rows of the pieces into which the model's tokenizer splits the token's text.
    Subword(SubwordMethod),
    /// A rotation between the principal components of shared rows in both models.
    LandmarkPca,
    /// The mean of all rows.
    Mean,
    /// Zero.
    Zero,
    /// Standard normal draws.
    Randn,
    /// Normal draws with the mean and the covariance of all rows.
    JohnHewitt,
}

impl Approximation {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Omp { .. } => "omp",
            Self::CommonInterpolation { .. } => "common_interpolation",
            Self::Nearest { .. } => "nearest",
            Self::Subword(_) => "subword",
            Self::LandmarkPca => "landmark_pca",
            Self::Mean => "mean",
            Self::Zero => "zero",
            Self::Randn => "randn",
            Self::JohnHewitt => "john_hewitt",
        }
    }

    /// Shared tokens that it needs at least.
    pub(super) const fn n_shared(self) -> usize {
        match self {
            Self::Omp { k, .. } | Self::CommonInterpolation { k, .. } => k,
            Self::Nearest { .. } => 1,
            Self::LandmarkPca => 2,
            _ => 0,
        }
    }

    /// Whether it reads the donor's rows.
    pub(super) const fn reads_donor(self) -> bool {
        self.n_shared() > 0
    }
}

/// Factors of the nearest rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightScheme {
    /// `1 / distance`, or the cosine; they add up to 1.
    #[default]
    DistanceProportional,
    /// The nearest point of the plane through the rows: least squares with factors that add up to 1.
    Barycentric,
    /// Least squares.
    LeastSquares,
}

impl WeightScheme {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::DistanceProportional => "distance_proportional",
            Self::Barycentric => "barycentric",
            Self::LeastSquares => "least_squares",
        }
    }
}

/// The row of a token from those of its pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubwordMethod {
    /// Their mean.
    #[default]
    Mean,
    /// Their sum.
    Sum,
    /// Their mean by 1, 2, 3, …: the last piece of embeddings, the first of a head counts most.
    WeightedMean,
    /// The last piece of embeddings, the first of a head.
    FirstLast,
}

impl SubwordMethod {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Sum => "sum",
            Self::WeightedMean => "weighted_mean",
            Self::FirstLast => "first_last",
        }
    }
}

/// The tables in which something is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowMatch {
    /// In none.
    #[default]
    No,
    /// In all.
    Yes,
    /// In the embeddings.
    Embed,
    /// In the head.
    LmHead,
}

impl AllowMatch {
    pub(super) fn in_table(self, is_head: bool) -> bool {
        match self {
            Self::No => false,
            Self::Yes => true,
            Self::Embed => !is_head,
            Self::LmHead => is_head,
        }
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Yes => "yes",
            Self::Embed => "embed",
            Self::LmHead => "lm_head",
        }
    }
}

impl fmt::Display for TransplantOptions {
    /// The flags that ask for them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--method {}", self.method.name())?;
        let cosine = |is_cosine| {
            if is_cosine {
                " --cosine-similarity"
            } else {
                ""
            }
        };
        match self.method {
            Approximation::Omp { k, gram_bytes } => {
                write!(f, " --k {k} --gram-memory {gram_bytes}")?;
            }
            Approximation::CommonInterpolation {
                k,
                scheme,
                is_cosine,
            } => {
                let (scheme, cosine) = (scheme.name(), cosine(is_cosine));
                write!(f, " --k {k} --weight-scheme {scheme}{cosine}")?;
            }
            Approximation::Nearest { is_cosine } => f.write_str(cosine(is_cosine))?,
            Approximation::Subword(method) => write!(f, " --subword-method {}", method.name())?,
            _ => {}
        }
        let matches = [
            ("prefix-match", self.prefix_match),
            ("byte-match", self.byte_match),
        ];
        for (flag, allowed) in matches {
            if allowed != AllowMatch::No {
                write!(f, " --{flag} {}", allowed.name())?;
            }
        }
        if self.magikarp {
            f.write_str(" --magikarp")?;
        }
        if let Some(noise) = self.new_vocab_noise {
            write!(f, " --new-vocab-noise {noise}")?;
        }
        if let Some(scale) = self.new_vocab_scale {
            write!(f, " --new-vocab-scale {scale}")?;
        }
        if self.pad_to_multiple_of > 1 {
            write!(f, " --pad-to-multiple-of {}", self.pad_to_multiple_of)?;
        }
        write!(f, " --held-out {} --seed {}", self.held_out, self.seed)
    }
}
