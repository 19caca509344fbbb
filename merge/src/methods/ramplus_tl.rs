use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::overlap::{EPSILON, Overlap, overlaps};
use crate::methods::parameters::{FINITE, Fallback, NOT_NEGATIVE, ParameterSpec};
use crate::methods::{
    Base, ElementKernel, GroupShape, MergeMethod, Needs, Operation, Passes, Survey,
};

/// ## What it does
/// As `ram`, but elements that one model alone changed are amplified by `1 + r · clamp(ρ, 0, alpha)`, where ρ is, for
/// this model and tensor, the number of elements it shares with others over the number it has alone.
/// ## Why
/// A model that shares many elements with others loses most by the average, so its own elements are amplified.
/// ## Cost
/// Two passes over each tensor: shared and lone elements are counted first.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `r` | 0.1 | any number | strength of the amplification |
/// | `alpha` | 0.2 | `≥ 0` | greatest ρ that counts |
/// | `epsilon` | 10⁻⁵ | `≥ 0` | differences up to here are none |
/// ## References
/// "RAM+", tensor by tensor, as in mergekit 0.1.5.
/// # Errors
/// Numbers out of range are refused with the recipe's line.
#[derive(Clone, Copy, Debug)]
pub struct RamPlus;

impl MergeMethod for RamPlus {
    fn name(&self) -> &'static str {
        "ramplus_tl"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 0, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[
                EPSILON,
                ParameterSpec::shared("r", FINITE, Fallback::Number(0.1)),
                ParameterSpec::shared("alpha", NOT_NEGATIVE, Fallback::Number(0.2)),
            ]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if group.members.is_empty() {
            return Ok(Operation::TakeBase);
        }
        Ok(Operation::Survey(Arc::new(Amplify {
            epsilon: group.values.number("epsilon"),
            r: group.values.number("r"),
            alpha: group.values.number("alpha"),
            n_members: group.members.len(),
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!(
            "base + what {} changed, averaged where they overlap, amplified elsewhere",
            group.labels().join(", ")
        )
    }
}

struct Amplify {
    epsilon: f64,
    r: f64,
    alpha: f64,
    n_members: usize,
}

impl Survey for Amplify {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let counts = overlaps(data, self.epsilon, self.n_members)?;
        let lone = counts.iter().map(|&(shared, alone)| {
            let ratio = shared as f64 / (alone as f64).max(self.epsilon.max(f64::MIN_POSITIVE));
            1.0 + self.r * ratio.clamp(0.0, self.alpha)
        });
        Ok(Arc::new(Overlap {
            epsilon: self.epsilon,
            lone: lone.collect(),
        }))
    }
}
