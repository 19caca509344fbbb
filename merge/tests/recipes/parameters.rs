//! Parameters of recipes: where they may stand, which decides, and which are refused.

use super::{Folder, first};

#[test]
fn parameters_of_other_methods_are_notes_and_others_are_errors() {
    let folder = Folder::three();
    let plan = folder.plan(
        "merge_method: slerp\nbase_model: <a>\nmodels: [<a>, <b>]\nparameters: {t: 0.5, embed_slerp: true, normalize: \
         true, int8_mask: true}",
    );
    let notes = plan.expect("resolves").beside().notes.clone();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(
        notes[0].contains("slerp has no use for `embed_slerp`"),
        "{notes:?}"
    );
    let said = folder.fault(
        "merge_method: slerp\nbase_model: <a>\nmodels: [<a>, <b>]\nparameters: {t: 0.5, wieght: 1}",
    );
    assert!(said.contains("slerp has no parameter `wieght`"), "{said}");
}

#[test]
fn filters_globs_and_regexes_choose_a_value_by_name_and_the_first_that_fits_decides() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: task_arithmetic\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    \
             weight:\n    - {filter: norm, value: 10}\n    - {glob: 'layers.1.*', value: 20}\n    - {regex: \
             '^(embed|head)', value: [30, 40]}\n    - 0.0",
        )
        .expect_err("a bare number is no case");
    assert!(merged.to_string().contains("recipe.yaml"), "{merged}");
    let merged = folder
        .merge(
            "merge_method: task_arithmetic\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    \
             weight:\n    - {filter: norm, value: 10}\n    - {glob: 'layers.1.*', value: 20}\n    - {regex: \
             '^(embed|head)', value: [30, 40]}\n    - value: 0.0",
        )
        .expect("merges");
    // 1 + w (2 − 1).
    assert_eq!(first(&merged, "layers.1.norm.weight"), 11.0);
    assert_eq!(first(&merged, "layers.1.mlp.fc.weight"), 21.0);
    assert_eq!(first(&merged, "layers.0.mlp.fc.weight"), 1.0);
    // Outside the layers a gradient is at its beginning.
    assert_eq!(first(&merged, "head.weight"), 31.0);
}

#[test]
fn a_models_parameters_come_before_the_recipes() {
    let folder = Folder::three();
    let merged = folder
        .merge(
            "merge_method: linear\nmodels: [{model: <a>, parameters: {weight: [0, 1]}}, <b>]\nparameters: \
             {weight: 1.0, normalize: false}",
        )
        .expect("merges");
    assert_eq!(first(&merged, "layers.0.norm.weight"), 4.0);
    assert_eq!(first(&merged, "layers.1.norm.weight"), 6.0);
}

#[test]
fn bad_values_are_named_with_line_and_tensor() {
    let folder = Folder::three();
    let cases = [
        (
            "merge_method: linear\nmodels:\n- {model: <a>, parameters: {weight: 1}}\n- {model: <b>, \
             parameters: {weight: -1}}",
            vec![
                "`embed.weight`",
                "the weights add up to 0",
                "(line 3, column",
            ],
        ),
        (
            "merge_method: ties\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters:\n    weight: 1\n    \
             density: 1.5",
            vec![
                "cannot merge `embed.weight`: `density` must be a number from 0 to 1",
                "(line 7, column",
            ],
        ),
        (
            "merge_method: della\nbase_model: <base>\nmodels:\n- model: <a>\n  parameters: {weight: 1, \
             density: 0.9}",
            vec![
                "`embed.weight`",
                "`density` must be such that",
                "(line 5, column",
            ],
        ),
        (
            "merge_method: slerp\nparameters: {t: 0.5}\nmodels:\n- <a>",
            vec![
                "slerp merges two models",
                "the recipe has 1",
                "(line 4, column",
            ],
        ),
        (
            "merge_method: model_stock\nbase_model: <base>\nmodels:\n- <base>\n- <a>",
            vec!["at least 2 models beside the base", "has 1"],
        ),
        (
            "merge_method: linear\nmodels:\n- <a>\n- <b>",
            vec![
                "linear needs `weight` for",
                "`embed.weight`",
                "(line 3, column",
            ],
        ),
        (
            "merge_method: linear\nmodels:\n- model: <a>\n  parameters: {wieght: 1}",
            vec!["linear has no parameter `wieght` (line 4, column"],
        ),
        (
            "merge_method: linear\nbase_model: <base>\nparameters: {weight: 1}\nmodels: [<a>, <b>]",
            vec!["linear has no use for a base_model that is none of its models"],
        ),
        (
            "merge_method: ties\nmodels: [<a>]",
            vec!["ties needs a base_model"],
        ),
        (
            "merge_method: interpolate\nmodels: [<a>, <b>]",
            vec!["interpolate merges experts of one checkpoint"],
        ),
        (
            "merge_method: passthrough\nmodels: [<a>]\nlayout: generic",
            vec!["nothing to merge"],
        ),
        (
            "merge_method: linear\nmodels: [<a>]\nmodules: {text: {}}",
            vec!["one of `models`, `slices` and `modules`"],
        ),
        (
            "merge_method: linear\nmodels:\n- model: <a>\n  lora: x",
            vec!["x/adapter_config.json: cannot open"],
        ),
        (
            "merge_method: linear",
            vec!["one of `models`, `slices` and `modules`"],
        ),
    ];
    for (yaml, parts) in cases {
        let said = folder.fault(yaml);
        for part in parts {
            assert!(said.contains(part), "no {part} in {said}");
        }
    }
}

