//! The parts of a step that an objective sees.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use candle_core::Tensor;
use evaluate::models::Model;
use evaluate::nn::{GivenDrops, Omission, Pass, Routing, SideLosses, Tape};
use merge::random::{Draws, Sequence};

use super::{MixDraw, PairFeatures, Whole};
use crate::batch::{Batch, Images, MaskedPatches, MaskedSignals, MaskedWords, Texts};
use crate::collective::Collective;
use crate::{Error, Result};

/// The key of the draws of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Randomness {
    /// Of the run.
    pub seed: u64,
    /// The step, and the part of the batch within it.
    pub step: u64,
    /// Probability of leaving out a branch of the last block.
    pub drop_path: f64,
    /// Probability of leaving out a number of the text embedding.
    pub dropout: f64,
    /// The mix of pairs, instead of a drawn one.
    pub mix: Option<MixDraw>,
}

impl Randomness {
    /// Nothing is left out, and pairs are mixed like this.
    #[must_use]
    pub fn mixing(mix: MixDraw) -> Self {
        Self {
            seed: 0,
            step: 0,
            drop_path: 0.0,
            dropout: 0.0,
            mix: Some(mix),
        }
    }
}

/// Features of a batch, without a graph, which one objective leaves for the next.
#[derive(Debug, Default)]
pub struct Shared {
    pub(super) features: RefCell<Option<PairFeatures>>,
}

/// The choice of a pass's routers, by the name of the pass, if it differs from the model's own.
pub type RoutingOf<'a> = dyn Fn(&str) -> Option<Routing> + 'a;

/// The omissions of one pass of a step, and the choice of its routers.
#[derive(Clone, Debug, Default)]
pub struct PassWays {
    omission: Option<Omission>,
    routing: Option<Routing>,
}

/// A batch, a model, and how passes are run.
pub struct Step<'a> {
    /// The model.
    pub model: &'a dyn Model,
    /// The examples.
    pub batch: &'a Batch,
    /// The other ranks.
    pub collective: &'a dyn Collective,
    /// Random omissions, `None` where nothing is left out.
    pub randomness: Option<Randomness>,
    /// Dropout masks in place of those that would be drawn.
    pub drops: Option<&'a Arc<dyn GivenDrops>>,
    /// The choice of routers, instead of the model's own.
    pub routing: Option<&'a RoutingOf<'a>>,
    /// Collects what routers ask for beside the objective.
    pub side_losses: Option<&'a SideLosses>,
    /// The ranks that share the experts of mixtures, where they do.
    pub experts: Option<&'a Rc<dyn Collective>>,
    /// The tape that records blocks; without one, candle keeps the graph of everything.
    pub tape: Option<&'a Tape>,
    /// The features that objectives leave for one another.
    pub shared: &'a Shared,
    /// The batch that this one is a part of, where its parts are passed through twice.
    pub whole: Option<&'a Whole<'a>>,
}

impl<'a> Step<'a> {
    /// A step that leaves nothing out and keeps one graph of everything.
    #[must_use]
    pub fn plain(
        model: &'a dyn Model,
        batch: &'a Batch,
        collective: &'a dyn Collective,
        shared: &'a Shared,
    ) -> Self {
        Self {
            model,
            batch,
            collective,
            randomness: None,
            drops: None,
            routing: None,
            side_losses: None,
            experts: None,
            tape: None,
            shared,
            whole: None,
        }
    }

    /// The omissions of a pass of this name, and the choice of its routers.
    #[must_use]
    pub fn ways(&self, name: &str) -> PassWays {
        PassWays {
            omission: self.randomness.map(|randomness| Omission {
                drop_path: randomness.drop_path,
                dropout: randomness.dropout,
                seed: randomness.seed,
                name: format!("{}/{name}", randomness.step),
                first: self.batch.first,
                given: self.drops.cloned(),
            }),
            routing: self.routing.and_then(|routing| routing(name)),
        }
    }

    /// A pass that runs as `ways` say.
    #[must_use]
    pub fn pass<'p>(&self, ways: &'p PassWays) -> Pass<'p>
    where
        'a: 'p,
    {
        let mut pass = Pass::new();
        if let Some(omission) = &ways.omission {
            pass = pass.omitting(omission);
        }
        if let Some(routing) = &ways.routing {
            pass = pass.routed(routing);
        }
        if let Some(side_losses) = self.side_losses {
            pass = pass.collecting(side_losses);
        }
        if let Some(experts) = self.experts {
            pass = pass.sharing_experts(experts);
        }
        match self.tape {
            Some(tape) => pass.recorded(tape),
            None => pass,
        }
    }

    /// Draws for one example of the whole batch.
    #[must_use]
    pub fn draws(&self, name: &str, example: usize) -> Sequence {
        let (seed, step) = match self.randomness {
            Some(randomness) => (randomness.seed, randomness.step),
            None => (0, 0),
        };
        Draws::new(seed, &format!("{step}/{name}/{example}")).sequence()
    }

    /// The pictures.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn image(&self) -> Result<&'a Images> {
        self.part(self.batch.image.as_ref(), "image")
    }

    /// The second pictures.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn second_image(&self) -> Result<&'a Images> {
        self.part(self.batch.second_image.as_ref(), "second image")
    }

    /// The texts.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn text(&self) -> Result<&'a Texts> {
        self.part(self.batch.text.as_ref(), "text")
    }

    /// The texts with words masked.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn masked_words(&self) -> Result<&'a MaskedWords> {
        self.part(self.batch.masked_words.as_ref(), "masked text")
    }

    /// Masked patches, with the tokens behind them.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn masked_patches(&self) -> Result<&'a MaskedPatches> {
        self.part(self.batch.masked_patches.as_ref(), "masked patches")
    }

    /// Patches and words to be guessed together.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn masked_signals(&self) -> Result<&'a MaskedSignals> {
        self.part(self.batch.masked_signals.as_ref(), "masked signals")
    }

    /// The first inputs of the query stream, `(b, t)`.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn queries(&self) -> Result<&'a Tensor> {
        self.part(
            self.batch.queries.as_ref(),
            "queries of free language modeling",
        )
    }

    /// A random picture for each example.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn other_image(&self) -> Result<&'a Images> {
        self.part(self.batch.other_image.as_ref(), "other image")
    }

    /// Random texts for each example, the n-th of each together; at least one.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn other_texts(&self) -> Result<&'a [Texts]> {
        let texts = &self.batch.other_texts;
        self.part((!texts.is_empty()).then_some(&texts[..]), "other texts")
    }

    /// The soft scores of answers.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn answers(&self) -> Result<&'a Tensor> {
        self.part(self.batch.answers.as_ref(), "answers")
    }

    /// The classes.
    ///
    /// # Errors
    /// [`Error::NotInBatch`].
    pub fn classes(&self) -> Result<&'a [u32]> {
        self.part(self.batch.classes.as_deref(), "classes")
    }

    fn part<T: ?Sized>(&self, part: Option<&'a T>, what: &'static str) -> Result<&'a T> {
        part.ok_or(Error::NotInBatch { what })
    }
}
