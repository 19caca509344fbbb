//! Faults of VQA results.

use std::path::PathBuf;

use evaluate::predictions::vqa::{judge, read_annotations, read_results};

use crate::fixture::path;

const ANNOTATIONS: &str = "metrics/vqa_annotations.json";

/// Writes a result file and judges it.
fn said_of(results: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let file: PathBuf = folder.path().join("results.json");
    std::fs::write(&file, results).expect("written");
    let annotations = read_annotations(&path(ANNOTATIONS)).expect("annotations");
    let error = match read_results(&file) {
        Err(error) => error,
        Ok(results) => {
            judge(&file, &results, &annotations, &path(ANNOTATIONS)).expect_err("refused")
        }
    };
    error.to_string()
}

#[test]
fn wrong_results_are_refused_by_name() {
    let one = r#"{"question_id": 5001, "answer": "yes"}"#;
    let said = said_of(&format!("[{one}]"));
    assert!(
        said.ends_with("63 of 64 have no answer; the first is question 5002"),
        "{said}"
    );
    let said = said_of(&format!("[{one}, {one}]"));
    assert!(
        said.ends_with("question 5001 occurs more than once"),
        "{said}"
    );
    let said = said_of(r#"[{"question_id": 7, "answer": "yes"}]"#);
    assert!(said.contains("question 7 is not in "), "{said}");
    let said = said_of("[{\"question_id\": 7},\n 3]");
    assert!(said.contains("missing field `answer` at line 1"), "{said}");
    let said = said_of("[");
    assert!(said.contains("is not a VQA result file: EOF"), "{said}");
}
