//! What is written is what is read back, and appears whole or not at all.

use std::collections::BTreeMap;

use merge::io::{OpenOptions, WriteOptions, Writer, open};
use merge::{DType, TensorInfo};

#[test]
fn a_safetensors_file_reads_back_as_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    let info = |dtype, shape: &[usize]| TensorInfo {
        dtype,
        shape: shape.to_vec(),
    };
    let tensors = [
        ("b".to_owned(), info(DType::F32, &[2, 2])),
        ("a".to_owned(), info(DType::BF16, &[])),
        ("empty".to_owned(), info(DType::I64, &[0, 3])),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let writer = Writer::create(&tensors, &metadata, &WriteOptions::new(&path)).expect("a writer");
    writer.write(1, 0, &[7, 8]).expect("written");
    writer.write(0, 8, &[9; 8]).expect("written");
    writer.write(0, 0, &[1; 8]).expect("written");
    assert_eq!(
        writer.finish(&metadata).expect("finished"),
        std::slice::from_ref(&path)
    );
    let checkpoint = open(&path, &OpenOptions::default()).expect("it opens");
    assert_eq!(checkpoint.info().metadata, metadata);
    assert_eq!(checkpoint.get("empty"), Some(&tensors[2].1));
    assert_eq!(checkpoint.read_all("a").expect("read"), [7, 8]);
    let bytes = checkpoint.read_all("b").expect("read");
    assert_eq!(bytes, [[1; 8], [9; 8]].concat());
}
