//! The weights of a state, which count as made of what the run began from.

use std::sync::Arc;

use merge::io::{Aliases, SourceFile, SourceInfo, TensorEntry};
use merge::provenance::{InputFile, Provenance};
use merge::{Checkpoint, DType, TensorSource};

/// The files that a run begins from, as the checkpoints that it writes name them.
pub(super) fn of(checkpoint: &Checkpoint) -> Vec<InputFile> {
    Provenance::new(String::new(), &checkpoint.info().files).inputs
}

/// A checkpoint that names other files as its origin than the one it was read from, so that a run that was
/// resumed writes the same bytes as one that was not stopped. A run that began from fresh weights has no
/// origin: the state from which it was resumed may go while it runs.
pub(super) fn with(checkpoint: Arc<Checkpoint>, inputs: &[InputFile]) -> Arc<Checkpoint> {
    let files = inputs.iter().map(|input| SourceFile {
        etag: input.etag.clone(),
        ..SourceFile::named(&input.name, input.n_bytes)
    });
    let info = SourceInfo {
        files: files.collect(),
        ..checkpoint.info().clone()
    };
    Arc::new(Checkpoint::new(Box::new(Originated {
        inner: checkpoint,
        info,
    })))
}

struct Originated {
    inner: Arc<Checkpoint>,
    info: SourceInfo,
}

impl TensorSource for Originated {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        self.inner.source().tensors()
    }

    fn aliases(&self) -> Aliases {
        self.inner.aliases().clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.inner.source().stored_dtype(index)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.source().held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> merge::Result<()> {
        self.inner.source().read(index, first, out)
    }
}
