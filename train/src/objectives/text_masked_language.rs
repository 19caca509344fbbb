//! Masked language modeling of text alone.

use evaluate::models::Head;

use super::masked_language::guess_words;
use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Guessing masked words from the text alone: VLMo's language stage (Bao et al. 2021, section 3.4).
#[derive(Clone, Copy, Debug)]
pub struct TextMaskedLanguage;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "text_mlm",
    needs: Needs {
        text: true,
        masked_words: true,
        ..Needs::NOTHING
    },
    heads: &[Head::MaskedLanguage],
    after: &[],
    reads: &["masking"],
    open: |_| Ok(Box::new(TextMaskedLanguage)),
};

impl Objective for TextMaskedLanguage {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (words, text) = (step.masked_words()?, step.text()?);
        let ways = step.ways("text_mlm");
        let (model, pass) = (step.model.dual()?, step.pass(&ways));
        let states = model.text_states(&text.with_ids(&words.ids), &pass)?;
        guess_words(&states, step, "text_mlm_accuracy")
    }
}
