//! Every safetensors file of the corpus behaves as its manifest says.

use std::collections::BTreeSet;

use merge::TensorSource;
use merge::io::{OpenOptions, open};

use fixtures::{Set, text};
use serde_json::Value;

use super::torch_corpus::entries;

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
            fixtures::sha256_of(&bytes),
        ));
    }
    found
}

fn expected(entry: &Value) -> BTreeSet<(String, String, Vec<usize>, String)> {
    let tensors = entry["tensors"].as_array().into_iter().flatten();
    let listed = tensors.map(|tensor| {
        let shape = fixtures::integers(&tensor["shape"]).into_iter();
        (
            tensor["path"].to_string(),
            text(&tensor["dtype"]).to_owned(),
            shape.map(|size| size as usize).collect(),
            text(&tensor["sha256"]).to_owned(),
        )
    });
    listed.collect()
}

#[test]
fn every_safetensors_file_of_the_corpus_behaves_as_its_manifest_says() {
    let corpus = Set::open("corpus");
    let entries = entries(&corpus, "safetensors/");
    assert!(!entries.is_empty(), "a corpus");
    for entry in &entries {
        let name = text(&entry["file"]);
        let opened = open(&corpus.path(name), &OpenOptions::default());
        match (text(&entry["expect"]), opened) {
            ("load" | "safe", Ok(checkpoint)) => {
                assert_eq!(listing(checkpoint.source()), expected(entry), "{name}");
            }
            ("refuse" | "safe", Err(fault)) => {
                let message = fault.to_string();
                assert!(message.contains(name), "{message}");
            }
            ("load", Err(fault)) => panic!("{name}: {fault}"),
            ("refuse", Ok(_)) => panic!("{name} was opened"),
            (other, _) => panic!("a word that this test does not know: {other}"),
        }
    }
}
