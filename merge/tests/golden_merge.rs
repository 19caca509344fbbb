//! Every merge case of the manifest: results of the published program on tiny checkpoints.

use std::path::{Path, PathBuf};

use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::layouts::Task;
use merge::recipe::{ModelRef, OutputDType, Parameter, Parameters, UnknownKeys};
use merge::{Error, MergePlan, MergeRecipe};
use serde_json::Value;

use crate::fixture::{self, Raw};

fn cases(op: &str) -> Vec<Value> {
    let manifest = fixture::json("manifest.json");
    let all = manifest["cases"].as_array().expect("a list").clone();
    let cases: Vec<Value> = all.into_iter().filter(|case| case["op"] == op).collect();
    assert!(!cases.is_empty(), "the manifest has cases of {op}");
    cases
}

/// The recipe of a case, by the manifest's own names.
fn recipe(case: &Value, method: &str, as_published: bool) -> MergeRecipe {
    let params = &case["params"];
    let mut parameters = Parameters::default();
    let number = |name: &str| params[name].as_f64().map(Parameter::Number);
    let given = [
        ("ratio", number("ratio")),
        ("lambda", number("lambda_")),
        ("shrink", number("scaling_for_non_diag")),
        (
            "grams",
            case["gram"]
                .as_str()
                .map(|file| Parameter::Text(text(&fixture::path(file)))),
        ),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            parameters.set(name, value);
        }
    }
    let selects = method == "regmean" || params["only_activate_used_experts"] == true;
    let task = match params["task"].as_str().filter(|_| selects) {
        Some("irtr") => Some(Task::Irtr),
        Some("vqa") => Some(Task::Vqa),
        Some("nlvr2") => Some(Task::Nlvr2),
        _ => None,
    };
    MergeRecipe {
        merge_method: method.to_owned(),
        models: vec![ModelRef::new(fixture::path(
            case["input"].as_str().expect("an input"),
        ))],
        base_model: case["central"]
            .as_str()
            .map(|file| ModelRef::new(fixture::path(file))),
        layout: None,
        task,
        experts: None,
        parameters,
        as_published,
        out_dtype: OutputDType::Keep,
        unknown_keys: UnknownKeys::Error,
        ..MergeRecipe::default()
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("fixture paths are UTF-8").to_owned()
}

fn run(recipe: &MergeRecipe, target: &Path) -> Result<(), Error> {
    let (plan, _) = MergePlan::resolve(recipe)?;
    let write = WriteOptions::new(target);
    execute(
        &plan,
        &write,
        &RunOptions::default(),
        &merge::progress::Silent,
    )?;
    Ok(())
}

fn merged(recipe: &MergeRecipe) -> std::collections::BTreeMap<String, Raw> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("merged.safetensors");
    run(recipe, &target).expect("merges");
    fixture::tensors(&target)
}

/// Checks all tensors of the expected file, and the hashes of those that pass through unchanged.
fn check(case: &Value, recipe: &MergeRecipe, tolerance: impl Fn(&Raw) -> (f64, f64)) {
    let id = &case["id"];
    let found = merged(recipe);
    let expected = fixture::tensors(&fixture::path(case["expected"].as_str().expect("a file")));
    assert!(expected.len() > 20, "{id}: a real comparison");
    for (name, expected) in &expected {
        let found = found.get(name).unwrap_or_else(|| panic!("{id}: no {name}"));
        assert_eq!(found.shape, expected.shape, "{id}: {name}");
        let (rtol, atol) = tolerance(expected);
        let difference = fixture::first_difference(&found.values(), &expected.values(), rtol, atol);
        assert_eq!(difference, None, "{id}: {name}");
    }
    if recipe.models[0].model.ends_with("ckpt/all_moe.safetensors") && recipe.as_published {
        let unchanged = fixture::json("merge/passthrough.json");
        for (name, listed) in unchanged.as_object().expect("a map") {
            assert_eq!(
                Value::from(found[name].sha256()),
                listed["sha256"],
                "{id}: {name}"
            );
        }
        assert_eq!(
            found.len(),
            156 + unchanged.as_object().map_or(0, |map| map.len()),
            "{id}"
        );
    }
}

#[test]
fn interpolation_is_bit_equal_to_the_published_program_in_f32() {
    for case in cases("interpolate") {
        let is_half = case["input"]
            .as_str()
            .is_some_and(|file| file.contains("half_"));
        if !is_half {
            for as_published in [false, true] {
                check(&case, &recipe(&case, "interpolate", as_published), |_| {
                    (0.0, 0.0)
                });
            }
        }
    }
}

#[test]
fn half_precision_is_bit_equal_when_as_published_and_closer_to_the_truth_otherwise() {
    let mut seen = 0;
    for case in cases("interpolate") {
        let id = &case["id"];
        if !case["input"]
            .as_str()
            .is_some_and(|file| file.contains("half_"))
        {
            continue;
        }
        seen += 1;
        check(&case, &recipe(&case, "interpolate", true), |_| (0.0, 0.0));
        // Rounded once, a result is at most half a unit in the last place from the exact one, and
        // at most two more units from the one that was rounded after every step.
        let unit = if id.as_str().is_some_and(|id| id.contains("bf16")) {
            2f64.powi(-8)
        } else {
            2f64.powi(-11)
        };
        check(&case, &recipe(&case, "interpolate", false), |_| {
            (5.0 * unit, 4.0 * unit)
        });
    }
    assert_eq!(seen, 2);
}

