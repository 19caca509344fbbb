//! Parquet and arrow files that claim much with few bytes: refused at once, in little memory.

use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{DictionaryArray, RecordBatch, StringArray};
use arrow_ipc::writer::FileWriter;
use arrow_ipc::{root_as_footer, root_as_message};
use evaluate::datasets::arrow::Table;
use evaluate::datasets::classes::ClassSet;
use tempfile::TempDir;

/// A struct of thrift's compact protocol, written field by field; parquet keeps its footer in such.
#[derive(Clone, Default)]
struct Thrift(Vec<u8>);

impl Thrift {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn field(mut self, kind: u8, id: u64) -> Self {
        self.0.push(kind);
        self.number(id << 1);
        self
    }

    fn int(self, id: u64, value: u64) -> Self {
        let mut out = self.field(6, id);
        out.number(value << 1);
        out
    }

    fn text(self, id: u64, text: &str) -> Self {
        let mut out = self.field(8, id);
        out.number(text.len() as u64);
        out.0.extend(text.bytes());
        out
    }

    fn inner(self, id: u64, inner: Self) -> Self {
        let mut out = self.field(12, id);
        out.0.extend(inner.end());
        out
    }

    fn list(self, id: u64, items: Vec<Self>) -> Self {
        let mut out = self.field(9, id);
        out.0.push(0xfc);
        out.number(items.len() as u64);
        items.into_iter().for_each(|item| out.0.extend(item.end()));
        out
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(0);
        self.0
    }
}

/// A page of 64-bit numbers as they are.
fn page(numbers: &[i64]) -> Vec<u8> {
    let n_bytes = 8 * numbers.len() as u64;
    let about = Thrift::default()
        .int(1, numbers.len() as u64)
        .int(2, 0)
        .int(3, 3)
        .int(4, 3);
    let header = Thrift::default()
        .int(1, 0)
        .int(2, n_bytes)
        .int(3, n_bytes)
        .inner(5, about);
    let mut page = header.end();
    page.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    page
}

/// Where a column of a row group lies, and how many values it claims.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    n_bytes: u64,
    n_values: u64,
}

/// A file of columns of 64-bit numbers: its pages, the columns' names, rows and places of each group.
fn parquet(pages: &[u8], names: &[String], groups: &[(u64, Vec<Place>)]) -> Vec<u8> {
    let root = Thrift::default()
        .text(4, "schema")
        .int(5, names.len() as u64);
    let leaves = names
        .iter()
        .map(|name| Thrift::default().int(1, 2).int(3, 0).text(4, name));
    let schema: Vec<Thrift> = [root].into_iter().chain(leaves).collect();
    let n_rows = groups.iter().map(|(n_rows, _)| n_rows).sum();
    let groups = groups.iter().map(|(n_rows, places)| {
        let chunks = places.iter().map(|place| {
            let about = Thrift::default()
                .int(1, 2)
                .int(4, 0)
                .int(5, place.n_values)
                .int(7, place.n_bytes)
                .int(9, place.start);
            Thrift::default().inner(3, about)
        });
        Thrift::default().list(1, chunks.collect()).int(3, *n_rows)
    });
    let footer = Thrift::default()
        .int(1, 1)
        .list(2, schema)
        .int(3, n_rows)
        .list(4, groups.collect())
        .end();
    let mut file = b"PAR1".to_vec();
    file.extend(pages);
    file.extend(&footer);
    file.extend((footer.len() as u32).to_le_bytes());
    file.extend(b"PAR1");
    file
}

/// The result of opening a file as a set of classes, in words.
fn opened(file: &[u8]) -> evaluate::Result<ClassSet> {
    let folder = TempDir::new().expect("a folder");
    std::fs::create_dir(folder.path().join("x")).expect("made");
    std::fs::write(folder.path().join("x/test.parquet"), file).expect("written");
    ClassSet::open(folder.path(), "x", "test")
}

fn said(file: &[u8]) -> String {
    opened(file).expect_err("refused").to_string()
}

