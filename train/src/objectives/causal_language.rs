//! Causal language modeling (AR): the next token from those before it, with the image in sight.

use evaluate::batch::Pair;
use evaluate::models::{Head, Queries, Reading, Stream, Streams};

use super::language::{HostTexts, guess_shifted};
use super::{LanguageSettings, Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// The next token from the stream that reads left to right. The first token sees all others, so the second
/// one is never guessed: captions begin with a token of their own there.
///
/// Wang et al. 2023, "Accelerating Vision-Language Pretraining with Free Language Modeling",
/// <https://arxiv.org/abs/2303.14038>, section 3.1. The published program, with three streams kept, guesses
/// from the queries, each of which sees the token that it is asked for: `as_published`.
#[derive(Clone, Copy, Debug)]
pub struct CausalLanguage {
    spec: &'static ObjectiveSpec,
    settings: LanguageSettings,
    measure: &'static str,
}

const NEEDS: Needs = Needs {
    image: true,
    text: true,
    // For `as_published`.
    queries: true,
    ..Needs::NOTHING
};

/// Its row of the table, of any text.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "ar",
    needs: NEEDS,
    heads: &[Head::CausalLanguage],
    after: &[],
    reads: &["language.as_published"],
    open: |opening| {
        Ok(Box::new(CausalLanguage {
            spec: &SPEC,
            settings: opening.language.unwrap_or_default(),
            measure: "ar_accuracy",
        }))
    },
};

/// Its row of the table, of captions to be written.
pub(super) const CAPTIONING: ObjectiveSpec = ObjectiveSpec {
    name: "captioning",
    needs: NEEDS,
    heads: &[Head::CausalLanguage],
    after: &[],
    reads: &["language.as_published"],
    open: |opening| {
        Ok(Box::new(CausalLanguage {
            spec: &CAPTIONING,
            settings: opening.language.unwrap_or_default(),
            measure: "captioning_accuracy",
        }))
    },
};

impl Objective for CausalLanguage {
    fn spec(&self) -> &'static ObjectiveSpec {
        self.spec
    }

    /// Captions are written left to right by a model of any way.
    fn ways_of_reading(&self) -> &'static [Streams] {
        match (self.settings.as_published, self.spec.name) {
            (true, _) => &[Streams::Three],
            (false, "ar") => &[Streams::Causal, Streams::Three],
            (false, _) => &[],
        }
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (text, model) = (step.text()?, step.model.free_language()?);
        let ways = step.ways(self.spec.name);
        let pass = step.pass(&ways);
        let pair = Pair::new(text, step.image()?);
        let states = match self.settings.as_published {
            false => model.read(&pair, Reading::Causal, &pass)?,
            true => {
                let queries = Queries {
                    ids: step.queries()?,
                    spans: None,
                };
                model.complete(&pair, queries, &pass)?.queries
            }
        };
        let host = HostTexts::of(text)?;
        let targets = host.shifted().targets(1, |_| 1..host.t());
        let stream = Stream::Queries;
        guess_shifted(
            &states,
            &targets,
            stream,
            self.measure,
            (model, &pass),
            step,
        )
    }
}
