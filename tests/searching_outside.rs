//! Searches that an outside program scores.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{Said, start, vlmerge, wait_until_kept};

const RECIPE: &str = "\
merge_method: interpolate
models: [{ model: fixtures/ckpt/all_moe_pretrain.ckpt }]
for: retrieval
parameters: { ratio: { search: [0.0, 1.0] } }
";

/// A hill over the ratio with its top at 0.7, from the recipe that the merged file names.
const HILL: &str = "\
ratio=$(grep -ao 'ratio: [0-9.]*' \"$1/model.safetensors\" | head -1 | cut -d' ' -f2)
value=$(awk \"BEGIN { print 1 - ($ratio - 0.7) ^ 2 }\")
echo run >> \"$(dirname \"$0\")/runs\"
";

/// A folder whose name has a blank, with the recipe and a script in it.
fn folder(script: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("a blank ").tempdir();
    let folder = folder.expect("a folder");
    std::fs::write(folder.path().join("recipe.yaml"), RECIPE).expect("written");
    std::fs::write(folder.path().join("score.sh"), script).expect("written");
    folder
}

fn arguments(folder: &Path, command: &str, more: &[&str]) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let command = command.replace("SCRIPT", &path("score.sh"));
    let (recipe, out) = (path("recipe.yaml"), path("out.json"));
    let usual = ["search", &recipe, "--out", &out, "--score", &command];
    let all = usual.iter().chain(more);
    all.map(|&word| word.to_owned()).collect()
}

