//! Files of gram matrices.

use std::collections::BTreeMap;
use std::sync::Arc;

use merge::gram::{Gram, GramRecord, GramStore};
use merge::io::{OpenOptions, WriteOptions};
use merge::progress::Silent;

#[test]
fn gram_files_say_what_they_are_of_and_add_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let gram = |value: f32, rows: usize| {
        let mut gram = Gram::new(2);
        gram.add_rows(&vec![value; 2 * rows], 1, &mut Vec::new());
        gram
    };
    let write = |name: &str, gram: Gram, data: &str| {
        let record = GramRecord {
            data: vec![data.to_owned()],
            task: "retrieval".into(),
            n_examples: 1,
            rows: BTreeMap::from([("a".to_owned(), gram.rows())]),
            ..GramRecord::default()
        };
        let path = folder.path().join(name);
        let grams = BTreeMap::from([("a".to_owned(), gram)]);
        let written =
            merge::gram::write(&grams, &record, false, &WriteOptions::new(&path), &Silent);
        written.expect("written");
        let opened = merge::io::open(&path, &OpenOptions::default()).expect("opens");
        GramStore::new(Arc::new(opened)).expect("gram matrices")
    };
    let stores = [
        write("one.safetensors", gram(1.0, 2), "coco part 0"),
        write("two.safetensors", gram(2.0, 3), "coco part 1"),
    ];
    let (sum, record) = merge::gram::add(&stores).expect("they belong together");
    assert_eq!(sum["a"].packed(), [14.0, 14.0, 14.0]);
    assert_eq!(record.rows["a"], 5);
    assert_eq!(record.n_examples, 2);
    assert_eq!(record.data, ["coco part 0", "coco part 1"]);
}
