//! Greedy soups, as a user cooks them.

use std::path::Path;

use serde_json::Value;

use crate::program::{Said, start, vlmerge, wait_until_kept};

const SPECIFIC: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";

/// A folder with checkpoints of one model.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, ratio) in [("a", "0.1"), ("b", "0.5"), ("c", "0.7"), ("d", "0.95")] {
        let out = path(folder.path(), &format!("{name}.safetensors"));
        let said = vlmerge(&[
            "interpolate",
            SPECIFIC,
            "--ratio",
            ratio,
            "--out",
            &out,
            "--no-sync",
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    }
    folder
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

fn arguments(
    folder: &Path,
    verb: &str,
    checkpoints: &[&str],
    out: &str,
    split: &str,
) -> Vec<String> {
    let checkpoints = checkpoints
        .iter()
        .map(|name| path(folder, &format!("{name}.safetensors")));
    let flags = [
        "--task",
        "retrieval",
        "--data",
        "fixtures/arrow",
        "--tokenizer",
        "fixtures/real/vocab.txt",
        "--text-table-len",
        "16",
        "--limit",
        "12",
        "--resamples",
        "100",
        "--json",
        "--split",
        split,
        "--out",
    ];
    let flags = flags.iter().map(|&flag| flag.to_owned());
    let start = std::iter::once(verb.to_owned());
    start
        .chain(checkpoints)
        .chain(flags)
        .chain([path(folder, out)])
        .collect()
}

fn run(arguments: &[String]) -> Said {
    vlmerge(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn results(folder: &Path, name: &str) -> Vec<(String, f64)> {
    let text = std::fs::read_to_string(folder.join(name)).expect("a report");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let worth = |result: &Value| {
        let numbers = result["measurements"].as_array().expect("numbers");
        let sum = numbers.iter().find(|number| number["name"] == "rsum");
        sum.expect("rsum")["value"].as_f64().expect("a number")
    };
    let all = report["results"].as_array().expect("a list").iter();
    all.map(|result| {
        (
            result["name"].as_str().expect("a name").to_owned(),
            worth(result),
        )
    })
    .collect()
}

#[test]
fn each_checkpoint_in_turn_joins_if_the_number_does_not_fall() {
    let folder = folder();
    let all = ["a", "b", "c", "d"];
    let said = run(&arguments(folder.path(), "soup", &all, "soup.json", "val"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    let results = results(folder.path(), "soup.json");
    assert_eq!(results.len(), 7, "four alone, then three steps");
    // The same by hand, from the numbers in the report.
    let mut ranked = results[..4].to_vec();
    ranked.sort_by(|one, other| other.1.total_cmp(&one.1));
    let mut soup = ranked[0].clone();
    for (next, step) in ranked[1..].iter().zip(&results[4..]) {
        assert_eq!(step.0, format!("{} + {}", soup.0, next.0));
        if step.1 >= soup.1 {
            soup.clone_from(step);
        }
    }
    assert_eq!(found["result"], soup.0.as_str());
    assert_eq!(found["worth"].as_f64(), Some(soup.1));
    let n = |key: &str| found[key].as_array().expect("a list").len();
    assert_eq!(n("ingredients"), soup.0.split(" + ").count());
    assert_eq!(n("ingredients") + n("left_out"), 4);
    // The recipe that is left makes weights of the same worth.
    let (recipe, merged) = (
        path(folder.path(), "soup.best.yaml"),
        path(folder.path(), "soup.safetensors"),
    );
    let said = vlmerge(&["merge", &recipe, "--out", &merged]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let said = run(&arguments(
        folder.path(),
        "evaluate",
        &["soup"],
        "again.json",
        "val",
    ));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(self::results(folder.path(), "again.json")[0].1, soup.1);
}

#[test]
fn a_soup_that_is_killed_goes_the_same_way_again() {
    let folder = folder();
    let all = ["d", "a", "c"];
    let said = run(&arguments(folder.path(), "soup", &all, "whole.json", "val"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let mut child = start(&arguments(
        folder.path(),
        "soup",
        &all,
        "killed.json",
        "val",
    ));
    let kept = folder.path().join("killed.json.unfinished");
    wait_until_kept(&mut child, &kept, 2);
    child.kill().expect("killed");
    let was_killed = !child.wait().expect("ended").success();
    let mut again = arguments(folder.path(), "soup", &all, "killed.json", "val");
    again.push("--force".into());
    let said = run(&again);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        !was_killed
            || said
                .stderr
                .contains("was measured before the run was stopped"),
        "{}",
        said.stderr
    );
    let of = |name: &str| results(folder.path(), name);
    assert_eq!(of("killed.json"), of("whole.json"));
}

#[test]
fn what_cannot_be_a_soup_is_refused_before_anything_is_measured() {
    let folder = folder();
    let refused = |checkpoints: &[&str], split: &str, code: i32, part: &str| {
        let said = run(&arguments(
            folder.path(),
            "soup",
            checkpoints,
            "soup.json",
            split,
        ));
        assert_eq!(said.code, Some(code), "{}", said.stderr);
        assert!(said.stderr.contains(part), "no {part} in {}", said.stderr);
        assert!(!folder.path().join("soup.json").exists());
    };
    refused(&["a", "b"], "test", 2, "test data");
    refused(&["a"], "val", 2, "2 values required");
    let specific = path(folder.path(), "specific.safetensors");
    assert_eq!(vlmerge(&["convert", SPECIFIC, &specific]).code, Some(0));
    refused(
        &["a", "specific"],
        "val",
        1,
        "specific.safetensors only, not in",
    );
}