fn search(folder: &Path, command: &str, more: &[&str]) -> Said {
    let arguments = arguments(folder, command, more);
    vlmerge(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn n_runs(folder: &Path) -> usize {
    let runs = std::fs::read_to_string(folder.join("runs"));
    runs.map_or(0, |runs| runs.lines().count())
}

#[test]
fn the_number_of_a_program_is_maximized_by_several_jobs_at_once() {
    let script =
        format!("{HILL}echo log; echo '{{\"results\": {{\"t\": {{\"acc,none\": '$value'}}}}}}'\n");
    let folder = folder(&script);
    let flags = [
        "--grid",
        "5",
        "--jobs",
        "2",
        "--score-key",
        "results.t.acc,none",
        "--json",
    ];
    let said = search(folder.path(), "sh 'SCRIPT' {model}", &flags);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    assert_eq!(found["trials"], 5);
    assert_eq!(found["best"]["values"]["parameters.ratio"], 0.75);
    assert_eq!(found["best"]["worth"], 0.9975);
    let report = std::fs::read_to_string(folder.path().join("out.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let results = report["results"].as_array().expect("results");
    let values: Vec<f64> = (results.iter())
        .map(|result| {
            result["measurements"][0]["value"]
                .as_f64()
                .expect("a number")
        })
        .collect();
    assert_eq!(values, [0.51, 0.7975, 0.96, 0.9975, 0.91]);
    assert_eq!(results[3]["point"]["is_best"], true);
    assert_eq!(results[3]["measurements"][0]["name"], "results.t.acc,none");
    assert!(folder.path().join("out.best.yaml").exists());
    assert!(!folder.path().join("out.json.unfinished").exists());
    let page = folder.path().join("out.html").display().to_string();
    let out = folder.path().join("out.json").display().to_string();
    let said = vlmerge(&["report", &out, "--out", &page]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn the_least_number_of_a_file_of_results_is_found() {
    let script = format!(
        "{HILL}mkdir -p \"$2/m\"; echo '{{\"loss\": '$value'}}' > \"$2/m/results_1.json\"\n\
         echo '{{\"x\": 1}}' > \"$2/other.json\"\n"
    );
    let folder = folder(&script);
    let flags = ["--grid", "3", "--minimize"];
    let said = search(folder.path(), "sh 'SCRIPT' {model} {out}", &flags);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("best of 3: 0.5100 at"),
        "{}",
        said.stdout
    );
    let report = std::fs::read_to_string(folder.path().join("out.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["results"][0]["point"]["is_best"], true);
    assert_eq!(
        report["results"][0]["measurements"][0]["higher_is_better"],
        false
    );
}

#[test]
fn a_program_gets_the_folder_that_a_merge_writes() {
    let script = "ls \"$1\" | tr '\\n' ' ' >&2; exit 9\n";
    let folder = folder(script);
    let said = search(folder.path(), "sh 'SCRIPT' {model}", &["--grid", "1"]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for part in ["sh ended with exit code 9", "README.md model.safetensors"] {
        assert!(said.stderr.contains(part), "{}", said.stderr);
    }
    let left = std::fs::read_dir(folder.path().join("out.json.unfinished")).expect("a journal");
    let names = left.flatten().map(|entry| entry.file_name());
    let mut names: Vec<_> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    names.sort();
    // The failure, by a hash of its recipe, and no folder of the trial.
    assert!(
        matches!(&names[..], [failed, lock] if failed.ends_with(".json") && lock == "lock"),
        "{names:?}"
    );
}

#[test]
fn what_is_no_number_is_a_failure() {
    for (line, flags, expected) in [
        (
            "echo '{\"a\": NaN}'",
            &["--score-key", "a"][..],
            "NaN under `a`",
        ),
        (
            "echo '{\"a\": 1}'",
            &["--score-key", "b"],
            "has no `b`; its numbers are a",
        ),
        (
            "echo '{\"a\": 1, \"b\": 2}'",
            &[],
            "no key says which number",
        ),
        (
            "echo '{\"a\": \"1\"}'",
            &["--score-key", "a"],
            "no finite number",
        ),
        ("echo accuracy 0.5", &[], "is no JSON: accuracy 0.5"),
        ("true", &[], "wrote nothing to stdout"),
    ] {
        let folder = folder(line);
        let flags = [&["--grid", "1"][..], flags].concat();
        let said = search(folder.path(), "sh 'SCRIPT' {model}", &flags);
        assert_eq!(said.code, Some(1), "{line}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{line}: {}", said.stderr);
        assert!(said.stderr.contains("all 1 failed"), "{}", said.stderr);
    }
}

#[test]
fn a_trial_that_fails_is_named_and_the_search_goes_on() {
    let script = format!(
        "{HILL}if [ $ratio = 0.5 ]; then seq 100 >&2; echo out of memory >&2; exit 3; fi; echo $value\n"
    );
    for jobs in ["1", "2"] {
        let folder = folder(&script);
        let flags = ["--grid", "5", "--jobs", jobs, "--json"];
        let said = search(folder.path(), "sh 'SCRIPT' {model}", &flags);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let found = said.json();
        assert_eq!(
            (&found["trials"], &found["best"]["worth"]),
            (&json!(5), &json!(0.9975))
        );
        let failed = found["failed"].as_array().expect("a list");
        assert_eq!(failed.len(), 1, "{found}");
        assert_eq!(failed[0]["trial"], 3);
        assert_eq!(failed[0]["values"], json!({ "parameters.ratio": 0.5 }));
        assert_eq!(failed[0]["reason"], "sh ended with exit code 3");
        let lines = failed[0]["stderr"].as_array().expect("lines");
        assert_eq!(lines.len(), 12);
        assert_eq!(
            (&lines[0], &lines[11]),
            (&json!("90"), &json!("out of memory"))
        );
        assert!(
            said.stderr
                .contains("   3  failed  parameters.ratio 0.5: sh ended"),
            "{}",
            said.stderr
        );
        let report = std::fs::read_to_string(folder.path().join("out.json")).expect("a report");
        let report: Value = serde_json::from_str(&report).expect("JSON");
        assert_eq!(report["results"].as_array().expect("results").len(), 4);
        assert_eq!(report["failed"][0]["stderr"][11], "out of memory");
        assert_eq!(report["failed"][0]["point"]["value"], 3.0);
        let out = folder.path().join("out.json").display().to_string();
        let said = vlmerge(&["report", &out]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let remark = "these trials failed and stand in no table: parameters.ratio 0.5.";
        assert!(said.stdout.contains(remark), "{}", said.stdout);
    }
}

#[test]
fn failures_in_a_row_end_the_search_and_are_tried_again_or_skipped_as_asked() {
    let script = format!(
        "{HILL}if [ -e \"$(dirname \"$0\")/broken\" ]; then echo broken >&2; exit 1; fi; echo $value\n"
    );
    for (flag, n_failed, n_more) in [(&["--skip-failed"][..], 2, 3), (&[], 0, 5)] {
        let folder = folder(&script);
        std::fs::write(folder.path().join("broken"), "").expect("written");
        let command = "sh 'SCRIPT' {model}";
        let usual = ["--grid", "5", "--stop-after-failures", "2"];
        let said = search(folder.path(), command, &usual);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        for part in ["2 trials failed one after the other", "stderr:\nbroken"] {
            assert!(said.stderr.contains(part), "{}", said.stderr);
        }
        assert_eq!(n_runs(folder.path()), 2);
        std::fs::remove_file(folder.path().join("broken")).expect("removed");
        let flags = [&usual[..], &["--json"], flag].concat();
        let said = search(folder.path(), command, &flags);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let found = said.json();
        assert_eq!(found["trials"], 5);
        assert_eq!(found["failed"].as_array().expect("a list").len(), n_failed);
        assert_eq!(n_runs(folder.path()), 2 + n_more);
    }
}

#[test]
fn a_search_whose_trials_all_fail_fails() {
    let folder = folder("exit 4");
    let said = search(
        folder.path(),
        "sh 'SCRIPT' {model}",
        &["--grid", "2", "--json"],
    );
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    let found = said.json();
    assert_eq!(found["best"], Value::Null);
    assert_eq!(found["failed"].as_array().expect("a list").len(), 2);
    assert!(said.stderr.contains("all 2 failed"), "{}", said.stderr);
    assert!(!folder.path().join("out.json").exists());
    // It goes on, so a report is not refused as one of another search.
    let said = search(folder.path(), "no-such-program {model}", &["--grid", "2"]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(
        said.stderr
            .contains("cannot start no-such-program: No such file"),
        "{}",
        said.stderr
    );
    assert!(!said.stderr.contains("failed one after"), "{}", said.stderr);
}

#[test]
fn flags_that_do_not_go_with_a_program_are_refused() {
    let folder = folder("");
    for (command, flags, expected) in [
        ("sh x", &[][..], "write {model}"),
        ("sh 'x {model}", &[], "a quote is not closed"),
        (
            "sh {model}",
            &["--task", "vqa", "--data", "x"],
            "cannot be used with",
        ),
        ("sh {model}", &["--heads", "3"], "cannot be used with"),
        ("sh {model}", &["--scratch", "no/such"], "is no folder"),
    ] {
        let said = search(folder.path(), command, flags);
        assert_eq!(said.code, Some(2), "{command}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{command}: {}", said.stderr);
    }
    let recipe = folder.path().join("recipe.yaml").display().to_string();
    let said = vlmerge(&["search", &recipe, "--out", "x.json"]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("--task") && said.stderr.contains("--data"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_search_that_is_killed_scores_no_trial_twice() {
    let script = format!("{HILL}sleep 0.2; echo $value\n");
    let folder = folder(&script);
    let flags = ["--trials", "10", "--search-seed", "3"];
    let command = "sh 'SCRIPT' {model}";
    let mut child = start(&arguments(folder.path(), command, &flags));
    wait_until_kept(&mut child, &folder.path().join("out.json.unfinished"), 2);
    child.kill().expect("killed");
    child.wait().expect("ended");
    std::thread::sleep(Duration::from_millis(500));
    let before = n_runs(folder.path());
    let said = search(folder.path(), command, &flags);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let report = std::fs::read_to_string(folder.path().join("out.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let n = report["results"].as_array().expect("results").len();
    assert!(before >= 2 && n >= 8, "{before} {n}");
    // The one that was at work when the search was killed may run twice.
    let after = n_runs(folder.path());
    assert!(after == n || after == n + 1, "{before} {after} {n}");
}

/// A program that works for minutes, with a child, and one that left its session.
const LONG: &str = "\
cd \"$(dirname \"$0\")\"
sleep 300 & echo $! > child
setsid sleep 300 & echo $! > apart
echo $$ > own; mv own pid
wait
";

fn kill(what: &str, of: &str) -> bool {
    let sent = Command::new("kill").args([what, of.trim()]).output();
    sent.expect("kill runs").status.success()
}

/// Starts a search whose program works for minutes; and the processes of the program.
fn at_work(folder: &Path) -> (Child, Vec<String>) {
    let child = start(&arguments(folder, "sh 'SCRIPT' {model}", &[]));
    let begun = Instant::now();
    while !folder.join("pid").exists() && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let processes = ["pid", "child", "apart"]
        .map(|name| std::fs::read_to_string(folder.join(name)).expect("it runs"))
        .to_vec();
    assert!(processes.iter().all(|process| kill("-0", process)));
    (child, processes)
}

#[test]
fn a_signal_ends_the_program_with_all_that_it_started() {
    for signal in ["-TERM", "-INT"] {
        let folder = folder(LONG);
        let (mut child, processes) = at_work(folder.path());
        assert!(kill(signal, &child.id().to_string()));
        let status = child.wait().expect("it ends");
        assert!(!status.success());
        for process in processes {
            assert!(!kill("-0", &process), "{signal}");
        }
    }
}

#[test]
fn a_search_that_is_killed_leaves_no_program() {
    let folder = folder(LONG);
    let (mut child, processes) = at_work(folder.path());
    child.kill().expect("killed");
    child.wait().expect("ended");
    let begun = Instant::now();
    for process in processes {
        while kill("-0", &process) {
            assert!(begun.elapsed() < Duration::from_secs(20), "{process}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_program_that_takes_too_long_is_ended_with_what_it_started() {
    let folder = folder(LONG);
    let flags = ["--grid", "1", "--score-timeout", "1"];
    let said = search(folder.path(), "sh 'SCRIPT' {model}", &flags);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(
        said.stderr
            .contains("sh took longer than 1 s, and was ended"),
        "{}",
        said.stderr
    );
    for name in ["pid", "child", "apart"] {
        let process = std::fs::read_to_string(folder.path().join(name)).expect("it ran");
        assert!(!kill("-0", &process), "{name}");
    }
}

#[test]
fn a_number_counts_though_a_process_that_is_left_holds_the_output() {
    let folder = folder("echo 0.5; sleep 6 & exit 0");
    let said = search(folder.path(), "sh 'SCRIPT' {model}", &["--grid", "1"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("best of 1: 0.5000"), "{}", said.stdout);
}

#[test]
fn the_verb_that_watches_is_none_for_people() {
    let said = vlmerge(&["watch", "--", "true"]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("of no use by hand"), "{}", said.stderr);
    assert!(!vlmerge(&["--help"]).stdout.contains("watch"));
}
