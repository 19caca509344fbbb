//! The number of tensors that a merge changes.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Sink;
use crate::plan::{Action, Entry, TensorRef};
use crate::{MergePlan, Result};

/// Hands results on, and looks whether they differ from what they are measured from: the base, or else the
/// first model. Of a tensor that differs no more is looked at.
pub(super) struct Watched<'a> {
    plan: &'a MergePlan,
    sink: &'a dyn Sink,
    /// Of each entry whether it was written, and whether it differs.
    seen: Vec<(AtomicBool, AtomicBool)>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(plan: &'a MergePlan, sink: &'a dyn Sink) -> Self {
        let seen = plan.entries().iter().map(|_| Default::default());
        Self {
            plan,
            sink,
            seen: seen.collect(),
        }
    }

    /// Combined tensors that equal their base bit for bit.
    pub(super) fn n_unchanged(&self) -> usize {
        let is_unchanged = |(index, (written, differs)): &(usize, &(AtomicBool, AtomicBool))| {
            written.load(Ordering::Relaxed)
                && !differs.load(Ordering::Relaxed)
                && reference(&self.plan.entries()[*index]).is_some()
        };
        self.seen.iter().enumerate().filter(is_unchanged).count()
    }

    /// Tensors that are combined of several.
    pub(super) fn n_combined(&self) -> usize {
        let entries = self.plan.entries().iter();
        entries.filter(|entry| reference(entry).is_some()).count()
    }

    fn differs(&self, entry: &Entry, first_byte: u64, bytes: &[u8]) -> Result<bool> {
        let Some(reference) = reference(entry) else {
            return Ok(false);
        };
        let source = &self.plan.sources()[reference.source];
        let info = source.require(&reference.key)?;
        // A tensor in another type is not the same, and a computed one may be dear to read.
        let is_stored = source.stored_dtype(&reference.key) == Some(info.dtype);
        if *info != entry.info || !is_stored {
            return Ok(true);
        }
        let size = info.dtype.size_bytes();
        let mut there = vec![0; bytes.len()];
        source.read(&reference.key, first_byte as usize / size, &mut there)?;
        Ok(there != bytes)
    }
}

/// The tensor that a combined one is compared with, if it is combined of several.
fn reference(entry: &Entry) -> Option<&TensorRef> {
    let (members, base) = match &entry.action {
        Action::Elementwise { members, base, .. }
        | Action::Survey { members, base, .. }
        | Action::Whole { members, base, .. } => (members, base),
        _ => return None,
    };
    if members.len() + usize::from(base.is_some()) < 2 {
        return None;
    }
    base.as_ref().or_else(|| members.first())
}

impl Sink for Watched<'_> {
    fn write(&self, index: usize, first_byte: u64, bytes: &[u8]) -> Result<()> {
        let (written, differs) = &self.seen[index];
        written.store(true, Ordering::Relaxed);
        if !differs.load(Ordering::Relaxed)
            && self.differs(&self.plan.entries()[index], first_byte, bytes)?
        {
            differs.store(true, Ordering::Relaxed);
        }
        self.sink.write(index, first_byte, bytes)
    }
}
