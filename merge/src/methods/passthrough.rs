use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::weighted::Weighted;
use crate::methods::parameters::{FINITE, Fallback, ParameterSpec};
use crate::methods::{Base, GroupShape, MergeMethod, Needs, Operation};

/// ## What it does
/// Takes the one input as it is, or times `scale`. With `slices` it stacks layers of several models.
/// ## Why
/// A recipe may need the tensors of one model unchanged, or layers of several on top of each other.
/// ## Cost
/// The bytes are copied; with `scale` one pass.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `scale` | none, per model | any number | factor on the tensor |
/// ## References
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for more than one input to an output tensor.
#[derive(Clone, Copy, Debug)]
pub struct Passthrough;

impl MergeMethod for Passthrough {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn needs(&self) -> Needs {
        Needs::inputs(Base::None, 1, 1)
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const {
            &[ParameterSpec::per_member(
                "scale",
                FINITE,
                Fallback::Number(1.0),
            )]
        }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        let scales = group.values.numbers("scale");
        Ok(match scales.as_slice() {
            [] | [1.0] => Operation::Take(0),
            _ => Operation::Elementwise(Arc::new(Weighted {
                base: None,
                members: scales,
            })),
        })
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        match group.values.numbers("scale").as_slice() {
            [] | [1.0] => group.labels().concat(),
            scales => format!("{} {}", scales[0], group.labels().concat()),
        }
    }
}
