//! Methods on top of others, and methods of adapters.

use fixtures::Case;
use serde_json::{Value, json};

use super::Written;

fixtures::golden_tests! {
    package: "merge", set: "methods",
    layers_are_scaled_as_by_the_published_program: "lines" => lines,
    knots_are_those_of_the_published_program: "knots" => knots,
}

fn lines(case: &Case) {
    let written = Written::new(case, "lines").with("weight", json!(1));
    let share = |text: &str| {
        let percent: f64 = text.parse().expect("per cent");
        percent / 100.0
    };
    let written = match case.param("merged").expect("what is scaled") {
        "sum" | "one model" => written.with("method", json!("task_arithmetic")),
        ties => {
            let kept = ties
                .strip_prefix("ties k=")
                .and_then(|rest| rest.strip_suffix(" mean"));
            let kept =
                kept.unwrap_or_else(|| panic!("a method that this test does not know: {ties}"));
            written
                .with("method", json!("ties"))
                .with("trim", json!("model"))
                .with("density", json!(share(kept)))
        }
    };
    assert!(matches!(case.param("norm"), None | Some("L1")));
    let alpha = case["params"]["alpha"].clone();
    written.with("alpha", alpha).number("beta", "beta").check();
}

fn knots(case: &Case) {
    assert_eq!(case["params"]["concat_across_output"], true);
    assert_eq!(case.param("sign_resolve_mode"), Some("sum_of_values"));
    let kept = case.number("topK").expect("what is kept");
    let kept = if kept > 1.0 { kept / 100.0 } else { kept };
    let mask = match case.param("merge_method") {
        Some("ties") => "ties",
        Some("tv") => "magnitude",
        other => panic!("a mask that this test does not know: {other:?}"),
    };
    let combine = Value::from(case.param("merging_type"));
    Written::new(case, "knots")
        .by_the_rule_of_the_case()
        .with("density", json!(kept.min(1.0)))
        .with("mask", json!(mask))
        .with("combine", combine)
        .number("lambda", "scale")
        .check();
}
