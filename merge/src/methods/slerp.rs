use std::sync::Arc;

use crate::Result;
use crate::methods::kernels::two_ends;
use crate::methods::parameters::{FINITE, Fallback, ParameterSpec};
use crate::methods::{ElementKernel, GroupShape, MergeMethod, Needs, Operation, Passes, Survey};

/// ## What it does
/// Walks from the base to the other model along the great circle between them: with `c` the cosine of
/// their angle and `h = acos c`, `W = [sin((1 − t) h) a + sin(t h) b] / sin h`. Where `|c| > 0.9995`, as
/// nearly always for fine-tunes of one model, it is the straight line `(1 − t) a + t b`. All elements of a
/// tensor are one vector. Without a base the first of two inputs stands at t = 0.
/// ## Why
/// A straight line between two directions is shorter in its middle; the great circle keeps the length.
/// ## Cost
/// Two passes over each tensor: the angle must be known before the first element is mixed.
/// ## Parameters
/// | name | default | range | meaning |
/// |---|---|---|---|
/// | `t` | required | any number | how far to go; 0 is the base |
/// ## References
/// Shoemake 1985, "Animating rotation with quaternion curves", <https://doi.org/10.1145/325165.325242>;
/// mergekit 0.1.5.
/// # Errors
/// [`MergeFault::InputCount`](crate::MergeFault::InputCount) for more or fewer than two inputs.
#[derive(Clone, Copy, Debug)]
pub struct Slerp;

/// From here on the angle is too small to divide by its sine.
const STRAIGHT: f64 = 0.9995;

/// A vector no longer than this is not normalized.
const MIN_NORM: f64 = 1e-8;

impl MergeMethod for Slerp {
    fn name(&self) -> &'static str {
        "slerp"
    }

    fn needs(&self) -> Needs {
        Needs::two_ends()
    }

    fn parameters(&self) -> &'static [ParameterSpec] {
        const { &[ParameterSpec::shared("t", FINITE, Fallback::Required)] }
    }

    fn operation(&self, group: &GroupShape<'_>) -> Result<Operation> {
        two_ends::check(group, self.name())?;
        Ok(Operation::Survey(Arc::new(Path {
            t: group.values.number("t"),
            has_base: group.has_base,
        })))
    }

    fn describe(&self, group: &GroupShape<'_>) -> String {
        let (a, b) = two_ends::names(group);
        format!("{} of the way from {a} to {b}", group.values.number("t"))
    }
}

struct Path {
    t: f64,
    has_base: bool,
}

impl Survey for Path {
    fn survey(&self, data: &dyn Passes) -> Result<Arc<dyn ElementKernel>> {
        let (aa, ab, bb) = two_ends::products(data)?;
        let norm = |square: f64| match square.sqrt() {
            norm if norm > MIN_NORM => norm,
            _ => 1.0,
        };
        let (p, q) = factors(ab / (norm(aa) * norm(bb)), self.t);
        Ok(Arc::new(two_ends::blend(self.has_base, p, q)))
    }
}

/// The factors of the two ends, for the cosine of their angle.
fn factors(cosine: f64, t: f64) -> (f64, f64) {
    let cosine = cosine.clamp(-1.0, 1.0);
    if cosine.abs() > STRAIGHT {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    let sine = angle.sin();
    (((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halfway_between_perpendicular_vectors_both_count_alike() {
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let (p, q) = factors(0.0, 0.5);
        assert!((p - half).abs() < 1e-15 && (q - half).abs() < 1e-15);
        assert_eq!(factors(0.0, 0.0), (1.0, 0.0));
        assert_eq!(factors(0.9999, 0.25), (0.75, 0.25));
    }
}
