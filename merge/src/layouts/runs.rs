//! A checkpoint whose tensors are made of runs of elements of another one's: parts taken out of packed tensors or put
//! into them, matrices transposed.

use std::sync::{Arc, OnceLock};

use crate::io::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Error, Result, TensorInfo, TensorSource};

/// A run of elements of a tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub key: String,
    pub first: usize,
    pub length: usize,
}

impl Run {
    /// All of a tensor.
    pub fn whole(key: &str, info: &TensorInfo) -> Self {
        Self {
            key: key.to_owned(),
            first: 0,
            length: info.n_elements(),
        }
    }
}

/// The origin of a tensor of the view.
pub(super) enum Origin {
    /// From runs, one after the other.
    Runs(Vec<Run>),
    /// The transpose of a tensor of the file, `(rows, columns)` there, kept once it was read.
    Turned(Run, [usize; 2], OnceLock<Vec<u8>>),
}

impl Origin {
    fn key(&self) -> &str {
        match self {
            Self::Runs(runs) => runs.first().map_or("", |run| &run.key),
            Self::Turned(run, ..) => &run.key,
        }
    }
}

/// The view.
pub(super) struct RunView {
    inner: Arc<Checkpoint>,
    info: SourceInfo,
    tensors: Vec<TensorEntry>,
    origins: Vec<Origin>,
}

impl RunView {
    /// Of these tensors, each with its origin in `inner`; `info` is what the view says of its file.
    pub fn new(
        inner: Arc<Checkpoint>,
        info: SourceInfo,
        mut tensors: Vec<(TensorEntry, Origin)>,
    ) -> Self {
        tensors.sort_by(|one, other| one.0.name.cmp(&other.0.name));
        let (tensors, origins) = tensors.into_iter().unzip();
        Self {
            inner,
            info,
            tensors,
            origins,
        }
    }
}

impl TensorSource for RunView {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        Aliases::new()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        let stored = self.inner.stored_dtype(self.origins[index].key());
        stored.unwrap_or(self.tensors[index].info.dtype)
    }

    fn is_computed(&self, index: usize) -> bool {
        match &self.origins[index] {
            Origin::Runs(runs) if runs.len() == 1 => self.inner.is_computed(&runs[0].key),
            _ => true,
        }
    }

    fn held_bytes(&self) -> u64 {
        let turned = self.origins.iter().zip(&self.tensors);
        let turned = turned.filter(|(origin, _)| matches!(origin, Origin::Turned(..)));
        let n_bytes: u64 = turned.map(|(_, entry)| entry.info.n_bytes()).sum();
        self.inner.source().held_bytes() + n_bytes
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        if let Origin::Runs(runs) = &self.origins[index]
            && let [run] = runs.as_slice()
        {
            return self.inner.read(&run.key, run.first + first, out);
        }
        let dtype = self.tensors[index].info.dtype;
        if dtype.bits() < 8 {
            return Err(Error::UnsupportedCast {
                key: self.origins[index].key().to_owned(),
                dtype,
                wanted: DType::BF16,
            });
        }
        let size = dtype.size_bytes();
        let runs = match &self.origins[index] {
            Origin::Runs(runs) => runs,
            Origin::Turned(run, there, kept) => {
                let bytes = match kept.get() {
                    Some(bytes) => bytes,
                    None => {
                        let bytes = turned(&self.inner, run, *there, size)?;
                        kept.get_or_init(|| bytes)
                    }
                };
                out.copy_from_slice(&bytes[first * size..][..out.len()]);
                return Ok(());
            }
        };
        let (mut at, mut rest, mut begin) = (first, out, 0);
        for run in runs {
            let end = begin + run.length;
            if !rest.is_empty() && at < end {
                let n = (end - at).min(rest.len() / size);
                let (part, after) = rest.split_at_mut(n * size);
                self.inner.read(&run.key, run.first + at - begin, part)?;
                (at, rest) = (at + n, after);
            }
            begin = end;
        }
        Ok(())
    }
}

/// The bytes of a matrix, `(rows, columns)` in the file, by columns.
fn turned(
    source: &Checkpoint,
    run: &Run,
    [rows, columns]: [usize; 2],
    size: usize,
) -> Result<Vec<u8>> {
    let mut there = vec![0; run.length * size];
    source.read(&run.key, run.first, &mut there)?;
    let mut here = vec![0; there.len()];
    for (row, line) in there.chunks_exact((columns * size).max(1)).enumerate() {
        for (column, element) in line.chunks_exact(size).enumerate() {
            let to = (column * rows + row) * size;
            here[to..to + size].copy_from_slice(element);
        }
    }
    Ok(here)
}
