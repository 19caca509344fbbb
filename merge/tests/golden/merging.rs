//! Merges of experts against the published program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use fixtures::{Case, Raw, Set, first_difference};
use merge::execute::{RunOptions, execute};
use merge::io::WriteOptions;
use merge::layouts::Task;
use merge::recipe::{ModelRef, Parameter};
use merge::{Error, MergePlan, MergeRecipe};
use safetensors::Dtype;
use serde_json::Value;

fixtures::golden_tests! {
    package: "merge", set: "vl_merging",
    interpolation_is_that_of_the_published_program: "interpolate" => interpolation,
    arithmetic_is_that_of_the_paper_and_of_the_published_program: "arithmetic" => arithmetic,
    regmean_is_that_of_the_published_program: "regmean" => regmean,
}

/// The recipe of a case, by the manifest's own names.
pub fn recipe(case: &Case, method: &str, as_published: bool) -> MergeRecipe {
    let mut recipe = MergeRecipe {
        merge_method: method.to_owned(),
        models: vec![ModelRef::new(case.file("input"))],
        base_model: case.file_if_any("central").map(ModelRef::new),
        as_published,
        ..MergeRecipe::default()
    };
    for (ours, theirs) in [
        ("ratio", "ratio"),
        ("lambda", "lambda_"),
        ("shrink", "scaling_for_non_diag"),
    ] {
        if let Some(number) = case.number(theirs) {
            recipe.parameters.set(ours, Parameter::Number(number));
        }
    }
    if let Some(grams) = case.file_if_any("gram") {
        recipe
            .parameters
            .set("grams", Parameter::Text(text(&grams)));
    }
    let selects = method == "regmean" || case["params"]["only_activate_used_experts"] == true;
    recipe.task = (case.param("task").filter(|_| selects)).map(|task| match task {
        "irtr" => Task::Retrieval,
        "vqa" => Task::Vqa,
        "nlvr2" => Task::Nlvr2,
        other => panic!("a task that this test does not know: {other}"),
    });
    recipe
}

fn text(path: &Path) -> String {
    path.to_str()
        .expect("paths of golden sets are UTF-8")
        .to_owned()
}

pub fn run(recipe: &MergeRecipe, target: &Path) -> Result<(), Error> {
    let (plan, _) = MergePlan::resolve(recipe)?;
    let (write, run) = (WriteOptions::new(target), RunOptions::default());
    execute(&plan, &write, &run, &merge::progress::Silent)?;
    Ok(())
}

fn merged(recipe: &MergeRecipe) -> BTreeMap<String, Raw> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("merged.safetensors");
    run(recipe, &target).expect("merges");
    fixtures::tensors(&target)
}

/// Relative and absolute tolerance for an expected tensor.
type Tolerance<'a> = &'a dyn Fn(&Raw) -> (f64, f64);

/// Checks all tensors of the expected file, and that every other tensor is one of the input
/// unchanged, or belongs to a block that the expected file leaves out.
fn check(case: &Case, recipe: &MergeRecipe, tolerance: Tolerance<'_>) {
    let (found, expected) = (merged(recipe), case.tensors("expected"));
    assert!(!expected.is_empty(), "a comparison");
    for (name, expected) in &expected {
        let found = found.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.shape, expected.shape, "{name}");
        let (rtol, atol) = tolerance(expected);
        let difference = first_difference(&found.values(), &expected.values(), rtol, atol);
        assert_eq!(difference, None, "{name}");
    }
    let parts: BTreeSet<&str> = expected.keys().filter_map(|name| part(name)).collect();
    let input = merge::io::open(&recipe.models[0].model, &Default::default()).expect("opens");
    for (name, raw) in &found {
        if expected.contains_key(name) {
            continue;
        }
        match input.get(name) {
            Some(_) => {
                let bytes = input.read_all(name).expect("reads");
                assert!(raw.bytes == bytes, "{name} passes through");
            }
            None => assert!(
                part(name).is_some_and(|part| parts.contains(part)),
                "{name} is of no input and no expected block"
            ),
        }
    }
    if recipe.as_published {
        check_listed(case.set(), recipe, &found);
    }
}

/// The rest of the name of a block's tensor: `attn.proj.weight` of `transformer.blocks.3.attn.proj.weight`.
fn part(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("transformer.blocks.")?;
    rest.split_once('.').map(|(_, part)| part)
}

