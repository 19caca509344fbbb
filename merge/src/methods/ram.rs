use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::overlap::{EPSILON, Overlap};
use crate::methods::parameters::ParameterSpec;
use crate::methods::{Base, GroupShape, MergeMethod, Needs, Operation};

/// ## What it does
/// Averages where models changed the same element, adds where one alone did: an input is active where
/// `|xᵢ − b| > epsilon`; the active differences of an element are summed and divided by their number.
/// ## Why
/// An average halves a change that one model alone made.
/// ## Cost
/// One pass over each tensor, in bounded memory.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `epsilon` | 10⁻⁵ | `≥ 0` | differences up to here are none |
/// ## References
/// "RAM: Reinforced Agent Merging" as in mergekit 0.1.5.
/// # Errors
/// A negative `epsilon` is refused with the recipe's line.
#[derive(Clone, Copy, Debug)]
pub struct Ram;

impl MergeMethod for Ram {
    fn name(&self) -> &'static str {
        "ram"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::Required, 0, usize::MAX)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[EPSILON] }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        if group.members.is_empty() {
            return Ok(Operation::TakeBase);
        }
        Ok(Operation::Elementwise(Arc::new(Overlap {
            epsilon: group.values.number("epsilon"),
            lone: vec![1.0; group.members.len()],
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        format!(
            "base + what {} changed, averaged where they overlap",
            group.labels().join(", ")
        )
    }
}
