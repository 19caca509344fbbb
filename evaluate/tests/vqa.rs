//! VQA against the official program and the published training code, as recorded in the fixture.

use std::path::PathBuf;

use evaluate::Sample;
use evaluate::metrics::answers::{clean, normalize, soft_score_of_count};
use evaluate::metrics::vqa::{sample, score_of_logits};
use evaluate::predictions::vqa::{check_questions, judge, read_annotations, read_results};

use crate::fixture::{json, list, matrix, number, path};

const ANNOTATIONS: &str = "metrics/vqa_annotations.json";
const QUESTIONS: &str = "metrics/vqa_questions.json";
const RESULTS: &str = "metrics/vqa_results.json";

#[test]
fn normal_forms_are_those_of_both_programs() {
    let cases = json("metrics/vqa_expected.json");
    let cases = list(&cases["normalisation"]);
    assert_eq!(cases.len(), 140);
    for case in cases {
        let raw = case["raw"].as_str().expect("a string");
        assert_eq!(
            normalize(&clean(raw)),
            case["official"],
            "official, {raw:?}"
        );
        assert_eq!(normalize(raw), case["vilt_normalize_word"], "ViLT, {raw:?}");
    }
}

#[test]
fn accuracy_is_official_for_each_question_and_each_kind() {
    let annotations = read_annotations(&path(ANNOTATIONS)).expect("annotations");
    let results = read_results(&path(RESULTS)).expect("results");
    check_questions(&path(QUESTIONS), &annotations, &path(ANNOTATIONS), false).expect("questions");
    let judged = judge(&path(RESULTS), &results, &annotations, &path(ANNOTATIONS))
        .expect("every question is answered");
    let expected = json("metrics/vqa_expected.json");
    // Percent with ten digits.
    let is_close = |got: f64, expected: f64| (100.0 * got - expected).abs() < 1e-9;
    for (annotation, judged) in annotations.iter().zip(&judged) {
        let id = annotation.question_id.to_string();
        let expected = number(&expected["per_question_10_digits"][&id]);
        assert!(
            is_close(judged.accuracy, expected),
            "question {id}: {}",
            judged.accuracy
        );
    }
    let sample = sample(&judged);
    let expected = &expected["accuracy_10_digits"];
    assert!(is_close(
        value(&sample, "accuracy"),
        number(&expected["overall"])
    ));
    let mut n_kinds = 0;
    for (key, prefix) in [
        ("perAnswerType", "answer_type"),
        ("perQuestionType", "question_type"),
    ] {
        for (kind, expected) in expected[key].as_object().expect("an object") {
            let got = value(&sample, &format!("{prefix}/{kind}"));
            // The fixture has ten digits after the point: 5e-11 and the last of them.
            assert!(
                (100.0 * got - number(expected)).abs() < 1e-9,
                "{kind}: {got}"
            );
            n_kinds += 1;
        }
    }
    assert_eq!(sample.quantities.len(), n_kinds + 2);
}

fn value(sample: &Sample, name: &str) -> f64 {
    let quantity = sample.quantities.iter().find(|q| q.name == name);
    let quantity = quantity.expect("the quantity is reported");
    sample.value(quantity).expect("there are questions")
}

#[test]
fn soft_scores_are_those_of_the_published_program() {
    let expected = json("metrics/vqa_expected.json");
    for (count, score) in expected["count_to_soft_score"]
        .as_object()
        .expect("an object")
    {
        let count: usize = count.parse().expect("a count");
        assert_eq!(soft_score_of_count(count), number(score));
    }
    for batch in list(&expected["soft_score_batches"]) {
        let (logits, targets) = (
            matrix(&batch["logits"], 1.0),
            matrix(&batch["targets"], 1.0),
        );
        let score = score_of_logits(logits.view(), targets.view()).expect("same shape");
        // The program's mean is in f32.
        assert!((score.expect("questions") - number(&batch["score"])).abs() < 1e-6);
    }
}

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