/// The tensors that the published program passes through have the listed hashes, where the input is
/// the one that was listed.
fn check_listed(set: &Set, recipe: &MergeRecipe, found: &BTreeMap<String, Raw>) {
    let listed = set.json("merge/passthrough.json");
    let listed = listed.as_object().expect("a map");
    let input = merge::io::open(&recipe.models[0].model, &Default::default()).expect("opens");
    let is_listed = |(name, listed): (&String, &Value)| {
        let bytes = input.get(name).and_then(|_| input.read_all(name).ok());
        bytes.is_some_and(|bytes| listed["sha256"] == fixtures::sha256_of(&bytes))
    };
    if !listed.iter().all(is_listed) {
        return;
    }
    for (name, listed) in listed {
        let raw = found.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(listed["sha256"], raw.sha256(), "{name}");
        assert_eq!(listed["shape"], Value::from(raw.shape.clone()), "{name}");
    }
}

/// The tolerance that the manifest states for a case.
fn stated(case: &Case) -> (f64, f64) {
    (case.tolerance("", "rtol"), case.tolerance("", "atol"))
}

fn interpolation(case: &Case) {
    for as_published in [false, true] {
        let recipe = recipe(case, "interpolate", as_published);
        check(case, &recipe, &|_| stated(case));
    }
}

fn is_of_paper(case: &Case) -> bool {
    match case.text("formula") {
        "paper" => true,
        "upstream_in_place" => false,
        other => panic!("a formula that this test does not know: {other}"),
    }
}

fn arithmetic(case: &Case) {
    let recipe = recipe(case, "arithmetic", !is_of_paper(case));
    check(case, &recipe, &|_| stated(case));
}

/// As published, matrices are in `f64` and compared by the largest value of the tensor.
fn regmean(case: &Case) {
    check(case, &recipe(case, "regmean", true), &|expected| {
        if expected.dtype != Dtype::F64 {
            return (case.tolerance("f32", "rtol"), case.tolerance("f32", "atol"));
        }
        let sizes = expected.values().into_iter().map(f64::abs);
        let largest = sizes.fold(0.0, f64::max);
        (0.0, case.tolerance("f64", "rel_to_max_abs") * largest)
    });
}

/// The repository's own set, in which more is known than its manifest states.
fn own_cases(op: &str) -> Vec<Case> {
    Set::of_repository("vl_merging").cases(op)
}

fn is_half(case: &Case) -> bool {
    let tensors = case.tensors("input");
    (tensors.values()).any(|raw| matches!(raw.dtype, Dtype::F16 | Dtype::BF16))
}

#[test]
fn interpolation_of_the_fixtures_is_bit_equal_to_the_published_program() {
    for case in own_cases("interpolate") {
        check(&case, &recipe(&case, "interpolate", true), &|_| (0.0, 0.0));
        if !is_half(&case) {
            check(&case, &recipe(&case, "interpolate", false), &|_| (0.0, 0.0));
        }
    }
}

#[test]
fn arithmetic_of_the_fixtures_is_bit_equal_to_the_published_program() {
    let cases = own_cases("arithmetic").into_iter();
    for case in cases.filter(|case| !is_of_paper(case)) {
        check(&case, &recipe(&case, "arithmetic", true), &|_| (0.0, 0.0));
    }
}

#[test]
fn regmean_rounds_once_to_the_dtype_of_its_inputs() {
    for case in own_cases("regmean") {
        // By default NLVR2 merges only the experts that it uses; see docs/parity.md.
        if case.param("task") == Some("nlvr2") {
            continue;
        }
        let recipe = recipe(&case, "regmean", false);
        check(&case, &recipe, &|expected| match expected.dtype {
            // Half a unit of f32 around the f64 value, and the solvers' difference.
            Dtype::F64 => (2f64.powi(-24), 1e-9),
            _ => (1e-6, 1e-6),
        });
        let found = merged(&recipe);
        assert!(found.values().all(|raw| raw.dtype != Dtype::F64));
    }
}

#[test]
fn a_pth_gram_file_gives_what_its_safetensors_twin_gives() {
    let case = &own_cases("regmean")[0];
    let mut from_pth = recipe(case, "regmean", false);
    let twin = fixtures::path("merge/gram_irtr.pth");
    assert_eq!(case["gram"], "merge/gram_irtr.safetensors");
    from_pth
        .parameters
        .set("grams", Parameter::Text(text(&twin)));
    assert_eq!(merged(&from_pth), merged(&recipe(case, "regmean", false)));
}
