//! Question answering.

use candle_core::{D, DType};
use evaluate::batch::Pair;
use evaluate::crossing;
use evaluate::models::Head;

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Answers as classes with soft scores: binary cross entropy, summed over answers, averaged over
/// questions.
///
/// Anderson et al. 2018, "Bottom-Up and Top-Down Attention", <https://arxiv.org/abs/1707.07998>,
/// section 3.3.
#[derive(Clone, Copy, Debug)]
pub struct Vqa;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "vqa",
    needs: Needs {
        image: true,
        text: true,
        ..Needs::NOTHING
    },
    heads: &[Head::Vqa],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(Vqa)),
};

impl Objective for Vqa {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let (text, targets) = (step.text()?, step.answers()?);
        let ways = step.ways("vqa");
        let pass = step.pass(&ways);
        let pair = Pair::new(text, step.image()?);
        let logits = step.model.fusion()?.answer(&pair, &pass)?;
        let logits = logits.to_dtype(DType::F32)?; // (b, answers)
        // max(x, 0) - x t + ln(1 + exp(-|x|))
        let soft = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
        let terms = ((logits.relu()? - (&logits * targets)?)? + soft)?;
        let value = (terms.sum_all()? * (1.0 / step.batch.n.max(1) as f64))?;
        let best = logits.detach().argmax_keepdim(D::Minus1)?;
        let scores = targets.gather(&best, D::Minus1)?.sum_all()?;
        let score = f64::from(crossing::number::<f32>(&scores)?);
        Loss::mean(value, vec![("vqa_score", score, step.batch.n as f64)])
    }
}
