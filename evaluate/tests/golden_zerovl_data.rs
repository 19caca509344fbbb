//! ZeroVL's annotation tables and tokens, case by case of `fixtures/zerovl/manifest.json`.

use evaluate::datasets::annotations::{Annotations, Half};
use evaluate::text::Tokenizer;
use fixtures::{Case, Set, integers, list, text};
use serde_json::Value;

fixtures::golden_tests! {
    package: "evaluate", set: "zerovl",
    rows_are_read_as_they_are_written: "csv" => csv,
    texts_become_the_published_tokens: "tokenize" => tokenize,
}

fn tokenizer(path: &std::path::Path) -> Tokenizer {
    let opened = Tokenizer::open(path.to_str().expect("UTF-8"));
    opened.expect("a tokenizer").with_special_as_text()
}

fn assert_encoded(tokenizer: &Tokenizer, words: &str, length: usize, expected: &Value) {
    let encoded = tokenizer.encode(words, length).expect("encoded");
    let ids: Vec<i64> = encoded.ids.iter().map(|&id| i64::from(id)).collect();
    assert_eq!(ids, integers(&expected["input_ids"]), "{words:?}");
    if expected["attention_mask"].is_array() {
        let n_tokens: i64 = integers(&expected["attention_mask"]).iter().sum();
        assert_eq!(encoded.n_tokens as i64, n_tokens, "{words:?}");
    }
}

fn csv(case: &Case) {
    let path = case.file("input");
    let half = Half::of(case.param("split").expect("a split")).expect("a half");
    let pictures = path.parent().expect("a folder").join(half.name());
    let set = Annotations::of_file(&path, &pictures, half).expect("a table");
    let all = case.json("expected");
    let expected = &all[case.text("key")];
    assert_eq!(expected["rows"], set.len() + set.n_ignored());
    let is_kept = |row: &&Value| row["image_id"].as_i64().is_none_or(|id| id >= 0);
    let rows: Vec<&Value> = list(&expected["items"]).iter().filter(is_kept).collect();
    assert_eq!(rows.len(), set.len());
    let vocabulary = Set::open("zerovl").path("text/vocab.txt");
    let tokenizer = tokenizer(&vocabulary);
    let length = case.count("max_length").expect("a length");
    for (row, expected) in rows.into_iter().enumerate() {
        let found = set.annotation(row).expect("a row");
        assert_eq!(found.image, text(&expected["image"]));
        assert_eq!(found.caption, text(&expected["caption"]));
        assert_eq!(expected["image_id"], found.image_id);
        assert_eq!(expected["caption_id"], found.caption_id);
        assert_eq!(set.image_ids()[row], found.image_id);
        assert_eq!(set.caption_ids()[row], found.caption_id);
        if expected["input_ids"].is_array() {
            assert_encoded(&tokenizer, &found.caption, length, expected);
        }
        set.picture(row).expect("a picture");
    }
    set.check_pictures().expect("pictures");
}

fn tokenize(case: &Case) {
    let tokenizer = tokenizer(&case.file("input"));
    for example in list(&case.json("expected")) {
        let words = text(&example["text"]);
        if let Some(expected) = example["tokens"].as_array() {
            let found = tokenizer.pieces(words).expect("pieces");
            let expected = expected.iter().map(text);
            let expected: Vec<&str> = expected.collect();
            // The list is cut to 40.
            assert_eq!(found[..expected.len()], expected, "{words:?}");
        }
        let length = example["max_length"].as_u64().expect("a length") as usize;
        assert_encoded(&tokenizer, words, length, example);
    }
}
