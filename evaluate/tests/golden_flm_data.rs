//! FLM's pictures, answers and prepared captions, case by case of `fixtures/flm/manifest.json`.

use std::collections::BTreeMap;

use evaluate::images::{
    Alpha, Filter, ImageInput, Normalization, Resampler, Transform, decode, in_multiples,
};
use evaluate::metrics::accuracy::{IGNORED_TARGET, accuracy, argmax};
use evaluate::metrics::vqa::score_of_logits;
use evaluate::predictions::captions::{Caption, known, read_annotations, read_results};
use evaluate::predictions::vqa::Answer;
use evaluate::tasks::vqa::word_of;
use fixtures::{Case, Raw, first_difference, integers, list, number, text};
use ndarray::{Array2, s};
use serde_json::{Value, json};

fixtures::golden_tests! {
    package: "evaluate", set: "flm",
    pictures_become_the_published_pixels: "image_transform" => image_transform,
    answers_are_submitted_as_published: "vqa_submission" => vqa_submission,
    accumulators_add_up_to_the_published_numbers: "accumulators" => accumulators,
    captions_are_prepared_as_published: "caption_eval_prepare" => caption_eval_prepare,
}

/// Multiples that ViLT's transform cuts sides to, and its longest side as a share of the shorter one.
const MULTIPLE: usize = 32;
const LONGEST: [usize; 2] = [1333, 800];

/// The values that a published transform makes of a picture, by its key: a name and a side.
fn transformed(key: &str, bytes: &[u8]) -> Vec<f32> {
    let picture = decode(bytes).expect("a picture");
    let at = key.find(|c: char| c.is_ascii_digit()).expect("a side");
    let side: usize = key[at..].parse().expect("a side");
    let opaque = |statistics: [[f32; 3]; 2]| ImageInput {
        alpha: Alpha::Dropped,
        ..ImageInput::flm(side).normalized_by(statistics)
    };
    let input = match &key[..at] {
        "clip" => ImageInput::flm(side),
        "imagenet" | "mae" => opaque(ImageInput::IMAGENET),
        "vit" => opaque([[0.5; 3]; 2]),
        "pixelbert" => {
            let from = (picture.width, picture.height);
            let longest = LONGEST[0] * side / LONGEST[1];
            let to = in_multiples(from, side, longest, MULTIPLE);
            let resized = Resampler::with_filter(from, to, Filter::Bicubic).resize(&picture);
            let mut values = vec![0.0; resized.pixels.len()];
            Normalization::new([0.5; 3], [0.5; 3]).write(&resized, &mut values);
            return values;
        }
        other => panic!("no transform {other}"),
    };
    Transform::new(&input).apply(&picture)
}

fn image_transform(case: &Case) {
    let bytes = std::fs::read(case.set().path(text(&case["input"][0]))).expect("a picture");
    let published = case.set().tensors(text(&case["expected"][0]));
    let prefix = case.param("prefix").expect("a prefix");
    let tolerances = ["atol", "mean_atol"].map(|name| case.tolerance("", name));
    for key in list(&case["params"]["keys"]) {
        let key = text(key);
        let found: Vec<f64> = transformed(key, &bytes)
            .into_iter()
            .map(f64::from)
            .collect();
        let expected = published[&format!("{prefix}.{key}")].values();
        assert_eq!(found.len(), expected.len(), "{key}");
        let differs = first_difference(&found, &expected, 0.0, tolerances[0]);
        assert_eq!(differs, None, "{key}");
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let mean = off.sum::<f64>() / found.len() as f64;
        assert!(mean <= tolerances[1], "{key}: {mean}");
    }
}

/// Rows of the last dimension.
fn rows(tensor: &Raw) -> Array2<f32> {
    let n = *tensor.shape.last().expect("a dimension");
    let values: Vec<f32> = tensor
        .values()
        .into_iter()
        .map(|value| value as f32)
        .collect();
    Array2::from_shape_vec((values.len() / n, n), values).expect("rows")
}

fn vqa_submission(case: &Case) {
    let published = case.set().json(text(&case["expected"][0]));
    let logits = rows(&case.set().tensors(text(&case["input"][0]))["logits"]);
    // Of several tables a later one has the last word.
    let mut answers: BTreeMap<i64, String> = BTreeMap::new();
    for table in list(&published["table_answers"]) {
        let questions = list(&table["labels"]).iter().zip(list(&table["answers"]));
        for (labels, words) in questions {
            for (label, word) in integers(labels).into_iter().zip(list(words)) {
                answers.insert(label, text(word).to_owned());
            }
        }
    }
    let known = published["id2answer"].as_object().expect("answers");
    assert_eq!(answers.len(), known.len());
    for (label, word) in known {
        assert_eq!(*word, answers[&label.parse::<i64>().expect("a label")]);
    }
    let classes = answers.keys().last().map_or(0, |&label| label + 1);
    assert_eq!(published["num_class"], classes);
    let ids = integers(&published["question_ids"]);
    let submitted: Vec<Answer> = (logits.rows().into_iter().zip(ids))
        .map(|(logits, question_id)| Answer {
            question_id,
            answer: word_of(argmax(logits).expect("a class") as i64, &answers).to_owned(),
        })
        .collect();
    assert_eq!(json!(submitted), published["submission"]);
}

fn accumulators(case: &Case) {
    let inputs = case.set().tensors(text(&case["input"][0]));
    let published = case.set().json(text(&case["expected"][0]));
    let atol = case.tolerance("", "atol");
    let assert_close = |found: Option<f64>, name: &str| {
        let (found, expected) = (found.expect("cases"), number(&published[name]));
        assert!(
            (found - expected).abs() <= atol,
            "{name}: {found} for {expected}"
        );
    };
    let [logits, targets] = ["vqa.logits", "vqa.targets"].map(|name| rows(&inputs[name]));
    let score = score_of_logits(logits.view(), targets.view()).expect("a score");
    assert_close(score, "vqa_score");
    // A class more, which is never chosen: an answer that is not ignored and is no class counts as wrong.
    let logits = rows(&inputs["acc.logits"]);
    let n_classes = logits.ncols() as i64;
    let mut wider = Array2::from_elem((logits.nrows(), logits.ncols() + 1), f32::NEG_INFINITY);
    wider.slice_mut(s![.., ..logits.ncols()]).assign(&logits);
    for (ignored, name) in [(-100, "accuracy_ignore_m100"), (1, "accuracy_ignore_1")] {
        let targets = inputs["acc.targets"].integers().into_iter();
        let targets: Vec<i64> = targets
            .map(|target| match target {
                target if target == ignored => IGNORED_TARGET,
                target if target < 0 => n_classes,
                target => target,
            })
            .collect();
        assert_close(accuracy(wider.view(), &targets).expect("classes"), name);
    }
}

fn caption_eval_prepare(case: &Case) {
    let input = |nth: usize| case.set().path(text(&case["input"][nth]));
    let published = case.set().json(text(&case["expected"][0]));
    let references = read_annotations(&input(0), true).expect("annotations");
    let results = read_results(&input(1)).expect("results");
    let kept = known(&results, &references);
    let own: Vec<&Caption> = kept.iter().map(|(caption, _)| *caption).collect();
    assert_eq!(json!(own), published["kept"]);
    let ids: Vec<i64> = own.iter().map(|caption| caption.image_id).collect();
    assert_eq!(ids, integers(&published["image_ids"]));
    for (caption, said) in kept {
        let id = caption.image_id.to_string();
        assert_eq!(published["references"][&id], Value::from(said.to_vec()));
        assert_eq!(published["hypotheses"][&id], json!([caption.caption]));
    }
}
