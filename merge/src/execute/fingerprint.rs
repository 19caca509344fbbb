//! One number for everything that the bytes of an output depend on.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::RunOptions;
use crate::MergePlan;
use crate::beside::Content;
use crate::io::{SourceFile, WriteOptions};
use crate::provenance::hexadecimal;

/// SHA-256 of the recipe, the inputs as they are on the disk (path, identity, size, times of the last change), and
/// everything about the output, in hexadecimal.
pub(super) fn of(
    plan: &MergePlan,
    metadata: &BTreeMap<String, String>,
    write: &WriteOptions,
    run: &RunOptions,
) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        // With its length, so that no two lists of texts are the same.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    // With the version and the recipe in them.
    for (key, value) in metadata {
        add(key);
        add(value);
    }
    for file in plan.files() {
        add(&file.path.to_string_lossy());
        add(&file.n_bytes.to_string());
        add(&format!("{:?}", file.stamp));
    }
    for file in &plan.beside().files {
        add(&file.name);
        match &file.content {
            Content::Text(text) => add(text),
            Content::Copy(path) => {
                let seen = SourceFile::seen(path).and_then(|file| file.stamp);
                add(&format!("{} {seen:?}", path.display()));
            }
        }
    }
    for entry in plan.entries() {
        add(&entry.name);
        add(&format!("{} {:?}", entry.info.dtype, entry.info.shape));
        for tensor in entry.action.tensors() {
            add(&format!("{} {}", tensor.source, tensor.key));
        }
    }
    for (name, of) in plan.aliases() {
        add(&format!("{name} {of}"));
    }
    add(&format!(
        "{:?} {:?}",
        write.container, write.max_shard_bytes
    ));
    add(&format!("{:?} {}", run.hash, run.allow_non_finite));
    hexadecimal(&hash.finalize())
}
