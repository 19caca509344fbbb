//! X-VLM's JSON files from downloads to measurements: the same numbers as from arrow files.
#![cfg(unix)]

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Said, ok, run};

const MODEL: &str = "fixtures/ckpt/all_moe.safetensors";
const VOCABULARY: &str = "fixtures/real/vocab.txt";

/// A folder with JSON files of a data set in `json`, made of the fixture's downloads, with a link to its pictures.
fn with_json(dataset: &str, pictures: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let build =
        format!("data build {dataset} --raw fixtures/raw/{dataset} --out {{}}/json --format json");
    let said = ok(run(&build, &folder));
    assert!(said.stdout.contains(".json: "), "{}", said.stdout);
    let images = folder.path().join("json/images");
    std::fs::create_dir(&images).expect("made");
    let raw = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/raw")
        .join(dataset);
    std::os::unix::fs::symlink(raw, images.join(pictures)).expect("linked");
    folder
}

fn evaluated(folder: &TempDir, data: &str, task: &str) -> Said {
    let line = format!(
        "-q evaluate {MODEL} --text-table-len 16 --tokenizer {VOCABULARY} --data {data} {task} --json"
    );
    run(&line, folder)
}

/// Name and value of every measurement.
fn measured(said: &Said) -> Vec<(Value, Value)> {
    let results = said.json();
    let list = results["results"][0]["measurements"].as_array();
    let list = list.unwrap_or_else(|| panic!("no measurements in {results}"));
    let pairs = list.iter();
    pairs
        .map(|m| (m["name"].clone(), m["value"].clone()))
        .collect()
}

#[test]
fn json_files_measure_what_arrow_files_measure() {
    for (dataset, pictures, task) in [
        (
            "coco",
            "coco",
            "--task retrieval --dataset coco --split test",
        ),
        (
            "vqa",
            "coco",
            "--task vqa --split val --allow-other-answers",
        ),
        ("nlvr2", "nlvr2", "--task nlvr2 --split dev"),
    ] {
        let folder = with_json(dataset, pictures);
        let json = ok(evaluated(&folder, "{}/json", task));
        let arrow = ok(evaluated(&folder, "fixtures/arrow", task));
        assert_eq!(measured(&json), measured(&arrow), "{dataset}");
    }
}

#[test]
fn answers_are_written_as_the_server_takes_them() {
    let folder = with_json("vqa", "coco");
    let task = "--task vqa --split test --allow-other-answers --predictions {}/said";
    ok(evaluated(&folder, "{}/json", task));
    let files = std::fs::read_dir(folder.path().join("said")).expect("a folder");
    let files: Vec<_> = files.map(|entry| entry.expect("an entry").path()).collect();
    let [file] = files.as_slice() else {
        panic!("one file of predictions, not {files:?}");
    };
    let said: Value = serde_json::from_slice(&std::fs::read(file).expect("read")).expect("JSON");
    let listed = std::fs::read(folder.path().join("json/vqa_test.json")).expect("read");
    let listed: Value = serde_json::from_slice(&listed).expect("JSON");
    let entries = said.as_array().expect("answers");
    assert_eq!(entries.len(), listed.as_array().expect("questions").len());
    for entry in entries {
        assert_eq!(entry.as_object().map(serde_json::Map::len), Some(2));
        assert!(entry["question_id"].is_i64() && entry["answer"].is_string());
    }
}

