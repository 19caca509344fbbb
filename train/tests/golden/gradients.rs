//! Full gradients against the published program, through the same code as `vlmerge forward`.

use fixtures::Case;
use train::losses::LossOptions;

use super::losses::{given, start};
use super::models::values;
use crate::fixture::l2;

fixtures::golden_tests! {
    package: "train", set: "vl_merging",
    full_gradients_are_those_of_the_published_program: "gradient" => gradients,
}

fn gradients(case: &Case) {
    let start = start(case);
    let given = given(case, &start);
    let loss = train::losses::by_name(start.blueprint.family(), case.text("loss"));
    let (model, options) = (start.model.as_ref(), LossOptions::default());
    let computed = loss.and_then(|loss| loss.compute(model, &start.weights, &given, &options));
    let gradients = computed.expect("a loss").gradients;
    let expected = case.tensors("expected");
    let norm = |raw: &fixtures::Raw| l2(raw.values().into_iter());
    let largest = expected.values().map(norm).fold(0.0, f64::max);
    assert!(largest > 0.0, "a comparison");
    for (name, expected) in &expected {
        let found = gradients.get(name);
        let found = values(found.unwrap_or_else(|| panic!("no gradient of {name}")));
        let error = l2(found.iter().zip(expected.values()).map(|(a, b)| a - b));
        // As the manifest says in words: numbers far below the largest are compared absolutely.
        let tolerance =
            (case.tolerance("", "rel_l2_per_tensor") * norm(expected)).max(1e-6 * largest);
        assert!(error <= tolerance, "{name}: {error} of {}", norm(expected));
    }
}
