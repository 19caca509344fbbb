//! Judging predictions from files.

use std::path::Path;

use tempfile::TempDir;

use crate::program::{Said, vlmerge};

const ANNOTATIONS: &str = "fixtures/metrics/vqa_annotations.json";
const QUESTIONS: &str = "fixtures/metrics/vqa_questions.json";
const RESULTS: &str = "fixtures/metrics/vqa_results.json";
const LABELS: &str = "fixtures/metrics/nlvr2_examples.jsonl";
const PREDICTIONS: &str = "fixtures/metrics/nlvr2_predictions.csv";

/// Writes `text` to a file of the folder and returns its path.
fn written(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, content).expect("written");
    shown(&path)
}

fn shown(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// A score file with the matrix and ids, as bytes.
fn score_file(scores: &[&[f32]], image_ids: &[i64], text_ids: &[i64]) -> Vec<u8> {
    let shape = [scores.len(), scores[0].len()];
    let scores: Vec<u8> = scores
        .concat()
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect();
    let ids = |ids: &[i64]| -> Vec<u8> { ids.iter().flat_map(|id| id.to_le_bytes()).collect() };
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in [
        ("image_id", "I64", vec![image_ids.len()], ids(image_ids)),
        ("scores", "F32", shape.to_vec(), scores),
        ("text_image_id", "I64", vec![text_ids.len()], ids(text_ids)),
    ] {
        let offsets = [data.len(), data.len() + bytes.len()];
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets });
        header.insert(name.to_owned(), entry);
        data.extend(bytes);
    }
    let header = serde_json::Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &data[..]].concat()
}

/// Value of a number of the `file`th file.
fn value(said: &Said, file: usize, name: &str) -> f64 {
    let json = said.json();
    let measurements = json["results"][file]["measurements"]
        .as_array()
        .expect("a list");
    let found = measurements.iter().find(|m| m["name"] == name);
    found
        .and_then(|m| m["value"].as_f64())
        .expect("the number is there")
}

#[test]
fn vqa_is_judged_as_by_the_official_program() {
    let arguments = [
        "score",
        "vqa",
        "--results",
        RESULTS,
        "--questions",
        QUESTIONS,
        "--annotations",
        ANNOTATIONS,
    ];
    let said = vlmerge(&arguments);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(said.stdout);
    let said = vlmerge(&[&arguments[..], &["--json"]].concat());
    assert!((value(&said, 0, "accuracy") - 0.5625).abs() < 1e-12);
    assert!((value(&said, 0, "question_type/is this") - 0.509_090_909_090_9).abs() < 1e-12);
    let interval = &said.json()["results"][0]["measurements"][0]["interval"];
    let [low, high] = ["low", "high"].map(|end| interval[end].as_f64().expect("an end"));
    assert!(0.4 < low && low < 0.5625 && 0.5625 < high && high < 0.72);
}

#[test]
fn two_files_are_tested_on_the_same_draws() {
    let folder = tempfile::tempdir().expect("a folder");
    let wrong: String = std::fs::read_to_string(PREDICTIONS)
        .expect("the fixture")
        .lines()
        .map(|line| format!("{},true\n", line.split(',').next().expect("an identifier")))
        .collect();
    let all_true = written(&folder, "all_true.csv", wrong);
    let arguments = [
        "score",
        "nlvr2",
        "--labels",
        LABELS,
        "--json",
        "--predictions",
        PREDICTIONS,
        &all_true,
        PREDICTIONS,
    ];
    let said = vlmerge(&arguments);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    assert!((value(&said, 0, "accuracy") - 43.0 / 56.0).abs() < 1e-12);
    assert!((value(&said, 0, "consistency") - 7.0 / 18.0).abs() < 1e-12);
    let comparisons = &said.json()["comparisons"];
    let (other, same) = (
        &comparisons[0]["differences"][0],
        &comparisons[1]["differences"][0],
    );
    assert!(other["difference"].as_f64().expect("a number") < -0.2);
    assert!(other["p"].as_f64().expect("a number") < 0.05);
    assert_eq!(same["difference"], 0.0);
    assert_eq!(same["p"], 1.0);
    assert_eq!(said.stdout, vlmerge(&arguments).stdout);
    let on_one = vlmerge(&[&arguments[..], &["--threads", "1"]].concat());
    assert_eq!(said.stdout, on_one.stdout);
}

