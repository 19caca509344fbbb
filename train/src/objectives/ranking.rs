//! Ranking: an image's own text among random ones, scored pair by pair.

use evaluate::batch::Texts;
use evaluate::models::Head;
use evaluate::nn::{cross_entropy, n_right};

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;
use crate::batch::Batch;

/// Cross entropy of the own text's score among those of texts that are drawn from all of the training data. A
/// drawn text may be as true as the own one.
///
/// Wang et al. 2023, <https://arxiv.org/abs/2303.14038>, whose program draws 15.
#[derive(Clone, Copy, Debug)]
pub struct Ranking;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "ranking",
    needs: Needs {
        image: true,
        text: true,
        other_texts: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Ranking],
    after: &[],
    reads: &["other_texts"],
    open: |_| Ok(Box::new(Ranking)),
};

impl Objective for Ranking {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn n_passes(&self, batch: &Batch) -> usize {
        1 + batch.other_texts.len()
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (own, others, n) = (step.text()?, step.other_texts()?, step.batch.n);
        let texts: Vec<&Texts> = std::iter::once(own).chain(others).collect();
        let name = |nth: usize| format!("ranking.{nth}");
        let omissions: Vec<_> = (0..texts.len()).map(|nth| step.ways(&name(nth))).collect();
        let passes: Vec<_> = omissions.iter().map(|ways| step.pass(ways)).collect();
        let model = step.model.fusion()?;
        let scores = model.rank(&texts, step.image()?, &passes)?; // (b, texts)
        let targets = vec![0; n];
        let n_right = n_right(&scores, &targets)?;
        let measures = vec![("ranking_accuracy", n_right, n as f64)];
        Loss::mean(cross_entropy(&scores, &targets)?, measures)
    }
}
