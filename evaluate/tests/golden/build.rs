//! Arrow files that are built of `raw/` against those that the published writers made of it.

use std::collections::BTreeMap;
use std::path::Path;

use evaluate::Error;
use evaluate::build::{BuildOptions, BuildReport, build};
use evaluate::datasets::arrow::Table;
use fixtures::{Set, list};
use merge::progress::Silent;
use serde_json::{Value, json};

use super::tables::{column, kind};

pub fn options(raw: &Path, out: &Path) -> BuildOptions {
    BuildOptions {
        raw: raw.into(),
        out: out.into(),
        splits: Vec::new(),
        seed: 0,
        skip_bad: false,
        force: false,
    }
}

pub fn run(dataset: &str, options: &BuildOptions) -> Result<BuildReport, Error> {
    build(dataset, options, &Silent, |_, _| ())
}

/// The rows of a file as JSON, pictures as their bytes' lengths and sums, by id: the order of
/// rows means nothing.
pub fn rows(path: &Path) -> BTreeMap<String, Value> {
    let table = Table::open(path).unwrap_or_else(|e| panic!("{e}"));
    let columns: Vec<(String, Vec<Value>)> = (table.fields().iter())
        .map(|field| {
            let name = field.name.as_str();
            let kind = field.describe();
            let values = match kind.as_str() {
                "binary" => {
                    let rows = 0..table.n_rows();
                    let bytes = rows.map(|row| json!(table.bytes(name, row).expect("bytes")));
                    bytes.collect()
                }
                other => list(&column(&table, name, other)).to_vec(),
            };
            (name.to_owned(), values)
        })
        .collect();
    let rows = (0..table.n_rows()).map(|row| {
        let row: serde_json::Map<String, Value> = (columns.iter())
            .map(|(name, values)| (name.clone(), values[row].clone()))
            .collect();
        let id = row
            .get("image_id")
            .or(row.get("identifier"))
            .expect("an id");
        (id.to_string(), Value::Object(row))
    });
    rows.collect()
}

#[test]
fn every_file_equals_that_of_the_published_writer_row_for_row() {
    let out = tempfile::tempdir().expect("a folder");
    let (raw, arrow) = (Set::open("raw"), Set::open("arrow"));
    // Files of one set say nothing of files built of another.
    if raw.is_replaced() != arrow.is_replaced() {
        return;
    }
    let listed = arrow.json("expected.json");
    let mut built = Vec::new();
    for dataset in ["coco", "f30k", "vqa", "nlvr2", "sbu", "gcc", "vg"] {
        let report = run(dataset, &options(&raw.path(dataset), out.path()));
        for file in report.unwrap_or_else(|error| panic!("{error}")).files {
            let name = file
                .path
                .file_name()
                .expect("a name")
                .to_str()
                .expect("UTF-8")
                .to_owned();
            let (ours, theirs) = (rows(&file.path), rows(&arrow.path(&name)));
            assert_eq!(ours.len(), file.n_rows, "{name}: ids differ");
            assert!(ours.keys().eq(theirs.keys()), "{name}");
            for (id, row) in &ours {
                assert!(*row == theirs[id], "{name}, row {id}");
            }
            let expected = &listed[&name];
            let schema = list(&expected["schema"]).iter();
            let table = Table::open(&file.path).expect("a table");
            for (field, expected) in table.fields().iter().zip(schema) {
                assert_eq!(expected[0], json!(field.name), "{name}");
                let kind = kind(expected);
                // A column without values keeps its type.
                let is_known = !kind.contains("null");
                assert!(
                    !is_known || kind == field.describe(),
                    "{name}: {}",
                    field.name
                );
            }
            built.push(name);
        }
    }
    let mut expected: Vec<&str> = (listed.as_object().expect("files by name").iter())
        .filter(|(name, file)| !name.contains('/') && file["rows"] != 0)
        .map(|(name, _)| name.as_str())
        .collect();
    expected.sort_unstable();
    built.retain(|name| listed[name]["rows"] != 0);
    built.sort_unstable();
    assert_eq!(built, expected);
}