#[test]
fn a_case_that_decides_for_no_tensor_is_a_note_and_one_that_never_can_an_error() {
    let folder = Folder::three();
    let plan = |weight: &str| {
        folder.plan(&format!(
            "merge_method: linear\nmodels: [<a>, <b>]\nparameters:\n  weight: {weight}"
        ))
    };
    let notes = |weight: &str| plan(weight).expect("resolves").beside().notes.clone();
    let said = notes("[{filter: mpl, value: 0.3}, {value: 1}]");
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("`weight`: the case `filter: mpl` decides for no tensor (line 4,"),
        "{said:?}"
    );
    let said = notes("[{glob: 'mlp.*', value: 0.3}, {value: 1}]");
    assert!(said[0].contains("stands for the whole name"), "{said:?}");
    let said = notes("[{filter: mlp, value: 0.3}, {filter: fc, value: 2}, {value: 1}]");
    assert!(said[0].contains("`filter: fc`"), "{said:?}");
    let said = notes("[{filter: mlp, value: 0.3}, {filter: '*', value: 1}]");
    assert!(said.is_empty(), "{said:?}");
    for weight in [
        "[{value: 1}, {filter: mlp, value: 0.3}]",
        "[{filter: '*', value: 1}, {filter: mlp, value: 0.3}]",
    ] {
        let said = plan(weight).map(drop).expect_err("refused").to_string();
        assert!(
            said.contains("`filter: mlp` stands behind one that fits every tensor"),
            "{said}"
        );
    }
    // In one of two slices the filter fits.
    let plan = folder.plan(
        "merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [0, 1], parameters: {scale: [{filter: \
         embed, value: 2}, {value: 1}]}}]\n- sources: [{model: <b>, layer_range: [0, 1], parameters: {scale: [{filter: \
         embed, value: 2}, {value: 1}]}}]",
    );
    let said = plan.expect("resolves").beside().notes.clone();
    assert!(said.is_empty(), "{said:?}");
}

#[test]
fn a_parameter_for_all_models_does_not_stand_under_one() {
    let folder = Folder::three();
    let fault = folder
        .plan(
            "merge_method: slerp\nbase_model: <a>\nmodels:\n- <a>\n- {model: <b>, parameters: {t: 0.5}}",
        )
        .map(drop)
        .expect_err("refused");
    let said = fault.to_string();
    assert!(
        said.contains("slerp reads `t` for all models together") && said.contains("(line 5,"),
        "{said}"
    );
    assert!(
        fault
            .hint()
            .is_some_and(|hint| hint.contains("belong to the `parameters`"))
    );
    let plan = folder.plan(
        "merge_method: linear\nmodels: [{model: <a>, parameters: {weight: 1, normalize: false}}, {model: <b>, parameters: \
         {weight: 1}}]",
    );
    let said = plan.expect("resolves").beside().notes.clone();
    assert!(
        said.iter()
            .any(|note| note.contains("`normalize` for all models together")),
        "{said:?}"
    );
}

#[test]
fn a_parameter_of_no_form_is_an_error_that_says_the_forms() {
    let folder = Folder::three();
    let cases = [
        ("", "a gradient as `[0, 0.5, 1]`"),
        ("null", "nothing is given"),
        (
            "[1, {value: 2}]",
            "values along the layers, or cases, not both",
        ),
        (
            "[{value: 2}, 1]",
            "values along the layers, or cases, not both",
        ),
        ("{filters: mlp, value: 2}", "unknown key `filters`"),
        ("[{filters: mlp, value: 2}]", "unknown key `filters`"),
        ("{filter: mlp}", "a case without `value`"),
        ("[[1, 2]]", "a gradient has numbers"),
        ("{value: {value: 1}}", "the `value` of a case is"),
        (".nan", "`.nan` in a recipe, whose numbers are finite"),
        (
            "{vision: 1, vision: 2}",
            "duplicate mapping key: vision, which a map has once",
        ),
    ];
    for (weight, part) in cases {
        let yaml = format!("merge_method: linear\nparameters:\n  weight: {weight}\nmodels: [<a>]");
        let said = folder.fault(&yaml);
        assert!(said.contains(part), "no {part} in {said}");
        for word in ["untagged", "Policy", "policy"] {
            assert!(!said.contains(word), "{word} in {said}");
        }
    }
    let said = folder.fault(
        "merge_method: passthrough\nslices:\n- sources: [{model: <a>, layer_range: [-2, 4]}]",
    );
    assert!(said.contains("not a whole number of 0 or more"), "{said}");
}
