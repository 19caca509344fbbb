//! VQA against the official program and the published training code.

use evaluate::metrics::answers::{clean, normalize, soft_score_of_count};
use evaluate::metrics::vqa::{sample, score_of_logits};
use evaluate::predictions::vqa::{check_questions, judge, read_annotations, read_results};
use fixtures::{Set, list, number};

use crate::fixture::{matrix, value};

#[test]
fn normal_forms_are_those_of_both_programs() {
    let cases = Set::open("metrics").json("vqa_expected.json");
    let cases = list(&cases["normalisation"]);
    assert!(!cases.is_empty(), "cases");
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
    let set = Set::open("metrics");
    let path = |name: &str| set.path(name);
    let annotations = read_annotations(&path("vqa_annotations.json")).expect("annotations");
    let results = read_results(&path("vqa_results.json")).expect("results");
    check_questions(
        &path("vqa_questions.json"),
        &annotations,
        &path("vqa_annotations.json"),
        false,
    )
    .expect("questions");
    let judged = judge(
        &path("vqa_results.json"),
        &results,
        &annotations,
        &path("vqa_annotations.json"),
    )
    .expect("every question is answered");
    let expected = Set::open("metrics").json("vqa_expected.json");
    // Percent with ten digits.
    let is_close = |got: f64, expected: f64| (100.0 * got - expected).abs() < 1e-9;
    assert_eq!(annotations.len(), judged.len());
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

#[test]
fn soft_scores_are_those_of_the_published_program() {
    let expected = Set::open("metrics").json("vqa_expected.json");
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
