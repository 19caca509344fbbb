//! Arrow files against `expected.json`, which pyarrow and Pillow made of the same files.

use evaluate::Error;
use evaluate::datasets::arrow::Table;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::VqaSet;
use evaluate::images;
use fixtures::{Set, integers, list, sha256_of};
use serde_json::{Value, json};

fn check_picture(bytes: &[u8], expected: &Value, place: &str) {
    assert_eq!(bytes.len() as i64, expected["bytes"], "{place}");
    assert_eq!(sha256_of(bytes), expected["sha256"], "{place}");
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

/// The type of a field of a schema, as [`Field::describe`](evaluate::datasets::arrow::Field::describe) has it.
pub fn kind(field: &Value) -> String {
    let kind = field[1].as_str().expect("a string");
    kind.replace("item: ", "")
}

/// The values of a column of texts or numbers.
pub fn column(table: &Table, name: &str, kind: &str) -> Value {
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
    let set = Set::open("arrow");
    let expected = set.json("expected.json");
    let expected = expected.as_object().expect("an object");
    assert!(!expected.is_empty(), "files");
    for (name, expected) in expected {
        let table = Table::open(&set.path(name)).unwrap_or_else(|e| panic!("{e}"));
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
            let kind = kind(expected);
            assert_eq!(field.describe(), kind, "{name}, {}", field.name);
            let values = list(&columns[&field.name]);
            if kind.contains("binary") {
                for (row, expected) in values.iter().enumerate() {
                    let place = format!("{name}, row {row}, {}", field.name);
                    let bytes = table.bytes(&field.name, row).expect("bytes");
                    check_picture(&bytes, expected, &place);
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
}

#[test]
fn questions_are_flat_and_know_their_image() {
    let set = Set::open("arrow");
    let expected = &set.json("expected.json")["vqav2_train.arrow"]["columns"];
    for folder in ["", "modern_writer", "multi_batch"] {
        let set = VqaSet::open(&set.path(folder), "train").unwrap_or_else(|e| panic!("{e}"));
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
}

#[test]
fn statements_know_their_pair() {
    let set = Set::open("arrow");
    let expected = &set.json("expected.json")["nlvr2_dev.arrow"]["columns"];
    let set = Nlvr2Set::open(&set.path(""), "dev").expect("a split");
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
                sha256_of(&set.image_bytes(pair, side).expect("bytes")),
                *expected
            );
        }
    }
    assert_eq!(statements.next(), None);
}
