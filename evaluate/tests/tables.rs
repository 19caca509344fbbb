//! Arrow files against `arrow/expected.json`, which pyarrow and Pillow made of the same files.

use std::path::{Path, PathBuf};

use evaluate::Error;
use evaluate::datasets::arrow::Table;
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::{VqaSet, label_answers};
use evaluate::images;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::fixture::{integers, json as fixture, list, path};

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_picture(bytes: &[u8], expected: &Value, place: &str) {
    assert_eq!(bytes.len() as i64, expected["bytes"], "{place}");
    assert_eq!(sha256(bytes), expected["sha256"], "{place}");
    let picture = images::decode(bytes).unwrap_or_else(|error| panic!("{place}: {error}"));
    let (width, height) = (picture.width, picture.height);
    assert_eq!(expected["width"], json!(width), "{place}");
    assert_eq!(expected["height"], json!(height), "{place}");
    let mean = list(&expected["pillow_rgb_mean"]).iter().enumerate();
    for (channel, expected) in mean {
        let sum: u64 = picture
            .pixels
            .iter()
            .skip(channel)
            .step_by(3)
            .map(|&v| u64::from(v))
            .sum();
        let mean = sum as f64 / (width * height) as f64;
        let expected = expected.as_f64().expect("a number");
        assert!(
            (mean - expected).abs() <= 1.0,
            "{place}: mean {mean}, expected {expected}"
        );
    }
    // The corners, the middles of the sides, the center; equal, for the decoder is Pillow's.
    let steps = |n: usize| [0, (n - 1) / 2, n - 1];
    let places = steps(height)
        .into_iter()
        .flat_map(|y| steps(width).map(|x| (x, y)));
    for ((x, y), expected) in places.zip(list(&expected["pillow_rgb_3x3"])) {
        let pixel = picture.pixel(x, y).expect("a pixel").map(i64::from);
        assert_eq!(
            pixel.to_vec(),
            integers(expected),
            "{place}: pixel {x}, {y}"
        );
    }
}

fn column(table: &Table, name: &str, kind: &str) -> Value {
    let read = |outcome: Result<Value, Error>| outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
    match kind {
        "string" => read(table.column::<String>(name).map(|c| json!(c))),
        "int64" => read(table.column::<i64>(name).map(|c| json!(c))),
        "list<string>" => read(table.column::<Vec<String>>(name).map(|c| json!(c))),
        "list<int64>" => read(table.column::<Vec<i64>>(name).map(|c| json!(c))),
        "list<list<string>>" => read(table.column::<Vec<Vec<String>>>(name).map(|c| json!(c))),
        "list<list<int64>>" => read(table.column::<Vec<Vec<i64>>>(name).map(|c| json!(c))),
        "list<list<double>>" => read(table.column::<Vec<Vec<f64>>>(name).map(|c| json!(c))),
        // Any type fits a column without values.
        "null" | "list<null>" => read(table.column::<Vec<Vec<String>>>(name).map(|c| json!(c))),
        other => panic!("{name}: {other}"),
    }
}

