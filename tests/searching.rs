//! Searching the numbers of a recipe, as a user does.

use std::path::Path;

use crate::program::{Said, start, vlmerge, wait_until_kept};

const RECIPE: &str = "\
merge_method: interpolate
models: [{ model: fixtures/ckpt/all_moe_pretrain.ckpt }]
for: retrieval
parameters: { ratio: { search: [0.0, 1.0] } }
";

/// A folder with the recipe in it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("recipe.yaml"), RECIPE).expect("written");
    folder
}

fn arguments(folder: &Path, out: &str, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let (recipe, out) = (path("recipe.yaml"), path(out));
    let usual = [
        "search",
        &recipe,
        "--out",
        &out,
        "--task",
        "retrieval",
        "--data",
        "fixtures/arrow",
        "--tokenizer",
        "fixtures/real/vocab.txt",
        "--text-table-len",
        "16",
        "--limit",
        "8",
    ];
    usual
        .iter()
        .chain(more)
        .map(|&word| word.to_owned())
        .collect()
}

fn search(folder: &Path, out: &str, more: &[&str]) -> Said {
    let arguments = arguments(folder, out, more);
    vlmerge(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn a_search_finds_what_a_sweep_finds_and_writes_the_recipe() {
    let folder = folder();
    let said = search(
        folder.path(),
        "grid.json",
        &["--split", "val", "--grid", "5", "--json"],
    );
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    assert_eq!(found["trials"], 5);
    let report = std::fs::read_to_string(folder.path().join("grid.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let worth = |result: &serde_json::Value| {
        let numbers = result["measurements"].as_array().expect("numbers");
        let sum = numbers.iter().find(|number| number["name"] == "rsum");
        sum.expect("rsum")["value"].as_f64().expect("a number")
    };
    let results = report["results"].as_array().expect("results");
    assert_eq!(results.len(), 5);
    let best = results.iter().map(worth).fold(f64::MIN, f64::max);
    assert_eq!(found["best"]["worth"].as_f64(), Some(best));
    let marked: Vec<f64> = results
        .iter()
        .filter(|r| r["point"]["is_best"] == true)
        .map(worth)
        .collect();
    assert_eq!(marked, [best]);

    // The recipe that is left is one that can be run.
    let recipe = folder.path().join("grid.best.yaml").display().to_string();
    let ratio = found["best"]["values"]["parameters.ratio"]
        .as_f64()
        .expect("a ratio");
    let text = std::fs::read_to_string(&recipe).expect("a recipe");
    assert!(text.contains(&format!("ratio: {ratio:?}")), "{text}");
    let merged = folder
        .path()
        .join("merged.safetensors")
        .display()
        .to_string();
    let said = vlmerge(&["merge", &recipe, "--out", &merged]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn a_search_that_is_killed_goes_the_same_way_again() {
    let folder = folder();
    let flags = ["--split", "val", "--trials", "10", "--search-seed", "7"];
    let said = search(folder.path(), "whole.json", &flags);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let mut child = start(&arguments(folder.path(), "killed.json", &flags));
    let kept = folder.path().join("killed.json.unfinished");
    wait_until_kept(&mut child, &kept, 2);
    let second = search(folder.path(), "killed.json", &flags);
    if second.code != Some(0) {
        assert!(
            second.stderr.contains("another process is at work"),
            "{}",
            second.stderr
        );
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let said = search(
        folder.path(),
        "killed.json",
        &[&flags[..], &["--force"]].concat(),
    );
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let results = |name: &str| {
        let text = std::fs::read_to_string(folder.path().join(name)).expect("a report");
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let results = report["results"].as_array().expect("results").clone();
        let of = |r: &serde_json::Value| (r["name"].clone(), r["measurements"].clone());
        results.iter().map(of).collect::<Vec<_>>()
    };
    assert!(results("whole.json").len() >= 8);
    assert_eq!(results("whole.json"), results("killed.json"));
}

#[test]
fn a_merge_that_fails_is_no_end_of_a_search() {
    let folder = folder();
    let flags = ["--split", "val", "--grid", "3", "--json"];
    // A ratio is at most 1, and the grid has 0, 1 and 2.
    let over = ["--over", "parameters.ratio=0:2"];
    let recipe = folder.path().join("recipe.yaml");
    let plain = RECIPE.replace("{ search: [0.0, 1.0] }", "0.5");
    std::fs::write(&recipe, plain).expect("written");
    let said = search(folder.path(), "out.json", &[&flags[..], &over].concat());
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    assert_eq!(found["trials"], 3);
    let failed = found["failed"].as_array().expect("a list");
    assert_eq!(failed.len(), 1, "{found}");
    assert_eq!(failed[0]["values"]["parameters.ratio"], 2.0);
    let reason = failed[0]["reason"].as_str().expect("a reason");
    assert!(reason.contains("ratio"), "{reason}");
    let one = ["--stop-after-failures", "1", "--force"];
    let flags = [&flags[..], &over, &one].concat();
    let said = search(folder.path(), "out.json", &flags);
    assert!(matches!(said.code, Some(1 | 2)), "{}", said.stderr);
    assert!(
        said.stderr.contains("parameters.ratio 2 failed"),
        "{}",
        said.stderr
    );
}

#[test]
fn searches_that_cannot_be_are_refused() {
    let folder = folder();
    for (flags, expected) in [
        (&["--grid", "3"][..], "`test` is test data"),
        (
            &["--split", "val", "--over", "parameters.ratio=1:0"],
            "LOW < HIGH",
        ),
        (
            &["--split", "val", "--over", "parameters.ratio"],
            "write KEY=LOW:HIGH",
        ),
        (
            &["--split", "val", "--grid", "100000"],
            "more than 10000 points",
        ),
    ] {
        let said = search(folder.path(), "out.json", flags);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains(expected), "{}", said.stderr);
    }
}
