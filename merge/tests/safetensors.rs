//! Faults of safetensors headers that the corpus does not show, and what their errors say.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use merge::Error;
use merge::io::{OpenOptions, open};

use fixtures::{self as fixture, Raw};

/// Opens a file of this header and a number of bytes of data.
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
    // Four bits each, of which three fill no whole bytes.
    let header = r#"{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    fault_of(header, 2);
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
        ..OpenOptions::default()
    };
    assert!(open(&path, &root("")).is_ok());
    let fault = open(&path, &root("model")).err().expect("refused");
    assert!(matches!(fault, Error::UnknownRoot { .. }), "{fault}");
}

#[test]
fn every_dtype_of_the_format_is_opened_compared_and_copied() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("all.safetensors");
    // Sixteen elements of each, whose bits are all different.
    let all: BTreeMap<String, Raw> = (merge::DType::ALL.into_iter())
        .map(|dtype| {
            let n_bytes = dtype.bytes_of(16);
            let bytes = (0..n_bytes).map(|byte| (byte * 37 % 100) as u8);
            let raw = Raw {
                dtype: dtype_of(dtype.name()),
                shape: vec![4, 4],
                bytes: match dtype {
                    merge::DType::Bool => vec![1; n_bytes],
                    _ => bytes.collect(),
                },
            };
            (dtype.name().to_owned(), raw)
        })
        .collect();
    fixture::write(&path, &all);
    let checkpoint = opened(&path);
    assert_eq!(checkpoint.tensors().count(), 22);
    for (name, raw) in &all {
        assert_eq!(
            checkpoint.read_all(name).expect("readable"),
            raw.bytes,
            "{name}"
        );
    }
    let silent = &merge::progress::Silent;
    let options = merge::diff::DiffOptions::default();
    let same = merge::diff::diff(&checkpoint, &checkpoint, &options, silent).expect("compares");
    assert!(same.is_equal());
    let indices: Vec<usize> = (0..22).collect();
    merge::statistics::statistics(checkpoint.source(), &indices, silent).expect("numbers");
    merge::statistics::sha256(checkpoint.source(), &indices, silent).expect("hashes");
    // The numbers of another file differ in each.
    let other = folder.path().join("other.safetensors");
    let mut changed = all.clone();
    for raw in changed.values_mut() {
        raw.bytes[0] ^= 1;
    }
    fixture::write(&other, &changed);
    let report =
        merge::diff::diff(&checkpoint, &opened(&other), &options, silent).expect("compares");
    assert_eq!(report.values.len(), 22);
    // Copied by a merge, bit for bit.
    let yaml = format!(
        "merge_method: passthrough\nmodels: ['{}']\n",
        path.display()
    );
    let recipe = merge::MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("valid");
    let (plan, _) = merge::MergePlan::resolve(&recipe).expect("resolves");
    let target = folder.path().join("copied.safetensors");
    let write = merge::io::WriteOptions::new(&target);
    let run = merge::execute::RunOptions {
        allow_non_finite: true,
        ..Default::default()
    };
    merge::execute::execute(&plan, &write, &run, silent).expect("copies");
    for (name, raw) in fixture::tensors(&target) {
        let is_eight = name.starts_with("F8_") && name != "F8_E8M0";
        assert!(is_eight || raw == all[&name], "{name}");
    }
    // And refused by name where the values of two models differ.
    let yaml = format!(
        "merge_method: linear\nparameters: {{weight: 1}}\nmodels: ['{}', '{}']\n",
        path.display(),
        other.display()
    );
    let recipe = merge::MergeRecipe::parse(&yaml, Path::new("recipe.yaml")).expect("valid");
    let (plan, _) = merge::MergePlan::resolve(&recipe).expect("resolves");
    let write = merge::io::WriteOptions::new(folder.path().join("refused.safetensors"));
    let fault = merge::execute::execute(&plan, &write, &run, silent).expect_err("refused");
    assert!(fault.to_string().contains("holds no floats"), "{fault}");
}

fn dtype_of(name: &str) -> safetensors::Dtype {
    serde_json::from_value(serde_json::Value::String(name.to_owned()))
        .expect("a name of the format")
}

fn opened(path: &Path) -> merge::Checkpoint {
    open(path, &OpenOptions::default()).expect("opens")
}
