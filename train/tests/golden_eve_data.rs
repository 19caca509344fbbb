//! X-VLM's JSON files as EVE's published program reads them.

use std::path::PathBuf;

use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::{Question, VqaSet};
use evaluate::datasets::xvlm::JsonFiles;
use evaluate::metrics::answers::soft_score_of_count;
use evaluate::text::{TextKind, TextRule};
use fixtures::{Case, integers, list, number, text};
use serde_json::{Value, json};
use train::augment::FlipGuard;

fixtures::golden_tests! {
    package: "train", set: "eve",
    items_are_those_of_the_published_data_sets: "dataset_items" => dataset_items,
}

fn dataset_items(case: &Case) {
    let key = case.text("key");
    let expected = case.json("expected")[key].clone();
    match key {
        "re_train" => captions_to_learn_from(case, &expected),
        "re_eval" => captions_to_measure_on(case, &expected),
        "nlvr" => statements(case, &expected),
        "vqa_train" => learned_questions(case, &expected),
        "vqa_test" => asked_questions(case, &expected),
        "flip_guard" => flip_guard(&expected),
        "count_to_weight" => weights(&expected),
        "unknown_answer" => unknown_answer(&expected),
        other => panic!("no kind of items {other}"),
    }
}

/// The input whose name ends so, with the pictures and the list of answers that the set has.
fn input(case: &Case, ending: &str) -> JsonFiles {
    let path = |ending: &str| -> Option<PathBuf> {
        let mut names = list(&case["input"]).iter().map(text);
        let name = names.find(|name| name.ends_with(ending))?;
        Some(case.set().path(name))
    };
    let path_of = |ending: &str| path(ending).unwrap_or_else(|| panic!("no input {ending}"));
    let pictures = case.set().path("image");
    let roots = ["vqa", "vg", "gqa"].map(|name| (name.to_owned(), pictures.clone()));
    JsonFiles {
        files: vec![path_of(ending)],
        roots: roots.into(),
        answers: path("answer_list.json"),
    }
}

fn read(kind: TextKind, given: &str) -> String {
    TextRule::Cleaned.read(kind, given).expect("words")
}

fn captions_to_learn_from(case: &Case, expected: &Value) {
    let set = CaptionSet::of_json(&input(case, "re_train.json")).expect("images");
    // Captions come image by image, those of an image in the order of the file.
    for image in 0..set.n_images() {
        let of_image = list(expected)
            .iter()
            .filter(|item| item["image_index"] == image as u64)
            .map(|item| text(&item["caption"]));
        let found = set.captions(image).iter();
        let found: Vec<String> = found.map(|it| read(TextKind::Caption, it)).collect();
        assert_eq!(found, of_image.collect::<Vec<_>>());
    }
    assert_eq!(set.n_captions(), list(expected).len());
    set.check_pictures().expect("pictures");
}

fn captions_to_measure_on(case: &Case, expected: &Value) {
    let set = CaptionSet::of_json(&input(case, "re_eval.json")).expect("images");
    let images = 0..set.n_images();
    let mut texts = Vec::new();
    for image in images.clone() {
        assert_eq!(set.image_id(image), expected["image"][image]);
        let first = texts.len();
        for caption in set.captions(image) {
            let of_text = &expected["txt2img"][texts.len().to_string()];
            assert_eq!(*of_text, image as u64);
            texts.push(read(TextKind::Caption, caption));
        }
        let own: Vec<i64> = (first as i64..texts.len() as i64).collect();
        assert_eq!(own, integers(&expected["img2txt"][image.to_string()]));
        let picture = set.picture(image).expect("a picture");
        assert!(picture.width > 0);
    }
    assert_eq!(json!(texts), expected["text"]);
    assert_eq!(images.len(), list(&expected["image"]).len());
}

fn statements(case: &Case, expected: &Value) {
    let set = Nlvr2Set::of_json(&input(case, "nlvr.json")).expect("statements");
    let found: Vec<Value> = set
        .statements()
        .iter()
        .map(|statement| {
            let sentence = read(TextKind::Statement, &statement.sentence);
            json!({"sentence": sentence, "label": statement.label.map(u8::from)})
        })
        .collect();
    assert_eq!(json!(found), *expected);
    set.check_pictures().expect("pictures");
}

/// The question's score for each answer of the list.
fn targets(question: &Question, n_answers: usize) -> Vec<f64> {
    let mut targets = vec![0.0; n_answers];
    for (&label, &score) in question.answer_labels.iter().zip(&question.answer_scores) {
        targets[label as usize] = score;
    }
    targets
}

fn learned_questions(case: &Case, expected: &Value) {
    let set = VqaSet::of_json(&input(case, "vqa_train.json")).expect("questions");
    let n_answers = set
        .label_answers(&case.set().path(""))
        .expect("answers")
        .len();
    let items = list(expected);
    assert_eq!(set.questions().len(), items.len());
    for (question, item) in set.questions().iter().zip(items) {
        let words = read(TextKind::LearnedQuestion, &question.text);
        assert_eq!(words, text(&item["question"]));
        let published: Vec<f64> = list(&item["targets"]).iter().map(number).collect();
        let found = targets(question, n_answers);
        let differs = fixtures::first_difference(&found, &published, 0.0, 1e-6);
        assert_eq!(differs, None, "{words}");
        let texts = [&question.text].into_iter().chain(&question.answers);
        let is_allowed = FlipGuard::AsPublished.allows(texts.map(String::as_str));
        assert_eq!(json!(is_allowed), item["flip_allowed"], "{words}");
    }
    set.check_pictures().expect("pictures");
}

fn asked_questions(case: &Case, expected: &Value) {
    let set = VqaSet::of_json(&input(case, "vqa_test.json")).expect("questions");
    let found = set.questions().iter().map(|question| {
        let words = read(TextKind::Question, &question.text);
        json!({"question": words, "question_id": question.question_id})
    });
    assert_eq!(json!(found.collect::<Vec<_>>()), *expected);
}

fn flip_guard(expected: &Value) {
    for row in list(expected) {
        let answers: Vec<&str> = match &row["answer"] {
            Value::String(answer) => vec![answer],
            answers => list(answers).iter().map(text).collect(),
        };
        let texts = [text(&row["question"])].into_iter().chain(answers);
        let is_blocked = !FlipGuard::AsPublished.allows(texts);
        assert_eq!(json!(is_blocked), row["blocked"], "{row}");
    }
}

fn weights(expected: &Value) {
    for (count, weight) in expected.as_object().expect("weights") {
        let found = soft_score_of_count(count.parse().expect("a count"));
        assert!((found - number(weight)).abs() < 1e-12, "{count}: {found}");
    }
}

/// The published program fails with a `KeyError` that says the answer.
fn unknown_answer(expected: &Value) {
    let answer = text(expected).split('\'').nth(1).expect("an answer");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &Value| {
        let path = folder.path().join(name);
        std::fs::write(&path, content.to_string()).expect("written");
        path
    };
    let entry = json!({"question": "q", "question_id": 1, "image": "a.png", "answer": [answer]});
    let files = JsonFiles {
        answers: Some(write("answer_list.json", &json!(["yes", "no"]))),
        ..JsonFiles::new(&[write("vqa_train.json", &json!([entry]))], folder.path())
    };
    let error = VqaSet::of_json(&files).expect_err("refused").to_string();
    for part in [
        "vqa_train.json: row 0: `answer`",
        answer,
        "answer_list.json",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
