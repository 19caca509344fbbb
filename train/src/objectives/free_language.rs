//! Free language modeling (FLM): every token of a text guessed from those before and after it.

use candle_core::{DType, Tensor};
use evaluate::batch::Pair;
use evaluate::models::{Head, Queries, Stream, Streams};
use evaluate::streams::{self, Span, SpanCorruption};

use super::language::{HostTexts, guess_shifted};
use super::{LanguageSettings, Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Every token but the first by a query that sees all others, or all but a span around it; with it the next
/// token from the forward stream, and the one before from the reverse stream.
///
/// Wang et al. 2023, "Accelerating Vision-Language Pretraining with Free Language Modeling",
/// <https://arxiv.org/abs/2303.14038>, section 3.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreeLanguage {
    settings: LanguageSettings,
}

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "flm",
    needs: Needs {
        image: true,
        text: true,
        queries: true,
        ..Needs::NOTHING
    },
    heads: &[Head::CausalLanguage],
    after: &[],
    reads: &[
        "language.forward_weight",
        "language.reverse_weight",
        "language.span_corruption",
    ],
    open: |opening| {
        Ok(Box::new(FreeLanguage {
            settings: opening.language.unwrap_or_default(),
        }))
    },
};

impl FreeLanguage {
    /// Spans drawn for each query of each text; `None` where only its own token is hidden.
    fn spans(&self, texts: &HostTexts, step: &Step<'_>) -> Option<Vec<Span>> {
        if let Some(given) = &step.batch.spans {
            return Some(given.clone());
        }
        let corruption = SpanCorruption {
            rate: self.settings.span_corruption,
        };
        if corruption.rate <= 0.0 {
            return None;
        }
        let t = texts.t();
        let mut spans = Vec::with_capacity(texts.lengths().len() * t);
        for (text, n) in texts.lengths().into_iter().enumerate() {
            let mut draws = step.draws("flm.spans", step.batch.first + text);
            let seen = streams::reconstructor(n, t);
            spans.extend(seen.chunks(2 * t).enumerate().map(|(row, seen)| {
                let n_visible = match row {
                    0 => 0,
                    _ => seen.iter().filter(|&&sees| sees != 0).count(),
                };
                corruption.draw(n_visible, &mut draws)
            }));
        }
        Some(spans)
    }
}

impl Objective for FreeLanguage {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn ways_of_reading(&self) -> &'static [Streams] {
        &[Streams::Three]
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (text, model) = (step.text()?, step.model.free_language()?);
        let host = HostTexts::of(text)?;
        let spans = self.spans(&host, step);
        let ways = step.ways("flm");
        let pass = step.pass(&ways);
        let queries = Queries {
            ids: step.queries()?,
            spans: spans.as_deref(),
        };
        let completed = model.complete(&Pair::new(text, step.image()?), queries, &pass)?;
        let (shifted, t) = (host.shifted(), host.t());
        let LanguageSettings {
            forward_weight,
            reverse_weight,
            ..
        } = self.settings;
        // The first token of the streams has seen all others, and nothing is asked of it.
        let parts = [
            (
                1.0,
                Stream::Queries,
                &completed.queries,
                shifted.targets(0, |_| 1..t),
                ["flm_accuracy", "flm_query_loss"],
            ),
            (
                forward_weight,
                Stream::Forward,
                &completed.forward,
                shifted.targets(1, |_| 1..t),
                ["flm_forward_accuracy", "flm_forward_loss"],
            ),
            (
                reverse_weight,
                Stream::Reverse,
                &completed.reverse,
                shifted.targets(-1, |_| 2..t),
                ["flm_reverse_accuracy", "flm_reverse_loss"],
            ),
        ];
        let all = 1.0 + forward_weight + reverse_weight;
        let mut sum: Option<Tensor> = None;
        let (mut reported, mut measures) = (0.0, Vec::new());
        for (weight, stream, states, targets, [accuracy, loss]) in parts {
            if weight == 0.0 {
                continue;
            }
            let part = guess_shifted(states, &targets, stream, accuracy, (model, &pass), step)?;
            let share = weight / all;
            let value = (part.value.to_dtype(DType::F32)? * share)?;
            sum = Some(match sum {
                Some(sum) => (sum + value)?,
                None => value,
            });
            reported += share * part.reported;
            let n = part.measures.iter().map(|&(_, _, n)| n).sum::<f64>();
            measures.extend(part.measures);
            measures.push((loss, part.reported * n, n));
        }
        let value = sum.ok_or(crate::Error::NotInBatch { what: "words" })?;
        Ok(Loss {
            value,
            reported,
            measures,
        })
    }
}
