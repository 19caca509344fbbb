//! Texts and pictures as EVE reads them, and what it answers.

use std::collections::BTreeMap;

use evaluate::images::{ImageInput, Resampler, Transform, decode};
use evaluate::metrics::accuracy::{accuracy, argmax};
use evaluate::predictions::vqa::Answer;
use evaluate::tasks::vqa::word_of;
use evaluate::text::{TextKind, TextRule, clean_caption, clean_question};
use fixtures::{Case, integers, list, number, text};
use ndarray::Array2;
use serde_json::{Value, json};

fixtures::golden_tests! {
    package: "evaluate", set: "eve",
    texts_are_cleaned_as_published: "clean_text" => clean_text,
    pictures_become_the_published_pixels: "image_transform" => image_transform,
    answers_are_the_published_ones: "predictions" => predictions,
}

fn clean_text(case: &Case) {
    let rows = case.json("expected");
    let mut n_checked = 0;
    for row in list(&rows) {
        let given = text(&row["text"]);
        for (key, expected) in row.as_object().expect("a row") {
            let Some((kind, n_words)) = key.rsplit_once('_') else {
                continue;
            };
            let n_words: usize = n_words.parse().expect("a number of words");
            let found = match kind {
                "caption" => clean_caption(given, n_words),
                "question" => Some(clean_question(given, n_words)),
                other => panic!("no kind of text {other}"),
            };
            assert_eq!(found.as_deref(), expected.as_str(), "{key} of {given:?}");
            n_checked += 1;
        }
        // The family's rule has the published limits.
        for (key, kind) in [
            ("caption_30", TextKind::Caption),
            ("caption_40", TextKind::Statement),
            ("question_30", TextKind::LearnedQuestion),
            ("question_50", TextKind::Question),
        ] {
            if let Some(expected) = row.get(key) {
                let found = TextRule::Cleaned.read(kind, given);
                assert_eq!(found.as_deref(), expected.as_str(), "{kind:?} {given:?}");
            }
        }
    }
    assert!(n_checked >= 6 * list(&rows).len());
}

fn image_transform(case: &Case) {
    let expected = case.tensors("expected");
    let statistics = ["mean", "std"].map(|name| [case.number(name).expect("a number") as f32; 3]);
    let allowed = f64::from(u8::from(case["tolerance"]["u8"] != "exact"));
    for name in list(&case["input"]) {
        let path = case.set().path(text(name));
        let bytes = std::fs::read(&path).expect("a picture file");
        let picture = decode(&bytes).expect("a picture");
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        assert_eq!(
            picture.pixels,
            expected[&format!("{file}.rgb")].bytes,
            "{file}"
        );
        for side in list(&case["params"]["sizes"]) {
            let side = number(side) as usize;
            let from = (picture.width, picture.height);
            let resized = Resampler::new(from, (side, side)).resize(&picture);
            let bytes = resized
                .pixels
                .iter()
                .map(|&value| f64::from(value))
                .collect();
            let of = |kind: &str| expected[&format!("{file}.{side}.{kind}")].values();
            let differs = |found: Vec<f64>, kind: &str, within: f64| {
                let place = fixtures::first_difference(&found, &of(kind), 0.0, within);
                assert_eq!(place, None, "{file} {side} {kind}");
            };
            differs(bytes, "u8", allowed);
            // A level is 2/255 of the tensor's range.
            let exact = of("u8")
                .iter()
                .zip(&resized.pixels)
                .all(|(a, b)| *a == f64::from(*b));
            let within = match exact {
                true => case.tolerance("", "tensor"),
                false => case.tolerance("", "tensor") + allowed / 127.5,
            };
            let input = ImageInput::square(side).normalized_by(statistics);
            let values = Transform::new(&input).apply(&picture);
            differs(
                values.into_iter().map(f64::from).collect(),
                "tensor",
                within,
            );
        }
    }
}

/// Rows of numbers.
fn matrix(rows: &Value) -> Array2<f32> {
    let (values, shape) = fixtures::matrix(rows, 1.0);
    Array2::from_shape_vec(shape, values).expect("rows of one length")
}

fn predictions(case: &Case) {
    let published = case.json("expected");
    let vqa = &published["vqa"];
    let answers = list(&vqa["answer_list"]).iter().map(text);
    let answers: BTreeMap<i64, String> = (0..).zip(answers.map(str::to_owned)).collect();
    let logits = matrix(&vqa["logits"]);
    let ids = integers(&vqa["question_id"]);
    let said: Vec<Answer> = (logits.rows().into_iter().zip(ids))
        .map(|(logits, question_id)| Answer {
            question_id,
            answer: word_of(argmax(logits).expect("a class") as i64, &answers).to_owned(),
        })
        .collect();
    assert_eq!(json!(said), vqa["expected"]);

    let nlvr2 = &published["nlvr2"];
    let targets = integers(&nlvr2["targets"]);
    let found = accuracy(matrix(&nlvr2["logits"]).view(), &targets);
    let found = found.expect("classes").expect("examples");
    assert_eq!(format!("{found:.4}"), text(&nlvr2["expected"]["acc"]));
}
