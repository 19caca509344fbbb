//! Reports of results that were written before.

use std::fs::File;

use crate::program::{Said, vlmerge};

const COCO: &str = "fixtures/reports/coco.json";
const TASKS: &str = "fixtures/reports/tasks.json";
const SPECIFIC: &str = "fixtures/ckpt/all_moe.safetensors";

fn refused(arguments: &[&str], code: i32, fault: &str) -> Said {
    let said = vlmerge(arguments);
    assert_eq!(
        (said.code, said.stdout.as_str()),
        (Some(code), ""),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains(fault), "{}", said.stderr);
    said
}

#[test]
fn the_extension_chooses_the_format_and_a_flag_overrides_it() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, start) in [
        ("r.html", "<!doctype html>"),
        ("r.md", "# Ours & theirs".replace('&', "&amp;").as_str()),
        ("r.csv", "file,name,task,"),
        ("r.tex", "% Needs \\usepackage{booktabs}."),
    ] {
        let path = folder.path().join(name);
        let path = path.to_str().expect("UTF-8");
        let arguments = [
            "report",
            COCO,
            TASKS,
            "--title",
            "Ours & theirs",
            "--out",
            path,
        ];
        let said = vlmerge(&arguments);
        assert_eq!(
            (said.code, said.stdout.as_str()),
            (Some(0), ""),
            "{}",
            said.stderr
        );
        let text = std::fs::read_to_string(path).expect("written");
        assert!(text.starts_with(start), "{text}");
        refused(&arguments, 1, "hint: pass --force to replace it");
        let said = vlmerge(&[&arguments[..], &["--force", "--format", "csv"]].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let text = std::fs::read_to_string(path).expect("written");
        assert!(text.starts_with("file,name,task,"));
    }
    assert!(
        vlmerge(&["report", COCO])
            .stdout
            .starts_with("# Evaluation report")
    );
    refused(
        &["report", COCO, "--out", "report.pdf"],
        2,
        "the kind of report is not clear",
    );
}

#[test]
fn what_score_prints_is_a_report() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("nlvr2.json");
    let predictions = "fixtures/metrics/nlvr2_predictions.csv";
    let said = vlmerge(&[
        "score",
        "nlvr2",
        "--predictions",
        predictions,
        predictions,
        "--labels",
        "fixtures/metrics/nlvr2_examples.jsonl",
        "--json",
    ]);
    std::fs::write(&path, &said.stdout).expect("written");
    let path = path.to_str().expect("UTF-8");
    // 43 of 56, as tests/score.rs says.
    let text = vlmerge(&["report", path]).stdout;
    assert!(text.contains("(reference) | 76.79 \\["), "{text}");
    let joined = vlmerge(&["report", path, COCO, "--json"]).json();
    assert_eq!(joined["schema"], "vlmerge.report/1");
    assert_eq!(joined["results"].as_array().map(Vec::len), Some(5));
    // COCO's second result against its first, both behind the two of the other file.
    assert_eq!(
        (
            &joined["comparisons"][1]["result"],
            &joined["comparisons"][1]["against"]
        ),
        (&3.into(), &2.into())
    );
}

#[test]
fn distances_become_heat_maps_on_a_page_and_nowhere_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let distances = |name: &str, more: &[&str]| {
        let path = folder.path().join(name);
        let said = vlmerge(&[&["distance", SPECIFIC, "--json"], more].concat());
        std::fs::write(&path, &said.stdout).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let cells = distances("d.json", &[]);
    let page = vlmerge(&["report", &cells, COCO, "--format", "html"]);
    assert_eq!(page.code, Some(0), "{}", page.stderr);
    // Cosine, L2 and SSD.
    assert_eq!(page.stdout.matches("<svg class=\"heat\"").count(), 3);
    assert!(page.stdout.contains("not checked against the paper"));
    let said = refused(
        &["report", &cells, "--format", "latex"],
        2,
        "which LaTeX cannot hold",
    );
    assert!(said.stderr.contains("\nhint: "));
    let whole = distances("all.json", &["--per", "all"]);
    refused(
        &["report", &whole, "--format", "html"],
        1,
        "hint: measure them with `--per cell`",
    );
}

#[test]
fn other_files_are_refused_by_name() {
    refused(
        &["report", "fixtures/config.json"],
        1,
        "config.json: is not a result of this program",
    );
    refused(
        &["report", "no/such.json"],
        1,
        "no/such.json: cannot open: ",
    );
    refused(
        &["report", "fixtures"],
        1,
        "fixtures: is not a regular file",
    );
    refused(
        &["report", SPECIFIC],
        1,
        "all_moe.safetensors: is not a result of this program: it is no JSON object",
    );
    refused(
        &["report", COCO, "--published", COCO],
        1,
        "coco.json: is not a list of published figures",
    );
    refused(&["report"], 2, "required");
    let folder = tempfile::tempdir().expect("a folder");
    let empty = folder.path().join("empty.json");
    let text = r#"{"schema": "vlmerge.report/1", "version": "0.1.0", "results": []}"#;
    std::fs::write(&empty, text).expect("written");
    let empty = empty.to_str().expect("the path is UTF-8");
    refused(&["report", empty], 1, "empty.json: holds no results");
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_not_waited_for() {
    assert!(File::open(COCO).is_ok());
    refused(
        &["report", "/dev/null"],
        1,
        "/dev/null: is not a regular file",
    );
}