#[test]
fn a_parquet_file_claims_no_more_than_it_holds() {
    let label = ["label".to_owned()];
    let pages = page(&[0, 1, 2]);
    let place = Place {
        start: 4,
        n_bytes: pages.len() as u64,
        n_values: 3,
    };
    // The honest one.
    let set = opened(&parquet(&pages, &label, &[(3, vec![place])])).expect("opened");
    assert_eq!(set.classes(), ["0", "1", "2"]);

    let twice = parquet(&pages, &label, &[(3, vec![place]), (3, vec![place])]);
    let words = said(&twice);
    assert!(words.contains("two columns into one place"), "{words}");

    let more = Place {
        n_values: 4,
        ..place
    };
    let words = said(&parquet(&pages, &label, &[(3, vec![more])]));
    assert!(
        words.contains("column `label`: it has 4 values in a group of 3 rows"),
        "{words}"
    );

    let names: Vec<String> = (0..10_001).map(|n| format!("c{n}")).collect();
    let words = said(&parquet(&pages, &names, &[]));
    assert!(words.contains("more than 10000 columns"), "{words}");
}

#[test]
fn a_label_without_names_makes_no_million_of_classes() {
    let pages = page(&[0, 1, 900_000]);
    let place = Place {
        start: 4,
        n_bytes: pages.len() as u64,
        n_values: 3,
    };
    let words = said(&parquet(&pages, &["label".into()], &[(3, vec![place])]));
    assert!(
        words.contains("row 2: its class is 900000, but classes are 0 to 65535"),
        "{words}"
    );
}

/// An arrow file with a column of texts by dictionary, in batches of rows.
fn arrow(text: &str, n_rows: usize, n_batches: usize) -> Vec<u8> {
    let texts = Arc::new(StringArray::from(vec![text]));
    let rows = arrow_array::Int8Array::from(vec![0; n_rows]);
    let column = DictionaryArray::<Int8Type>::try_new(rows, texts).expect("a column");
    let batch = RecordBatch::try_from_iter([("caption", Arc::new(column) as _)]).expect("a batch");
    let mut writer = FileWriter::try_new(Vec::new(), &batch.schema()).expect("a writer");
    for _ in 0..n_batches {
        writer.write(&batch).expect("written");
    }
    writer.finish().expect("written");
    writer.into_inner().expect("bytes")
}

fn captions(path: &Path, file: &[u8]) -> evaluate::Result<Vec<String>> {
    std::fs::write(path, file).expect("written");
    Table::open(path)?.column("caption")
}

#[test]
fn a_dictionary_of_arrow_makes_no_gigabytes() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("x.arrow");
    let few = captions(&path, &arrow("a red cat", 50, 3)).expect("read");
    assert_eq!(few, vec!["a red cat"; 150]);
    let error = captions(&path, &arrow(&"long ".repeat(1000), 10_000, 1));
    let words = error.expect_err("refused").to_string();
    assert!(
        words.contains("column `caption`: its texts take more than 256 times"),
        "{words}"
    );
}

#[test]
fn two_batches_of_arrow_in_one_place_are_refused() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("x.arrow");
    let mut file = arrow("a red cat", 50, 2);
    let end = file.len() - 10;
    let length = u32::from_le_bytes(*file[end..].first_chunk().expect("a length")) as usize;
    let start = end - length;
    let blocks = root_as_footer(&file[start..end]).expect("a footer");
    let blocks = blocks.recordBatches().expect("batches");
    let [first, second] = [0, 1].map(|at| blocks.get(at).offset().to_le_bytes());
    // The footer names a message.
    let at = i64::from_le_bytes(first) as usize + 8;
    assert!(root_as_message(&file[at..]).is_ok());
    let at = file[start..end]
        .windows(8)
        .position(|eight| eight == second);
    let at = start + at.expect("the offset");
    file[at..at + 8].copy_from_slice(&first);
    let words = captions(&path, &file).expect_err("refused").to_string();
    assert!(words.contains("two batches into one place"), "{words}");
}
