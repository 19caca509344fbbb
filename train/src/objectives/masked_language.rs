//! Masked language modeling (MLM) with the image in sight.

use candle_core::Tensor;
use evaluate::batch::Pair;
use evaluate::crossing;
use evaluate::models::{Head, Streams};
use evaluate::nn::Guessed;

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Guessing masked words from text and image together.
///
/// Devlin et al. 2019, "BERT", <https://arxiv.org/abs/1810.04805>; Bao et al. 2021, "VLMo",
/// section 3.3.
#[derive(Clone, Copy, Debug)]
pub struct MaskedLanguage;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "mlm",
    needs: Needs {
        image: true,
        text: true,
        masked_words: true,
        ..Needs::NOTHING
    },
    heads: &[Head::MaskedLanguage],
    after: &[],
    reads: &["masking"],
    open: |_| Ok(Box::new(MaskedLanguage)),
};

impl Objective for MaskedLanguage {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn ways_of_reading(&self) -> &'static [Streams] {
        &[Streams::Bidirectional]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (words, text) = (step.masked_words()?, step.text()?);
        let ways = step.ways("mlm");
        let pass = step.pass(&ways);
        let text = text.with_ids(&words.ids);
        let pair = Pair::new(&text, step.image()?);
        let states = step.model.fusion()?.guessed_from(&pair, &pass)?;
        guess_words(&states, step, "mlm_accuracy")
    }
}

/// The loss of guessing words from `hidden: (b, t, d)`.
pub(super) fn guess_words(hidden: &Tensor, step: &Step<'_>, measure: &'static str) -> Result<Loss> {
    let words = step.masked_words()?;
    let guesses = Guesses {
        hidden: hidden.flatten_to(1)?, // (b t, d)
        places: &words.places,
        labels: &words.labels,
        measure,
    };
    guess(guesses, step, |rows, labels| {
        let logits = step.model.score(Head::MaskedLanguage, rows)?;
        Ok(Guessed::by(&logits, labels)?)
    })
}

/// The tokens to guess, and the states that guess them.
pub(super) struct Guesses<'a> {
    /// A row for each place, `(places, d)`.
    pub hidden: Tensor,
    /// Rows to guess from.
    pub places: &'a [u32],
    /// The right token of each.
    pub labels: &'a [u32],
    /// The name of the share that is guessed right.
    pub measure: &'static str,
}

/// The mean cross entropy over the masked words of all ranks; `head` guesses labels from rows.
pub(super) fn guess(
    guesses: Guesses<'_>,
    step: &Step<'_>,
    head: impl FnOnce(&Tensor, &[u32]) -> Result<Guessed>,
) -> Result<Loss> {
    let Guesses {
        hidden,
        places,
        labels,
        measure,
    } = guesses;
    let n = labels.len();
    let mut n_all = [n as f64];
    step.collective.sum_f64(&mut n_all)?;
    // Of the whole batch's sum this rank has its part; averaged over the ranks, it is the mean.
    let share = step.collective.size() as f64 / n_all[0].max(1.0);
    if n == 0 {
        return Ok(Loss {
            value: (hidden.narrow(0, 0, 1)?.sum_all()? * 0.0)?,
            reported: 0.0,
            measures: vec![(measure, 0.0, 0.0)],
        });
    }
    let n_places = places.len();
    let places = crossing::to_device(places.to_vec(), n_places, hidden.device())?;
    let rows = hidden.contiguous()?.index_select(&places, 0)?; // (m, d)
    let Guessed { mean, n_right } = head(&rows, labels)?;
    let value = (mean * (n as f64 * share))?;
    Loss::mean(value, vec![(measure, n_right, n as f64)])
}
