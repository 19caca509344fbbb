//! Every safetensors file of the corpus behaves as its manifest says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use merge::TensorSource;
use merge::io::{OpenOptions, open};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Manifest {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    file: String,
    format: String,
    expect: String,
    #[serde(default)]
    tensors: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    path: serde_json::Value,
    dtype: String,
    shape: Vec<usize>,
    sha256: String,
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/corpus")
}

fn entries() -> Vec<Entry> {
    let text = std::fs::read_to_string(corpus().join("manifest.json")).expect("the manifest");
    let manifest: Manifest = serde_json::from_str(&text).expect("the manifest is valid");
    manifest
        .entries
        .into_iter()
        .filter(|entry| entry.format.starts_with("safetensors"))
        .collect()
}

/// Path, dtype, shape and hash of every tensor, as the manifest writes them.
fn listing(source: &dyn TensorSource) -> BTreeSet<(String, String, Vec<usize>, String)> {
    let mut found = BTreeSet::new();
    for (index, entry) in source.tensors().iter().enumerate() {
        let mut bytes = vec![0; entry.info.n_bytes() as usize];
        source.read(index, 0, &mut bytes).expect("the data");
        found.insert((
            serde_json::to_string(&entry.path).expect("a path is plain"),
            entry.info.dtype.to_string(),
            entry.info.shape.clone(),
            Sha256::digest(&bytes)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        ));
    }
    found
}

fn expected(entry: &Entry) -> BTreeSet<(String, String, Vec<usize>, String)> {
    entry
        .tensors
        .iter()
        .map(|tensor| {
            (
                tensor.path.to_string(),
                tensor.dtype.clone(),
                tensor.shape.clone(),
                tensor.sha256.clone(),
            )
        })
        .collect()
}

#[test]
fn valid_files_load_to_the_listed_tensors() {
    let entries = entries();
    let mut n_loaded = 0;
    for entry in entries.iter().filter(|entry| entry.expect == "load") {
        let checkpoint = open(&corpus().join(&entry.file), &OpenOptions::default())
            .unwrap_or_else(|fault| panic!("{}: {fault}", entry.file));
        assert_eq!(
            listing(checkpoint.source()),
            expected(entry),
            "{}",
            entry.file
        );
        n_loaded += 1;
    }
    assert_eq!(n_loaded, 12, "the corpus has twelve valid files");
}

#[test]
fn hostile_files_are_refused_with_an_error_that_names_them() {
    let entries = entries();
    let mut n_refused = 0;
    for entry in entries.iter().filter(|entry| entry.expect == "refuse") {
        let path = corpus().join(&entry.file);
        let Err(fault) = open(&path, &OpenOptions::default()) else {
            panic!("{} was opened", entry.file);
        };
        let message = fault.to_string();
        assert!(message.contains(&entry.file), "{message}");
        n_refused += 1;
    }
    assert_eq!(n_refused, 26, "the corpus has 26 hostile files");
}

#[test]
fn files_of_another_kind_load_rightly_or_are_refused() {
    for entry in entries().iter().filter(|entry| entry.expect == "safe") {
        if let Ok(checkpoint) = open(&corpus().join(&entry.file), &OpenOptions::default()) {
            assert_eq!(
                listing(checkpoint.source()),
                expected(entry),
                "{}",
                entry.file
            );
        }
    }
}
