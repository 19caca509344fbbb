//! Models that trainers left in pieces: folders of torch itself, and hostile ones made byte by byte.

mod distributed;
mod folders;
mod ranks;
mod shards;

use std::path::{Path, PathBuf};

use merge::io::{OpenOptions, open};
use merge::{Checkpoint, Error, TrainerFault};

/// A folder that `tests/trainer_shards.py --write` made, or the file with all of it.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/trainer")
        .join(name)
}

fn opened(path: &Path) -> Checkpoint {
    open(path, &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(path: &Path) -> Error {
    match open(path, &OpenOptions::default()) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

/// The fault of a folder of a trainer.
fn fault(error: Error) -> TrainerFault {
    match error {
        Error::Trainer(fault) => *fault,
        other => panic!("another fault: {other}"),
    }
}

/// Checks that two checkpoints have the same tensors, bit for bit.
fn require_equal(found: &Checkpoint, expected: &Checkpoint) {
    let names = |checkpoint: &Checkpoint| -> Vec<String> {
        let names = checkpoint.tensors().map(|(name, _)| name.to_owned());
        let mut names: Vec<String> = names.chain(checkpoint.aliases().keys().cloned()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(found), names(expected));
    for name in names(found) {
        assert_eq!(found.get(&name), expected.get(&name), "{name}");
        let bytes = |checkpoint: &Checkpoint| checkpoint.read_all(&name).expect("read");
        assert_eq!(bytes(found), bytes(expected), "{name}");
    }
}

/// A copy of a fixture's folder that a test may damage.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in std::fs::read_dir(fixture(name)).expect("a fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("copied");
    }
    folder
}
