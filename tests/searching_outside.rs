//! Searches that an outside program scores.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::program::{Said, start, vlmerge, wait_until_kept};

const RECIPE: &str = "\
merge_method: interpolate
models: [{ model: fixtures/ckpt/all_moe_pretrain.ckpt }]
for: irtr
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
    let names: Vec<_> = left.flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["lock"]);
}

#[test]
fn what_is_no_number_ends_the_search() {
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
    }
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

#[test]
fn a_signal_ends_the_program_too() {
    let folder = folder("echo $$ > \"$(dirname \"$0\")/pid\"; sleep 60\n");
    let mut child = start(&arguments(folder.path(), "sh 'SCRIPT' {model}", &[]));
    let pid = folder.path().join("pid");
    let begun = Instant::now();
    while !pid.exists() && begun.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(50));
    let kill = |what: &str, of: &str| {
        let sent = Command::new("kill").args([what, of.trim()]).output();
        sent.expect("kill runs").status.success()
    };
    let program = std::fs::read_to_string(&pid).expect("it runs");
    assert!(kill("-0", &program));
    assert!(kill("-TERM", &child.id().to_string()));
    let status = child.wait().expect("it ends");
    assert!(!status.success());
    assert!(!kill("-0", &program));
    assert!(begun.elapsed() < Duration::from_secs(50));
}
