//! Entropy of classes, for learning from pictures without labels.

use candle_core::{D, DType, Tensor};
use evaluate::models::Head;

use super::{Loss, Needs, Objective, ObjectiveSpec, Step};
use crate::Result;

/// Added to probabilities before their logarithm, as published.
const LEAST: f64 = 1e-8;

/// The entropy of the classes that a model guesses for an image, `−Σ p ln(p + 10⁻⁸)`, averaged over images. Labels are not
/// looked at.
///
/// Yang et al. 2024, "AdaMerging", <https://arxiv.org/abs/2310.02575>, section 3.2.
#[derive(Clone, Copy, Debug)]
pub struct Entropy;

/// Its row of the table.
pub(super) const SPEC: ObjectiveSpec = ObjectiveSpec {
    name: "entropy",
    needs: Needs {
        image: true,
        ..Needs::NOTHING
    },
    heads: &[Head::ImageClasses],
    after: &[],
    reads: &[],
    open: |_| Ok(Box::new(Entropy)),
};

impl Objective for Entropy {
    fn spec(&self) -> &'static ObjectiveSpec {
        &SPEC
    }

    fn loss(&self, step: &Step<'_>) -> Result<Loss> {
        let ways = step.ways("entropy");
        let (model, pass) = (step.model.dual()?, step.pass(&ways));
        let states = model.pooled_image(step.image()?, &pass)?;
        let logits = step.model.score(Head::ImageClasses, &states)?;
        Loss::mean(entropy(&logits)?, Vec::new())
    }
}

/// The mean entropy of rows of `logits: (n, classes)`.
fn entropy(logits: &Tensor) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    let largest = logits.max_keepdim(D::Minus1)?.detach();
    let exponents = logits.broadcast_sub(&largest)?.exp()?;
    let shares = exponents.broadcast_div(&exponents.sum_keepdim(D::Minus1)?)?;
    let terms = (&shares * (&shares + LEAST)?.log()?)?;
    Ok(terms.sum(D::Minus1)?.mean_all()?.neg()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn equal_classes_have_the_logarithm_of_their_number_and_a_sure_one_has_none() {
        let rows = [[0.0f32, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0]];
        let logits = Tensor::new(&rows, &Device::Cpu).expect("a tensor");
        let mean: f32 = entropy(&logits)
            .expect("computed")
            .to_scalar()
            .expect("a number");
        assert!((f64::from(mean) - 4f64.ln() / 2.0).abs() < 1e-6, "{mean}");
    }
}
