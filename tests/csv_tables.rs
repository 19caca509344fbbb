//! ZeroVL's CSV tables: retrieval and zero-shot classification on them.

use std::path::Path;

use tempfile::TempDir;

use crate::program::{ok, run};

const CHECKPOINT: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const VOCABULARY: &str = "fixtures/real/vocab.txt";

/// A table of the first pictures of the fixtures, `rows` being picture, image id, caption and class.
pub(crate) fn table(folder: &TempDir, name: &str, rows: &[(usize, i64, &str, i64)]) {
    let set = folder.path().join(name);
    std::fs::create_dir_all(set.join("valid")).expect("made");
    let pictures = std::fs::read_dir("fixtures/real/raw/val2014").expect("pictures");
    let mut pictures: Vec<_> = pictures
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pictures.sort();
    let mut csv = "caption_id,caption,image,image_id\n".to_owned();
    for (picture, image_id, caption, class) in rows {
        let name = format!("{picture}.jpg");
        std::fs::copy(&pictures[*picture], set.join("valid").join(&name)).expect("copied");
        csv += &format!("{class},\"{caption}\",{name},{image_id}\n");
    }
    std::fs::write(set.join("valid_anno.csv"), csv).expect("written");
}

fn evaluate(more: &str) -> String {
    format!(
        "-q evaluate {CHECKPOINT} --text-table-len 16 --tokenizer {VOCABULARY} --data {{}} \
         --split valid --json {more}"
    )
}

#[test]
fn rows_of_one_image_are_one_and_rows_below_zero_are_counted_as_left_out() {
    let folder = TempDir::new().expect("a folder");
    let rows = [
        (0, 0, "a dog, a cat", 1),
        (0, 0, "NA", 2),
        (1, 9_000_000_000, "a tree", 3),
        (2, -1, "nobody asks", 4),
    ];
    table(&folder, "toy", &rows);
    let said = ok(run(&evaluate("--task retrieval --dataset toy"), &folder)).json();
    let result = &said["results"][0];
    assert_eq!(result["counts"]["images"], 2);
    assert_eq!(result["counts"]["texts"], 3);
    assert_eq!(result["left_out"][0]["n"], 1);
    assert_eq!(result["left_out"][0]["of"], 4);
    assert_eq!(result["measurements"].as_array().map(Vec::len), Some(7));
}

#[test]
fn an_image_is_of_the_class_whose_text_is_nearest() {
    let folder = TempDir::new().expect("a folder");
    let rows = [(0, 1, "a dog", 5), (1, 2, "a dog", 5), (2, 3, "a tree", 7)];
    table(&folder, "imagenet", &rows);
    let line = evaluate("--task zero_shot --predictions {}/pred");
    let said = ok(run(&line, &folder)).json();
    let result = &said["results"][0];
    assert_eq!(result["counts"]["classes"], 2);
    assert_eq!(result["measurements"][0]["name"], "top1");
    // Two classes: the right one is always among five.
    assert_eq!(result["measurements"][1]["value"], 1.0);
    let csv = Path::new(folder.path()).join("pred/all_moe_pretrain.valid.csv");
    let csv = std::fs::read_to_string(csv).expect("predictions");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], "image,class");
    let right = lines[1..]
        .iter()
        .zip(rows)
        .filter(|(line, (picture, _, _, class))| **line == format!("\"{picture}.jpg\",{class}"));
    let top1 = result["measurements"][0]["value"]
        .as_f64()
        .expect("a number");
    assert!((top1 - right.count() as f64 / 3.0).abs() < 1e-9, "{csv}");
}