#[test]
fn arithmetic_agrees_with_the_paper_and_with_the_published_program() {
    for case in cases("arithmetic") {
        let as_published = case["formula"] == "upstream_in_place";
        // The paper's cases were computed in f64; tolerance of the manifest.
        let tolerance = if as_published {
            (0.0, 0.0)
        } else {
            (1e-6, 2e-6)
        };
        check(&case, &recipe(&case, "arithmetic", as_published), |_| {
            tolerance
        });
    }
}

#[test]
fn regmean_as_published_agrees_to_1e_10_of_the_largest_value() {
    for case in cases("regmean") {
        check(
            &case,
            &recipe(&case, "regmean", true),
            |expected| match expected.dtype {
                safetensors::Dtype::F64 => {
                    let largest = expected
                        .values()
                        .iter()
                        .fold(0.0f64, |max, v| max.max(v.abs()));
                    (0.0, 1e-10 * largest)
                }
                _ => (1e-6, 1e-6),
            },
        );
    }
}

#[test]
fn regmean_rounds_once_to_the_dtype_of_its_inputs() {
    for case in cases("regmean") {
        // By default NLVR2 merges only the experts that it uses; see docs/parity.md.
        if case["params"]["task"] == "nlvr2" {
            continue;
        }
        let recipe = recipe(&case, "regmean", false);
        check(&case, &recipe, |expected| match expected.dtype {
            // Half a unit of f32 around the f64 value, and the solvers' difference.
            safetensors::Dtype::F64 => (2f64.powi(-24), 1e-9),
            _ => (1e-6, 1e-6),
        });
        assert!(
            merged(&recipe)
                .values()
                .all(|raw| raw.dtype != safetensors::Dtype::F64)
        );
    }
}

#[test]
fn a_pth_gram_file_gives_what_its_safetensors_twin_gives() {
    let case = &cases("regmean")[0];
    let mut from_pth = recipe(case, "regmean", false);
    let twin = fixture::path("merge/gram_irtr.pth");
    assert_eq!(case["gram"], "merge/gram_irtr.safetensors");
    from_pth
        .parameters
        .set("grams", Parameter::Text(text(&twin)));
    assert_eq!(merged(&from_pth), merged(&recipe(case, "regmean", false)));
}

/// Applies the `remove` and `replace` of a case to a copy of a fixture.
fn spoiled(folder: &Path, file: &str, removed: &Value, replaced: &Value) -> PathBuf {
    let mut tensors = fixture::tensors(&fixture::path(file));
    for key in removed.as_array().into_iter().flatten() {
        tensors
            .remove(key.as_str().expect("a key"))
            .expect("the key is there");
    }
    for (key, how) in replaced.as_object().into_iter().flatten() {
        assert_eq!(how, "drop the last row");
        let raw = tensors.get_mut(key).expect("the key is there");
        let row = raw.bytes.len() / raw.shape[0];
        raw.shape[0] -= 1;
        raw.bytes.truncate(raw.bytes.len() - row);
    }
    let path = folder.join(Path::new(file).file_name().expect("a name"));
    fixture::write(&path, &tensors);
    path
}

#[test]
fn damaged_inputs_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("merged.safetensors");
    for case in cases("expect_error") {
        let id = case["id"].as_str().expect("an id");
        let Some(operation) = case["operation"]
            .as_str()
            .filter(|op| *op != "nlvr2 fine-tuning start")
        else {
            continue;
        };
        let mut recipe = recipe(&case, operation, false);
        let input = case["input"].as_str().expect("an input");
        recipe.models[0].model = spoiled(folder.path(), input, &case["remove"], &case["replace"]);
        if let Some(central) = case["central"].as_str() {
            let base = spoiled(
                folder.path(),
                central,
                &case["remove_from_central"],
                &Value::Null,
            );
            recipe.base_model = Some(ModelRef::new(base));
        }
        let message = match id {
            // Here the choice of experts is part of the recipe, so there is nothing to refuse
            // without one: all experts take part.
            "error/used_experts_without_task" => {
                run(&recipe, &target).expect("all experts take part");
                std::fs::remove_file(&target).expect("written");
                continue;
            }
            _ => run(&recipe, &target).expect_err(id).to_string(),
        };
        let named: &[&str] = match id {
            "error/missing_expert_tensor" => {
                &["transformer.blocks.11.mlp.fc2.weight", "vision_language"]
            }
            "error/missing_language_expert" => &["transformer.blocks.3.attn.q_bias", "language"],
            "error/shape_mismatch" => &[
                "transformer.blocks.2.mlp.l.fc1.weight",
                "[95, 24]",
                "[96, 24]",
            ],
            "error/central_missing" => &["transformer.blocks.5.norm2.weight", "ufo.safetensors"],
            "error/regmean_gram_of_wrong_task" => {
                &["transformer.blocks.10.attn.proj.weight", "vision_language"]
            }
            other => panic!("a case this test does not know: {other}"),
        };
        for part in named {
            assert!(message.contains(part), "{id}: {message}");
        }
        assert!(!target.exists(), "{id}: nothing is written");
    }
}