#[test]
fn retrieval_counts_any_number_of_captions_and_ties_as_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    // Image 7 has texts 0 and 2, image 3 has text 1; text 2 scores alike with both.
    let scores: [&[f32]; 2] = [&[0.1, 0.9, 0.5], &[0.2, 0.4, 0.5]];
    let file = written(
        &folder,
        "s.safetensors",
        score_file(&scores, &[7, 3], &[7, 3, 7]),
    );
    let recall = |ties| {
        let said = vlmerge(&[
            "score",
            "retrieval",
            "--scores",
            &file,
            "--json",
            "--ties",
            ties,
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        ["tr_r1", "ir_r1", "rsum"].map(|name| value(&said, 0, name))
    };
    assert_eq!(recall("pessimistic"), [0.0, 0.0, 400.0]);
    let [tr_r1, ir_r1, rsum] = recall("first");
    assert_eq!([tr_r1, ir_r1], [0.0, 1.0 / 3.0]);
    assert!((rsum - 433.0 - 1.0 / 3.0).abs() < 1e-9, "{rsum}");
    assert_eq!(recall("expected")[1], 0.5 / 3.0);
    let said = vlmerge(&["score", "retrieval", "--scores", &file, &file]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    assert!(
        said.stdout
            .starts_with("2 images, 3 texts; ties: expected\n")
    );
    assert!(said.stdout.contains("B - A"), "{}", said.stdout);
}

#[test]
fn damaged_or_foreign_score_files_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |bytes: Vec<u8>, fault: &str| {
        let file = written(&folder, "s.safetensors", bytes);
        let said = vlmerge(&["score", "retrieval", "--scores", &file]);
        assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
        assert!(said.stderr.contains(fault), "{}", said.stderr);
        assert!(said.stderr.contains("s.safetensors: "), "{}", said.stderr);
    };
    let row: [&[f32]; 2] = [&[0.1, 0.9], &[0.2, 0.4]];
    refused(
        score_file(&row, &[1], &[1, 1]),
        "`image_id` has shape [1], expected [2]",
    );
    refused(
        score_file(&row, &[1, 2], &[1, 3]),
        "text 1 belongs to image 3, which has no row",
    );
    refused(
        score_file(&row, &[1, 2], &[1, 1]),
        "image 2 (row 1) has no text",
    );
    refused(
        score_file(&row, &[1, 1], &[1, 1]),
        "rows 0 and 1 are both of image 1",
    );
    refused(
        score_file(&[&[0.1, f32::NAN], &[0.0, 1.0]], &[1, 2], &[1, 2]),
        "a score of row 0 is not a number",
    );
    let mut cut = score_file(&row, &[1, 2], &[1, 2]);
    cut.truncate(cut.len() - 3);
    refused(cut, "s.safetensors: ");
    let [a, b] = [[1, 2], [2, 1]].map(|ids| {
        written(
            &folder,
            &format!("{ids:?}.safetensors"),
            score_file(&row, &ids, &[1, 2]),
        )
    });
    let said = vlmerge(&["score", "retrieval", "--scores", &a, &b]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("no paired test is possible"),
        "{}",
        said.stderr
    );
    assert!(
        said.stderr.contains("\nhint: score the files one by one\n"),
        "{}",
        said.stderr
    );
}

#[test]
fn wrong_files_and_arguments_are_told_apart_by_exit_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let twice = r#"[{"question_id": 5001, "answer": "a"}, {"question_id": 5001, "answer": "b"}]"#;
    let twice = written(&folder, "twice.json", twice);
    let said = vlmerge(&[
        "score",
        "vqa",
        "--results",
        &twice,
        "--annotations",
        ANNOTATIONS,
    ]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("question 5001 occurs more than once"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("\nhint: "), "{}", said.stderr);
    let bad = written(&folder, "bad.csv", "dev-0-0-0,true\ndev-0-0-1;true\n");
    let said = vlmerge(&["score", "nlvr2", "--predictions", &bad, "--labels", LABELS]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("bad.csv: line 2: "), "{}", said.stderr);
    let said = vlmerge(&[
        "score",
        "nlvr2",
        "--predictions",
        &bad,
        "--labels",
        "no/such.json",
    ]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .starts_with("error: no/such.json: cannot open: "),
        "{}",
        said.stderr
    );
    for wrong in [["--resamples", "5"], ["--no-such", "1"]] {
        let files = [
            "score",
            "nlvr2",
            "--predictions",
            PREDICTIONS,
            "--labels",
            LABELS,
        ];
        let said = vlmerge(&[&files[..], &wrong[..]].concat());
        assert_eq!(said.code, Some(2), "{}", said.stderr);
    }
    assert!(
        vlmerge(&["score", "retrieval", "--help"])
            .stdout
            .contains("Examples:")
    );
}

/// The official file forms from the recorded captions: annotations, and results of `of`.
fn caption_files(folder: &TempDir, of: &str) -> [String; 2] {
    let text = std::fs::read_to_string("fixtures/metrics/captions.json").expect("the fixture");
    let corpus: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let items = corpus["items"].as_array().expect("a list");
    let images: Vec<_> = items
        .iter()
        .map(|item| serde_json::json!({ "id": item["image_id"], "width": 640 }))
        .collect();
    let said = items.iter().flat_map(|item| {
        let captions = item["refs"].as_array().expect("a list").iter();
        captions.map(|caption| serde_json::json!({ "image_id": item["image_id"], "id": 0, "caption": caption }))
    });
    let annotations =
        serde_json::json!({ "images": images, "annotations": said.collect::<Vec<_>>() });
    let results: Vec<_> = items
        .iter()
        .map(|item| {
            let caption = if of == "hyp" {
                &item["hyp"]
            } else {
                &item["refs"][0]
            };
            serde_json::json!({ "image_id": item["image_id"], "caption": caption })
        })
        .collect();
    let results = serde_json::Value::Array(results);
    [
        written(folder, "annotations.json", annotations.to_string()),
        written(folder, &format!("{of}.json"), results.to_string()),
    ]
}

#[test]
fn captions_are_judged_as_by_the_official_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let [annotations, results] = caption_files(&folder, "hyp");
    let [_, people] = caption_files(&folder, "refs");
    let arguments = [
        "score",
        "captions",
        "--annotations",
        &annotations,
        "--json",
        "--results",
    ];
    let said = vlmerge(&[&arguments[..], &[&results, &people]].concat());
    let left_out = "no METEOR and no SPICE: they are programs of their own; --meteor-jar runs that of METEOR\n";
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), left_out));
    // From raw text, so tokenizer and scorers together; the numbers are in the fixture.
    for (name, expected) in [
        ("bleu_1", 0.779_086_621_447_964),
        ("bleu_4", 0.646_797_142_788_633_6),
        ("rouge_l", 0.703_867_600_427_224_5),
        ("cider", 3.286_110_133_772_323_3),
    ] {
        assert!((value(&said, 0, name) - expected).abs() < 1e-12, "{name}");
    }
    assert!(value(&said, 1, "bleu_4") > 0.99);
    let json = said.json();
    let cider = &json["results"][0]["measurements"][5];
    assert_eq!(
        (cider["unit"].as_str(), cider["n"].as_u64()),
        (Some("tenfold"), Some(60))
    );
    let [low, high] = ["low", "high"].map(|end| cider["interval"][end].as_f64().expect("an end"));
    assert!(
        2.0 < low && low < 3.286 && 3.286 < high && high < 5.0,
        "{low} {high}"
    );
    assert!(
        json["comparisons"][0]["differences"][3]["p"]
            .as_f64()
            .expect("a number")
            < 0.05
    );
    let shown = vlmerge(&[
        "score",
        "captions",
        "--annotations",
        &annotations,
        "--results",
        &results,
    ]);
    assert!(shown.stdout.contains("60 of 60 images"), "{}", shown.stdout);
    assert!(
        shown.stdout.contains("cider    60  328.61"),
        "{}",
        shown.stdout
    );
}

