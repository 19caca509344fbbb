//! Entries that are looked at in passes before they are made.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::idle::Idle;
use super::inputs::{Decoded, Inputs};
use super::kept::{Kept, Pool};
use super::overview::Part;
use super::{Piece, pieces_of};
use crate::methods::{AnyChunk, ElementKernel, Passes};
use crate::plan::{Action, Entry, KEPT_BYTES, chunk_elements, piece_elements};
use crate::{DType, Error, MergePlan, Progress, Result};

/// Memory that surveys use one after the other.
pub(super) struct Memory {
    kept: Pool,
    idle: Idle<Buffers>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self {
            kept: Pool::new(KEPT_BYTES),
            idle: Idle::default(),
        }
    }
}

/// The result of an entry's survey: the way to make it, and the kept inputs.
pub(super) struct Surveyed<'a> {
    pub(super) kernel: Arc<dyn ElementKernel>,
    pub(super) n_members: usize,
    pub(super) has_base: bool,
    pub(super) is_double: bool,
    pub(super) kept: Kept<'a>,
}

impl Surveyed<'_> {
    /// The pieces of the entry, with number `index` in the plan.
    pub(super) fn pieces(
        &self,
        index: usize,
        entry: &Entry,
    ) -> impl Iterator<Item = Piece> + use<> {
        pieces_of(index, entry.info.n_elements(), self.kernel.unit())
    }
}

/// Runs the passes of an entry; `None` for entries that need none. Inputs that are not numbers are refused
/// if `is_checked`.
pub(super) fn survey<'a>(
    plan: &'a MergePlan,
    entry: &'a Entry,
    memory: &'a Memory,
    is_checked: bool,
    progress: &dyn Progress,
    in_parallel: bool,
) -> Result<Option<Surveyed<'a>>> {
    let Action::Survey {
        members,
        base,
        survey,
        is_double,
    } = &entry.action
    else {
        return Ok(None);
    };
    let inputs = Inputs::new(plan, members.iter().chain(base), is_checked);
    let n_elements = entry.info.n_elements();
    let unit = survey.unit();
    let is_double = *is_double || survey.is_double() || inputs.any_is(DType::F64);
    let kept = Kept::new(inputs, n_elements, piece_elements(unit), &memory.kept);
    let data = Data {
        n_members: members.len(),
        has_base: base.is_some(),
        n_elements,
        chunk_elements: chunk_elements(unit),
        piece_elements: piece_elements(unit),
        is_double,
        in_parallel,
        progress,
        idle: &memory.idle,
        kept: &kept,
    };
    let kernel = survey.survey(&data)?;
    Ok(Some(Surveyed {
        kernel,
        n_members: members.len(),
        has_base: base.is_some(),
        is_double,
        kept,
    }))
}

/// Shows the tensors of an entry in chunks, on all cores.
pub(super) fn with_data<T>(
    plan: &MergePlan,
    part: Part<'_>,
    memory: &Memory,
    is_checked: bool,
    progress: &dyn Progress,
    see: impl FnOnce(&dyn Passes) -> Result<T>,
) -> Result<T> {
    let tensors = part.members.iter().chain(part.base);
    let inputs = Inputs::new(plan, tensors, is_checked);
    let is_double = part.is_double || inputs.any_is(DType::F64);
    let kept = Kept::new(inputs, part.n_elements, piece_elements(1), &memory.kept);
    see(&Data {
        n_members: part.members.len(),
        has_base: part.base.is_some(),
        n_elements: part.n_elements,
        chunk_elements: chunk_elements(1),
        piece_elements: piece_elements(1),
        is_double,
        in_parallel: true,
        progress,
        idle: &memory.idle,
        kept: &kept,
    })
}

/// The tensors of one group, read chunk by chunk.
struct Data<'a> {
    n_members: usize,
    has_base: bool,
    n_elements: usize,
    chunk_elements: usize,
    /// A whole number of chunks.
    piece_elements: usize,
    is_double: bool,
    /// Whether pieces are spread over the cores; small tensors are, as wholes.
    in_parallel: bool,
    progress: &'a dyn Progress,
    idle: &'a Idle<Buffers>,
    kept: &'a Kept<'a>,
}

#[derive(Default)]
pub(super) struct Buffers {
    bytes: Vec<u8>,
    decoded: Decoded,
}

impl Passes for Data<'_> {
    fn n_chunks(&self) -> usize {
        self.n_elements.div_ceil(self.chunk_elements.max(1))
    }

    fn chunk_elements(&self) -> usize {
        self.chunk_elements
    }

    fn n_elements(&self) -> usize {
        self.n_elements
    }

    fn is_double(&self) -> bool {
        self.is_double
    }

    fn visit(
        &self,
        chunks: Range<usize>,
        parts: usize,
        see: &(dyn Fn(usize, &AnyChunk<'_>) + Sync),
    ) -> Result<()> {
        let per_piece = self.piece_elements / self.chunk_elements.max(1);
        let one = |piece: usize| {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let own = (piece * per_piece).max(chunks.start)
                ..((piece + 1) * per_piece)
                    .min(chunks.end)
                    .min(self.n_chunks());
            self.idle.with(Buffers::default, |buffers| {
                self.see(piece, own, parts, buffers, see)
            })
        };
        let pieces = chunks.start / per_piece..chunks.end.div_ceil(per_piece);
        match self.in_parallel {
            true => pieces.into_par_iter().try_for_each(one),
            false => pieces.into_iter().try_for_each(one),
        }
    }
}

impl Data<'_> {
    /// Sees those of `chunks`, all of one piece, that lie in its first part.
    fn see(
        &self,
        piece: usize,
        chunks: Range<usize>,
        parts: usize,
        buffers: &mut Buffers,
        see: &(dyn Fn(usize, &AnyChunk<'_>) + Sync),
    ) -> Result<()> {
        let Buffers { bytes, decoded } = buffers;
        let elements = self.kept.elements(piece);
        let bytes = self.kept.piece(elements.start, bytes)?;
        let end = elements.start + (elements.len() / parts.max(1)).max(1);
        for index in chunks {
            let first = index * self.chunk_elements;
            let last = (first + self.chunk_elements).min(end);
            if first >= last {
                break;
            }
            let range = first - elements.start..last - elements.start;
            let inputs = &self.kept.inputs;
            let tensors = inputs.tensors(bytes, elements.len(), range, self.is_double, decoded)?;
            see(index, &tensors.chunk(self.n_members, self.has_base, first));
        }
        Ok(())
    }
}
