//! Masked language modeling of text alone.

use evaluate::models::Head;

use super::masked_language::guess_words;
use super::{Loss, Needs, Objective, Step};
use crate::Result;

/// Guessing masked words from the text alone: VLMo's language stage (Bao et al. 2021, section 3.4).
#[derive(Clone, Copy, Debug)]
pub struct TextMaskedLanguage;

impl Objective for TextMaskedLanguage {
    fn name(&self) -> &'static str {
        "text_mlm"
    }

    fn needs(&self) -> Needs {
        Needs {
            text: true,
            masked_words: true,
            ..Needs::default()
        }
    }

    fn heads(&self) -> &'static [Head] {
        &[Head::MaskedLanguage]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (words, text) = (step.masked_words()?, step.text()?);
        let omission = step.omission("text_mlm");
        let (model, pass) = (step.model.dual()?, step.pass(&omission));
        let states = model.text_states(&text.with_ids(&words.ids), &pass)?;
        guess_words(&states, step, "text_mlm_accuracy")
    }
}
