//! Faults of safetensors headers that the corpus does not show, and what their errors say.

use std::fs;

use merge::Error;
use merge::SafetensorsFault;
use merge::io::{OpenOptions, open};

/// Opens a file of this header and so many bytes of data.
fn fault_of(header: &str, n_data_bytes: usize) -> Error {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data_bytes, 0);
    fs::write(&path, bytes).expect("a file");
    open(&path, &OpenOptions::default()).err().expect("refused")
}

#[test]
fn duplicate_names_are_refused_and_named() {
    let a = r#""a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    let fault = fault_of(&format!("{{{a},{a}}}"), 1);
    assert!(
        matches!(&fault, Error::DuplicateKey { key, .. } if key == "a"),
        "{fault}"
    );
    let fault = fault_of(r#"{"__metadata__":{"x":"1","x":"2"}}"#, 0);
    assert!(fault.to_string().contains("`__metadata__.x`"), "{fault}");
    let fault = fault_of(r#"{"__metadata__":{},"__metadata__":{}}"#, 0);
    assert!(
        fault.to_string().contains("duplicate field `__metadata__`"),
        "{fault}"
    );
}

#[test]
fn unknown_dtypes_are_named() {
    let header =
        |dtype: &str| format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,1]}}}}"#);
    let fault = fault_of(&header("F33"), 1).to_string();
    assert!(fault.contains("`w`") && fault.contains("F33"), "{fault}");
    // A dtype of the format, but none that is merged.
    let fault = fault_of(&header("F4"), 1);
    assert!(
        matches!(
            fault,
            Error::Safetensors(SafetensorsFault::UnsupportedDType { .. })
        ),
        "{fault}"
    );
}

#[test]
fn errors_give_the_byte_range() {
    let header = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
        "b":{"dtype":"U8","shape":[2],"data_offsets":[3,5]}}"#;
    let fault = fault_of(header, 5).to_string();
    assert!(
        fault.ends_with("`b` has the data bytes 3..5, but must begin at 2"),
        "{fault}"
    );
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,2]}}"#;
    let fault = fault_of(header, 2).to_string();
    assert!(
        fault.ends_with("`a` has the data bytes 0..2, but its dtype and shape need 8"),
        "{fault}"
    );
}

#[test]
fn a_root_is_refused_where_names_do_not_nest() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.safetensors");
    fs::write(&path, b"\x02\0\0\0\0\0\0\0{}").expect("a file");
    let root = |root: &str| OpenOptions {
        root: Some(root.to_owned()),
    };
    assert!(open(&path, &root("")).is_ok());
    let fault = open(&path, &root("model")).err().expect("refused");
    assert!(matches!(fault, Error::UnknownRoot { .. }), "{fault}");
}
