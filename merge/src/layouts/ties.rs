//! Tied tensors that a family's layout knows of, whatever the file says.

use std::collections::BTreeMap;

use crate::io::{Aliases, Blamed, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Result, TensorSource};

use super::table::LAYOUTS;

/// Reads names, shapes and samples of values; `None` if the checkpoint is none of the family or the file itself
/// says all of its ties.
pub type ReadTies = fn(&Checkpoint) -> Result<Option<Ties>>;

/// For families of whose tensors none is tied, and for those whose files say all ties.
pub(super) const NO_TIES: ReadTies = |_| Ok(None);

/// The tied tensors of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ties {
    /// Other names, each with the name that the tensor goes by.
    pub aliases: Aliases,
    /// Tensors whose values are stored under another of their names, with that name.
    pub stored_as: BTreeMap<String, String>,
    /// A note for users, as on names of one tensor that hold different values.
    pub note: Option<String>,
}

/// The checkpoint with the ties that its family knows: each tied tensor is one tensor, however often the file
/// holds it.
///
/// # Errors
/// When a file cannot be read, or names of one tensor have different shapes.
pub(crate) fn tied(checkpoint: Checkpoint) -> Result<Checkpoint> {
    for family in LAYOUTS {
        if let Some(ties) = (family.ties)(&checkpoint)? {
            let note = ties.note.clone();
            let view = Tied::new(checkpoint.into_source(), ties);
            return Ok(Checkpoint::new(Box::new(view)).with_note(note));
        }
    }
    Ok(checkpoint)
}

/// A file under the names that its tied tensors go by.
struct Tied {
    inner: Box<dyn TensorSource>,
    /// The file's, those of tensors that are stored under another name renamed.
    tensors: Vec<TensorEntry>,
    /// The tensor of the file that each is read from.
    from: Vec<usize>,
    aliases: Aliases,
}

impl Tied {
    fn new(inner: Box<dyn TensorSource>, ties: Ties) -> Self {
        let mut tensors = inner.tensors().to_vec();
        let mut from: Vec<usize> = (0..tensors.len()).collect();
        let places: BTreeMap<String, usize> = (tensors.iter().enumerate())
            .filter_map(|(index, entry)| Some((entry.name.clone()?, index)))
            .collect();
        for (name, stored) in &ties.stored_as {
            let Some(&source) = places.get(stored) else {
                continue;
            };
            match places.get(name) {
                Some(&own) => from[own] = source,
                None => tensors[source].name = Some(name.clone()),
            }
        }
        // A name that is no tensor's may stand for one.
        let aliases = ties.aliases;
        Self {
            inner,
            tensors,
            from,
            aliases,
        }
    }
}

impl TensorSource for Tied {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.aliases.clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        self.inner.stored_dtype(self.from[index])
    }

    fn is_computed(&self, index: usize) -> bool {
        self.inner.is_computed(self.from[index])
    }

    fn blamed(&self, index: usize, element: usize) -> Result<Option<Blamed>> {
        self.inner.blamed(self.from[index], element)
    }

    fn held_bytes(&self) -> u64 {
        self.inner.held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        self.inner.read(self.from[index], first, out)
    }
}
