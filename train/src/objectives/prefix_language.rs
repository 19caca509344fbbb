//! Prefix language modeling: the rest of a text, token by token, from a prefix that all its tokens see.

use evaluate::batch::Pair;
use evaluate::models::{Head, Reading, Stream};

use super::language::{HostTexts, guess_shifted};
use super::{LanguageSettings, Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// The tokens behind a prefix, each from the prefix and those before it.
///
/// By the definition in figure 1 of Wang et al. 2023, <https://arxiv.org/abs/2303.14038>: the prefix has
/// `1 − suffix` of the tokens. Their program has no such objective, so no published number stands beside
/// this one.
#[derive(Clone, Copy, Debug)]
pub struct PrefixLanguage {
    settings: LanguageSettings,
}

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "prefix_lm",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::CausalLanguage],
    after: &[],
    reads: &["language.suffix"],
    open: |opening| {
        Ok(Box::new(PrefixLanguage {
            settings: opening.language.unwrap_or_default(),
        }))
    },
};

impl PrefixLanguage {
    /// Tokens of the prefix of a text of `n`: at least the first.
    fn prefix(&self, n: usize) -> usize {
        let share = (1.0 - self.settings.suffix) * n as f64;
        (share.round() as usize).clamp(1, n.max(1))
    }
}

impl Objective for PrefixLanguage {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (text, model) = (step.text()?, step.model.free_language()?);
        let host = HostTexts::of(text)?;
        let prefixes = host.lengths().into_iter().map(|n| self.prefix(n));
        let prefixes: Vec<usize> = prefixes.collect();
        let ways = step.ways("prefix_lm");
        let pass = step.pass(&ways);
        let pair = Pair::new(text, step.image()?);
        let states = model.read(&pair, Reading::AfterPrefix(&prefixes), &pass)?;
        let from = |text: usize| prefixes[text] - 1..host.t();
        let targets = host.shifted().targets(1, from);
        let (stream, measure) = (Stream::Queries, "prefix_lm_accuracy");
        guess_shifted(&states, &targets, stream, measure, (model, &pass), step)
    }
}
