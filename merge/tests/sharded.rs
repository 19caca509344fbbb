//! Split models: what an index may say, and what a folder stands for.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merge::io::{OpenOptions, WriteOptions, Writer, open};
use merge::{DType, Error, SplitFault, TensorInfo};
use tempfile::TempDir;

/// A safetensors file of one-byte tensors with these names.
fn write(path: &Path, names: &[&str]) {
    let info = TensorInfo {
        dtype: DType::U8,
        shape: vec![],
    };
    let tensors: Vec<_> = names
        .iter()
        .map(|name| ((*name).to_owned(), info.clone()))
        .collect();
    let writer =
        Writer::create(&tensors, &BTreeMap::new(), &WriteOptions::new(path)).expect("a writer");
    for index in 0..tensors.len() {
        writer.write(index, 0, &[index as u8]).expect("written");
    }
    writer.finish(&BTreeMap::new()).expect("finished");
}

/// A folder with two shards: `one` holds `a` and `b`, `two` holds `c`.
fn shards() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    write(&folder.path().join("one.safetensors"), &["a", "b"]);
    write(&folder.path().join("two.safetensors"), &["c"]);
    folder
}

fn fault_of(folder: &Path, index: &str) -> Error {
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, index).expect("an index");
    match open(&path, &OpenOptions::default()) {
        Ok(_) => panic!("opened: {index}"),
        Err(fault) => {
            assert!(
                fault.to_string().contains("model.safetensors.index.json"),
                "{fault}"
            );
            fault
        }
    }
}

#[test]
fn an_index_may_not_lead_out_of_its_folder() {
    let folder = shards();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).expect("a folder");
    let absolute = folder.path().join("two.safetensors");
    for shard in [
        "../two.safetensors",
        absolute.to_str().expect("plain"),
        "x/../../two.safetensors",
        "",
    ] {
        let index = serde_json::json!({ "weight_map": { "c": shard } });
        let fault = fault_of(&inner, &index.to_string());
        assert!(
            matches!(fault, Error::Split(SplitFault::ShardOutside { .. })),
            "{fault}"
        );
    }
}

#[test]
fn shards_and_index_must_agree() {
    let folder = shards();
    let fault = |map: &str| fault_of(folder.path(), &format!("{{\"weight_map\":{{{map}}}}}"));
    let (a, b, c) = (
        r#""a":"one.safetensors""#,
        r#""b":"one.safetensors""#,
        r#""c":"two.safetensors""#,
    );
    let missing = fault(&format!(r#"{a},{b},"c":"three.safetensors""#));
    assert!(
        matches!(
            missing,
            Error::Split(SplitFault::MissingShard { n_tensors: 1, .. })
        ),
        "{missing}"
    );
    assert!(missing.hint().is_some());
    let absent = fault(&format!(r#"{a},{b},{c},"d":"two.safetensors""#));
    assert!(
        matches!(absent, Error::Split(SplitFault::NotInShard { .. })),
        "{absent}"
    );
    let misplaced = fault(&format!(r#"{a},"b":"two.safetensors",{c}"#));
    assert!(
        matches!(misplaced, Error::Split(SplitFault::NotInShard { .. })),
        "{misplaced}"
    );
    let extra = fault(&format!("{a},{c}"));
    assert!(
        matches!(extra, Error::Split(SplitFault::UnlistedTensor { .. })),
        "{extra}"
    );
    let twice = fault(&format!("{a},{b},{c},{a}"));
    assert!(matches!(twice, Error::DuplicateKey { .. }), "{twice}");
    write(&folder.path().join("three.safetensors"), &["a", "d"]);
    let in_two = fault(&format!(r#"{a},{b},"d":"three.safetensors""#));
    assert!(matches!(in_two, Error::DuplicateKey { .. }), "{in_two}");
}

#[test]
fn json_that_is_no_index_is_refused() {
    let folder = shards();
    for text in [
        "{}",
        "{\"weight_map\":[]}",
        "{\"weight_map\":{\"a\":1}}",
        "{",
    ] {
        let fault = fault_of(folder.path(), text);
        assert!(
            matches!(fault, Error::Split(SplitFault::Index { .. })),
            "{fault}"
        );
    }
}

#[test]
fn an_index_is_no_shard_of_itself() {
    let folder = shards();
    let index = r#"{"weight_map":{"a":"model.safetensors.index.json"}}"#;
    let fault = fault_of(folder.path(), index);
    assert!(matches!(fault, Error::UnknownFormat { .. }), "{fault}");
}

#[test]
fn a_folder_stands_for_its_only_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let opened = || open(folder.path(), &OpenOptions::default());
    let fault = opened().err().expect("an empty folder");
    assert!(
        matches!(fault, Error::Split(SplitFault::NoModel { .. })),
        "{fault}"
    );
    write(&folder.path().join("weights.safetensors"), &["a"]);
    fs::write(folder.path().join("config.json"), "{}").expect("a config");
    fs::write(folder.path().join("training_args.bin"), "x").expect("something else");
    assert_eq!(opened().expect("one model").tensors().count(), 1);
    write(&folder.path().join("other.safetensors"), &["a", "b"]);
    let fault = opened().err().expect("two models");
    assert!(
        fault
            .to_string()
            .contains("other.safetensors, weights.safetensors"),
        "{fault}"
    );
    write(&folder.path().join("model.safetensors"), &["a", "b", "c"]);
    assert_eq!(opened().expect("the usual name").tensors().count(), 3);
}

#[test]
fn files_of_no_known_kind_are_described() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.pt");
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";
    for (content, words) in [
        (&b""[..], "it is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (lfs.as_bytes(), "git-lfs pointer"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"hello there", "text \"hello there\""),
        (b"\x01\x02\xff", "bytes 01 02 ff"),
    ] {
        fs::write(&path, content).expect("a file");
        let fault = open(&path, &OpenOptions::default()).err().expect("refused");
        assert!(fault.to_string().contains(words), "{fault}");
    }
    let fault = open(Path::new("/dev/zero"), &OpenOptions::default())
        .err()
        .expect("refused");
    assert!(fault.to_string().contains("not a regular file"), "{fault}");
}