#[test]
fn entries_of_strangers_are_refused_by_name_and_in_few_words() {
    let folder = with_json("vqa", "coco");
    let file = folder.path().join("json/vqa_val_filter.json");
    let good = r#"{"question": "q", "question_id": 1, "image": "a.jpg", "answer": ["yes"]}"#;
    let deep = format!("{}1{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let long = "x".repeat(1_000_000);
    for (entries, words) in [
        (format!("{good}, 7"), "row 1"),
        (good.replace(r#"["yes"]"#, &deep), "vqa_val_filter.json"),
        (
            good.replace(r#"["yes"]"#, &format!("[{long:?}]")),
            "`answer`",
        ),
        (good.replace("a.jpg", &long), "`image`"),
        (good.replace("a.jpg", "a\\u0000.jpg"), "`image`"),
        (good.replace("\"q\"", "NaN"), "is NaN or infinite"),
        (
            good.replace("question_id\": 1", "question_id\": 1e400"),
            "row 0",
        ),
        (
            good.replace(r#"["yes"]"#, r#"{"yes": 1}"#),
            "an answer or a list of answers",
        ),
    ] {
        std::fs::write(&file, format!("[{entries}]")).expect("written");
        let said = evaluated(&folder, "{}/json", "--task vqa --split val");
        assert_eq!(said.code, Some(1), "{words}");
        assert!(said.stderr.contains(words), "{words}: {:.500}", said.stderr);
        assert!(
            said.stderr.len() < 3000,
            "{words}: {} bytes",
            said.stderr.len()
        );
    }
    // A field that nobody reads may hold anything.
    std::fs::write(
        &file,
        format!("[{}]", good.replacen('{', &format!("{{\"x\": {deep}, "), 1)),
    )
    .expect("written");
    let said = evaluated(&folder, "{}/json", "--task vqa --split val");
    assert!(
        said.stderr.contains("No such file") && said.stderr.contains("\"a.jpg\""),
        "{:.500}",
        said.stderr
    );
}

#[test]
fn a_seed_has_no_use_for_json_files() {
    let folder = TempDir::new().expect("a folder");
    let line = "data build vqa --raw fixtures/raw/vqa --out {}/json --format json --seed 1";
    let said = run(line, &folder);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("--seed"), "{}", said.stderr);
    let line = "data build sbu --raw fixtures/raw/sbu --out {}/json --format json";
    let said = run(line, &folder);
    assert!(
        said.stderr.contains("coco, f30k, vqa, nlvr2"),
        "{}",
        said.stderr
    );
}

/// A short run that learns from JSON files.
fn learned(folder: &TempDir, dataset: &str, split: &str, settings: &str) -> Said {
    let line = format!(
        "-q finetune --task retrieval --init fixtures/ckpt/ufo_pretrain.ckpt --data {{}}/json \
         --tokenizer {VOCABULARY} --out {{}}/run --set model={{text_table_len:~16}} --set batch_size=4 \
         --set length={{steps:~2}} --set save.every={{steps:~1}} --set validation=null \
         --set data.train=[{{dataset:~{dataset},~split:~{split}}}] {settings}"
    );
    run(&line, folder)
}

#[test]
fn a_run_learns_from_json_files_and_goes_on_with_the_same_alone() {
    let folder = with_json("coco", "coco");
    let split = "train+restval";
    ok(learned(&folder, "coco", split, "--set augmentation=color"));
    let log = folder.path().join("run/metrics.jsonl");
    let log = std::fs::read_to_string(log).expect("a log");
    assert_eq!(
        log.lines().filter(|line| line.contains("\"loss\"")).count(),
        2
    );
    // Another caption is another data set.
    let file = folder.path().join("json/coco_train.json");
    let text = std::fs::read_to_string(&file).expect("read");
    let changed = text.replacen("\"caption\":\"", "\"caption\":\"now ", 1);
    assert_ne!(text, changed);
    std::fs::write(&file, changed).expect("written");
    // As if the run had been stopped after its first step.
    let last = folder.path().join("run/states/step-00000002");
    std::fs::remove_dir_all(last).expect("removed");
    let settings = "--set augmentation=color --resume";
    let said = learned(&folder, "coco", split, settings);
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("coco_train.json"), "{}", said.stderr);
}

#[test]
fn a_run_looks_for_every_picture_before_its_first_step() {
    let folder = with_json("f30k", "flickr30k");
    let file = folder.path().join("json/flickr30k_train.json");
    let text = std::fs::read_to_string(&file).expect("read");
    // All entries of the last image.
    let begin = text.rfind("\"image\":\"").expect("a picture") + 9;
    let name = text[begin..].split('"').next().expect("a name");
    let changed = text.replace(&format!("\"{name}\""), "\"gone.jpg\"");
    std::fs::write(&file, changed).expect("written");
    let said = learned(&folder, "f30k", "train", "");
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(
        said.stderr.contains("flickr30k_train.json: row "),
        "{}",
        said.stderr
    );
    assert!(!folder.path().join("run/metrics.jsonl").exists());
}