#[test]
fn every_file_holds_exactly_what_pyarrow_reads() {
    let expected = fixture("arrow/expected.json");
    let expected = expected.as_object().expect("an object");
    assert_eq!(expected.len(), 44);
    let mut n_pictures = 0;
    for (name, expected) in expected {
        let table = Table::open(&path("arrow").join(name)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(expected["rows"], json!(table.n_rows()), "{name}");
        assert_eq!(
            expected["record_batches"],
            json!(table.n_batches()),
            "{name}"
        );
        let (schema, columns) = (list(&expected["schema"]), &expected["columns"]);
        assert_eq!(schema.len(), table.fields().len(), "{name}");
        for (field, expected) in table.fields().iter().zip(schema) {
            assert_eq!(expected[0], json!(field.name), "{name}");
            let kind = expected[1]
                .as_str()
                .expect("a string")
                .replace("item: ", "");
            assert_eq!(field.describe(), kind, "{name}, {}", field.name);
            let values = list(&columns[&field.name]);
            if kind.contains("binary") {
                for (row, expected) in values.iter().enumerate() {
                    let place = format!("{name}, row {row}, {}", field.name);
                    let bytes = table.bytes(&field.name, row).expect("bytes");
                    check_picture(&bytes, expected, &place);
                    n_pictures += 1;
                }
                let lengths = table.lengths(&field.name).expect("lengths");
                let expected: Vec<_> = values.iter().map(|v| v["bytes"].clone()).collect();
                assert_eq!(json!(lengths), json!(expected), "{name}");
            } else {
                let kind = kind.replace("large_", "");
                assert_eq!(column(&table, &field.name, &kind), json!(values), "{name}");
            }
        }
    }
    assert_eq!(n_pictures, 268);
}

fn other(name: &str) -> PathBuf {
    path("arrow/other_writers").join(name)
}

#[test]
fn other_writers_say_the_same_in_other_ways() {
    let plain = CaptionSet::open(&path("arrow"), "f30k", "val").expect("a split");
    for name in [
        "stream.arrow",
        "lz4.arrow",
        "legacy.arrow",
        "large.arrow",
        "dictionary.arrow",
        "dictionary_stream.arrow",
        "extra_columns.arrow",
    ] {
        let set = CaptionSet::of_files(&[other(name)]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(set.n_images(), 2, "{name}");
        for image in 0..2 {
            assert_eq!(set.image_id(image), plain.image_id(image), "{name}");
            assert_eq!(set.captions(image), plain.captions(image), "{name}");
            let bytes = set.image_bytes(image).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bytes, plain.image_bytes(image).expect("bytes"), "{name}");
        }
    }
}

#[test]
fn faults_name_file_row_and_column() {
    for (name, message) in [
        ("zstd.arrow", "it is compressed with zstd; LZ4 is read"),
        ("null_id.arrow", "row 1: column `image_id` is null"),
        ("no_caption.arrow", "row 1: the image has no caption"),
        ("empty.arrow", "holds no images"),
        (
            "missing_column.arrow",
            "has no column `caption`; it has: image, image_id, split",
        ),
        ("absent.arrow", "cannot open"),
    ] {
        let file = other(name);
        let error = CaptionSet::of_files(std::slice::from_ref(&file)).expect_err(name);
        let error = error.to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(error.contains(message), "{error}");
    }
    let table = Table::open(&other("large.arrow")).expect("a table");
    let error = table
        .column::<i64>("image_id")
        .expect_err("text")
        .to_string();
    assert!(
        error.contains("column `image_id` is text, expected integers"),
        "{error}"
    );
    let error = table.bytes("image", 2).expect_err("two rows").to_string();
    assert!(error.contains("row 2: there are 2 rows"), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in [
        "f30k_caption_karpathy_val.arrow",
        "other_writers/stream.arrow",
    ] {
        let bytes = std::fs::read(path("arrow").join(name)).expect("the fixture is there");
        let file = folder.path().join("cut.arrow");
        for length in (0..bytes.len() - 8).step_by(397) {
            std::fs::write(&file, &bytes[..length]).expect("written");
            let outcome = CaptionSet::of_files(std::slice::from_ref(&file));
            // A stream without its end mark is whole at the end of any batch.
            let is_stream_of_fewer =
                name.contains("stream") && outcome.as_ref().is_ok_and(|set| set.n_images() < 2);
            assert!(
                outcome.is_err() || is_stream_of_fewer,
                "{name} cut at {length}"
            );
        }
    }
}

#[test]
fn splits_are_the_files_of_the_table() {
    let folder = path("arrow");
    for (dataset, split, n_images, n_captions) in [
        ("coco", "train", 5, 27),
        ("coco", "train+restval", 7, 38),
        ("coco", "val", 3, 21),
        ("coco", "test", 4, 22),
        ("f30k", "train", 5, 25),
        ("f30k", "published_train", 7, 35),
        ("f30k", "val", 2, 10),
        ("f30k", "published_val", 4, 20),
        ("sbu", "train", 5, 5),
        ("gcc", "train", 5, 5),
        ("gcc", "val", 3, 3),
    ] {
        let set = CaptionSet::open(&folder, dataset, split).unwrap_or_else(|e| panic!("{e}"));
        let counts = (set.n_images(), set.n_captions());
        assert_eq!(counts, (n_images, n_captions), "{dataset} {split}");
    }
    let error = CaptionSet::open(&folder, "coco", "minival").expect_err("no such split");
    assert_eq!(
        error.to_string(),
        "coco has no split \"minival\"; there are: train, train+restval, restval, val, test"
    );
    assert!(error.is_usage());
    let error = CaptionSet::open(&folder, "vqa", "test")
        .expect_err("not captions")
        .to_string();
    assert!(
        error.contains("there are: coco, f30k, gcc, sbu, vg"),
        "{error}"
    );
    let error = CaptionSet::open(&path("raw"), "sbu", "train")
        .expect_err("no files")
        .to_string();
    assert!(
        error.contains("holds no sbu_0.arrow nor code224_sbu_0.arrow"),
        "{error}"
    );
}

fn copy(from: &str, folder: &Path, to: &str) {
    std::fs::copy(path("arrow").join(from), folder.join(to)).expect("copied");
}

#[test]
fn both_spellings_open_and_a_hole_in_the_numbers_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    copy("sbu_0.arrow", folder, "code224_sbu_0.arrow");
    copy("sbu_0.arrow", folder, "sbu_1.arrow");
    let set = CaptionSet::open(folder, "sbu", "train").expect("two files");
    assert_eq!(set.n_images(), 10);
    copy("sbu_0.arrow", folder, "sbu_3.arrow");
    let error = CaptionSet::open(folder, "sbu", "train")
        .expect_err("2 is not there")
        .to_string();
    assert!(error.contains("sbu_2.arrow"), "{error}");
}

#[test]
fn repeated_captions_go_only_when_asked() {
    let set = || CaptionSet::open(&path("arrow"), "coco", "train").expect("a split");
    let (all, once) = (set(), set().without_repeats());
    assert!(once.n_captions() < all.n_captions());
    for image in 0..all.n_images() {
        let mut expected: Vec<String> = Vec::new();
        for caption in all.captions(image) {
            if !expected.contains(caption) {
                expected.push(caption.clone());
            }
        }
        assert_eq!(once.captions(image), expected);
    }
}

#[test]
fn questions_are_flat_and_know_their_image() {
    let expected = &fixture("arrow/expected.json")["vqav2_train.arrow"]["columns"];
    for folder in ["arrow", "arrow/modern_writer", "arrow/multi_batch"] {
        let set = VqaSet::open(&path(folder), "train").unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(
            set.questions().len(),
            list(&expected["questions"])
                .iter()
                .map(|q| list(q).len())
                .sum::<usize>()
        );
        let mut questions = set.questions().iter();
        for image in 0..set.n_images() {
            for place in 0..list(&expected["questions"][image]).len() {
                let question = questions.next().expect("a question");
                assert_eq!(question.image, image);
                assert_eq!(expected["image_id"][image], json!(question.image_id));
                assert_eq!(expected["questions"][image][place], json!(question.text));
                assert_eq!(
                    expected["question_id"][image][place],
                    json!(question.question_id)
                );
                assert_eq!(expected["answers"][image][place], json!(question.answers));
                assert_eq!(
                    expected["answer_labels"][image][place],
                    json!(question.answer_labels)
                );
                assert_eq!(
                    expected["answer_scores"][image][place],
                    json!(question.answer_scores)
                );
            }
        }
    }
    let test = VqaSet::open(&path("arrow"), "test-dev").expect("a split");
    assert_eq!(test.questions().len(), 8);
    assert!(
        test.questions()
            .iter()
            .all(|question| question.answers.is_empty())
    );
    let both = VqaSet::open(&path("arrow"), "train+val").expect("trainable_val is empty here");
    assert_eq!(both.n_images(), 9);
    let error = VqaSet::open(&path("arrow"), "trainable_val")
        .expect_err("empty")
        .to_string();
    assert!(error.contains("holds no images with questions"), "{error}");
}

#[test]
fn the_classes_of_the_answers_come_from_the_tables() {
    // The order that the README of the fixture gives.
    let expected = [
        "2", "yes", "cat", "red", "3", "1", "brown", "no", "on table", "tabby",
    ];
    let answers = label_answers(&path("arrow")).expect("answers");
    for (label, answer) in &answers {
        assert_eq!(expected[usize::try_from(*label).expect("a class")], answer);
    }
    assert!(answers.len() >= 8, "{answers:?}");
    let error = label_answers(&path("raw"))
        .expect_err("no tables")
        .to_string();
    assert!(error.contains("vqav2_train"), "{error}");
}

#[test]
fn statements_know_their_pair() {
    let expected = &fixture("arrow/expected.json")["nlvr2_dev.arrow"]["columns"];
    let set = Nlvr2Set::open(&path("arrow"), "dev").expect("a split");
    let mut statements = set.statements().iter();
    for pair in 0..set.n_pairs() {
        for place in 0..list(&expected["questions"][pair]).len() {
            let statement = statements.next().expect("a statement");
            assert_eq!((statement.pair, statement.place), (pair, place));
            assert_eq!(
                expected["questions"][pair][place],
                json!(statement.sentence)
            );
            assert_eq!(expected["identifier"][pair], json!(statement.identifier));
            let label = statement.label.expect("a label");
            assert_eq!(
                expected["answers"][pair][place],
                if label { "True" } else { "False" }
            );
        }
        for side in 0..2 {
            let expected = &expected[format!("image_{side}")][pair]["sha256"];
            assert_eq!(
                sha256(&set.image_bytes(pair, side).expect("bytes")),
                *expected
            );
        }
    }
    assert_eq!(statements.next(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bytes_never_panic(
        which in 0_usize..4,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let names = ["f30k_caption_karpathy_val.arrow", "other_writers/stream.arrow",
                     "other_writers/lz4.arrow", "other_writers/dictionary.arrow"];
        let mut bytes = std::fs::read(path("arrow").join(names[which])).expect("the fixture");
        // Headers are at both ends; pictures between are not looked at here.
        let n_heads = 2400.min(bytes.len() / 2);
        for (index, value) in flips {
            let place = index.index(2 * n_heads);
            let place = if place < n_heads { place } else { bytes.len() - 1 - (place - n_heads) };
            bytes[place] = value;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("flipped.arrow");
        std::fs::write(&file, &bytes).expect("written");
        if let Ok(set) = CaptionSet::of_files(&[file]) {
            for image in 0..set.n_images().min(4) {
                let _ = set.image_bytes(image);
            }
        }
    }
}
