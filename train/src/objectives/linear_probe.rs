//! Classes of images by a linear classifier on an image tower that does not learn.

use candle_core::{D, DType, Tensor};
use evaluate::crossing;
use evaluate::models::Head;
use evaluate::nn::{Pass, Tape, cross_entropy, n_right};

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// The number of best classes among which the right one counts, in the second number that is logged.
const NEAR: u32 = 5;

/// The class of an image, from what its tower makes of it as a whole. The tower stays as it is: nothing is
/// left out of its pass, and no gradient reaches it.
///
/// ZeroVL's task `linear_prob`.
#[derive(Clone, Copy, Debug)]
pub struct LinearProbe;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "linear_probe",
    needs: Needs {
        image: true,
        ..Needs::NOTHING
    },
    heads: &[Head::ImageClasses],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(LinearProbe)),
};

impl Objective for LinearProbe {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn trains_heads_alone(&self) -> bool {
        true
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let model = step.model;
        let states = {
            // Weights are variables: without a tape of its own, the pass would keep a graph of all blocks.
            let tape = Tape::checkpointing();
            let pass = Pass::new().recorded(&tape);
            model.pooled_image(step.image()?, &pass)?.detach()
        };
        let logits = model.score(Head::ImageClasses, &states)?;
        let (classes, n) = (step.classes()?, step.batch.n as f64);
        let measures = vec![
            ("image_accuracy", n_right(&logits, classes)?, n),
            ("image_accuracy_5", n_near(&logits, classes)?, n),
        ];
        Loss::mean(cross_entropy(&logits, classes)?, measures)
    }
}

/// Rows of `logits: (n, classes)` of which fewer than [`NEAR`] numbers are above the target's.
fn n_near(logits: &Tensor, targets: &[u32]) -> Result<f64> {
    let logits = logits.detach().to_dtype(DType::F32)?;
    let of_targets = crossing::to_device(targets.to_vec(), (targets.len(), 1), logits.device())?;
    let own = logits.gather(&of_targets, D::Minus1)?;
    let above = logits.broadcast_gt(&own)?.to_dtype(DType::F32)?;
    let above: Vec<f32> = crossing::to_memory(&above.sum(D::Minus1)?)?;
    Ok(above.iter().filter(|&&n| n < NEAR as f32).count() as f64)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_class_is_near_if_fewer_than_five_numbers_are_above_its_own() {
        let row: Vec<f32> = (0..7).map(|class| -(class as f32)).collect();
        let logits = Tensor::new(vec![row.clone(), row], &Device::Cpu).expect("a tensor");
        assert_eq!(n_near(&logits, &[4, 5]).expect("counted"), 1.0);
        assert_eq!(n_near(&logits, &[0, 4]).expect("counted"), 2.0);
    }
}
