//! Models that read a text in one direction, in the other, and complete it from both.

use candle_core::Tensor;
use merge::layouts::OneStream;
use serde::{Deserialize, Serialize};

use super::Model;
use crate::Result;
use crate::batch::Pair;
use crate::nn::{Guessed, Pass};
use crate::streams::Span;

/// The way in which a model reads texts, unless a task has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Streams {
    /// Left to right, right to left, and by queries of both.
    Three,
    /// In one stream, each token with those before it.
    Causal,
    /// In one stream, each token with all others.
    Bidirectional,
}

impl Streams {
    /// Its name in recipes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Three => "three",
            Self::Causal => "causal",
            Self::Bidirectional => "bidirectional",
        }
    }
}

impl From<OneStream> for Streams {
    fn from(how: OneStream) -> Self {
        match how {
            OneStream::Causal => Self::Causal,
            OneStream::Bidirectional => Self::Bidirectional,
        }
    }
}

/// One of three streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Left to right.
    Forward,
    /// Right to left.
    Reverse,
    /// Queries, each of which sees all tokens but its own.
    Queries,
}

/// The tokens that each token of a text sees in one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading<'a> {
    /// Itself and the tokens before it, but not the first one, which sees all.
    Causal,
    /// All tokens.
    Bidirectional,
    /// This number of first tokens of each text, then itself and those before it.
    AfterPrefix(&'a [usize]),
}

/// The queries of both directions.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// The tokens that the query stream begins with, `(b, t)`: [`query_ids`](crate::streams::query_ids).
    pub ids: &'a Tensor,
    /// A span to hide from each query beside its own token, `b t` of them, text after text. The first query
    /// of a text sees all.
    pub spans: Option<&'a [Span]>,
}

/// Hidden states of three streams, `(b, t, d)` each.
#[derive(Clone, Debug)]
pub struct Completed {
    /// Left to right.
    pub forward: Tensor,
    /// Right to left.
    pub reverse: Tensor,
    /// Of queries.
    pub queries: Tensor,
}

/// Texts with their images, word by word from either side or from both.
///
/// Wang et al. 2023, "Accelerating Vision-Language Pretraining with Free Language Modeling",
/// <https://arxiv.org/abs/2303.14038>.
pub trait FreeLanguage: Model {
    /// Its way of reading texts, unless a task has its own.
    fn streams(&self) -> Streams;

    /// Hidden states of texts in one stream, `(b, t, d)`.
    ///
    /// # Errors
    /// When shapes do not fit or the device fails.
    fn read(&self, pair: &Pair<'_>, reading: Reading<'_>, pass: &Pass<'_>) -> Result<Tensor>;

    /// Hidden states of texts in three streams.
    ///
    /// # Errors
    /// [`ModelFault::Incapable`](crate::ModelFault::Incapable) without a reconstructor; when shapes do not
    /// fit or the device fails.
    fn complete(&self, pair: &Pair<'_>, queries: Queries<'_>, pass: &Pass<'_>)
    -> Result<Completed>;

    /// Logits of words by the head of a stream: `(.., d) -> (.., vocabulary)`.
    ///
    /// # Errors
    /// [`Error::NoHead`](crate::Error::NoHead), or when the device fails.
    fn words(&self, stream: Stream, states: &Tensor) -> Result<Tensor>;

    /// The loss of the guesses `labels` by the head of a stream from rows of its states, `(n, d)`: on the tape of the
    /// pass, if there is one, without the logits of all rows in memory at once.
    ///
    /// # Errors
    /// As [`FreeLanguage::words`], when there are not as many labels as rows, and for a label that is no word.
    fn guess(
        &self,
        stream: Stream,
        rows: &Tensor,
        labels: &[u32],
        pass: &Pass<'_>,
    ) -> Result<Guessed>;
}
