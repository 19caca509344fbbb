//! Hidden units in another order.

use fixtures::{Case, Raw};
use merge::MergeRecipe;
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::progress::Silent;
use serde_json::json;
use std::path::Path;

fixtures::golden_tests! {
    package: "merge", set: "methods",
    hidden_units_are_matched_as_by_the_published_program: "git_rebasin" => git_rebasin,
}

fn git_rebasin(case: &Case) {
    let share = case.number("average").expect("a share");
    let [one, other] = ["a", "b"].map(|name| case.inputs(name).remove(0));
    let text = json!({
        "merge_method": "linear",
        "align_layers": { "layers": case["params"]["layers"], "order": case["params"]["order"] },
        "models": [
            { "model": one, "parameters": { "weight": 1.0 - share } },
            { "model": other, "parameters": { "weight": share } },
        ],
    });
    let recipe = MergeRecipe::parse(&text.to_string(), Path::new("case")).expect("a recipe");
    let (plan, _) = merge::MergePlan::resolve(&recipe).expect("resolves");
    let report = plan.alignment().expect("matched").expect("a report");
    let aux = case.tensors("aux");
    for (index, layer) in report.units.iter().enumerate() {
        let order: &Raw = &aux[&format!("P_{index}")];
        let moved = order
            .integers()
            .into_iter()
            .enumerate()
            .filter(|(to, from)| *to as i64 != *from);
        assert_eq!(
            (layer.n_units, layer.n_moved),
            (order.shape[0], moved.count()),
            "{index}"
        );
    }
    assert_eq!(
        report.units.len(),
        aux.keys().filter(|name| name.starts_with("P_")).count()
    );
    let folder = tempfile::tempdir().expect("a folder");
    let target = WriteOptions::new(folder.path().join("merged.safetensors"));
    execute(&plan, &target, &RunOptions::default(), &Silent).expect("merges");
    let found = fixtures::tensors(&target.path);
    let expected = case.tensors("expected");
    assert_eq!(found.len(), expected.len());
    for (name, expected) in &expected {
        let atol = case.tolerance("", "atol");
        let differs =
            fixtures::first_difference(&found[name].values(), &expected.values(), 0.0, atol);
        assert_eq!(differs, None, "{name}");
    }
}