#[test]
fn captions_that_do_not_fit_the_images_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let [annotations, _] = caption_files(&folder, "hyp");
    let refused = |content: &str, flags: &[&str]| {
        let results = written(&folder, "results.json", content);
        let arguments = [
            "score",
            "captions",
            "--annotations",
            &annotations,
            "--results",
            &results,
        ];
        let said = vlmerge(&[&arguments[..], flags].concat());
        assert_eq!(said.code, Some(1), "{}", said.stdout);
        said.stderr
    };
    let one = r#"{"image_id": 100, "caption": "a kayak"}"#;
    let said = refused(&format!("[{one}]"), &[]);
    assert!(
        said.contains("59 of 60 have no answer; the first is image 107"),
        "{said}"
    );
    assert!(said.contains("hint: --partial"), "{said}");
    let said = refused(&format!("[{one}, {one}]"), &["--partial"]);
    assert!(said.contains("image 100 occurs more than once"), "{said}");
    let said = refused(r#"[{"image_id": 7, "caption": "a kayak"}]"#, &["--partial"]);
    assert!(said.contains("image 7 is not in "), "{said}");
    assert!(refused("[]", &["--partial"]).contains("holds no captions"));
    assert!(refused("[{}]", &[]).contains("missing field `image_id` at line 1"));
    let long = format!(
        r#"[{{"image_id": 100, "caption": "{}"}}]"#,
        "a,".repeat(10_000)
    );
    assert!(refused(&long, &[]).contains("a caption of image 100 has 20000 bytes, at most 10000"));
    let partial = written(&folder, "one.json", format!("[{one}]"));
    let said = vlmerge(&[
        "score",
        "captions",
        "--annotations",
        &annotations,
        "--partial",
        "--results",
        &partial,
    ]);
    assert!(
        said.stdout.contains("1 of 60 images"),
        "{}{}",
        said.stdout,
        said.stderr
    );
}
