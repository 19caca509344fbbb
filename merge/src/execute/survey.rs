//! Entries that are looked at in passes before they are made.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::chunk::{Computed, read};
use crate::methods::{AnyChunk, Chunk, ElementKernel, Passes};
use crate::plan::{Action, Entry, TensorRef, chunk_elements};
use crate::{DType, Error, MergePlan, Progress, Result};

/// Runs the passes of an entry; `None` for entries that need none.
pub(super) fn kernel(
    plan: &MergePlan,
    entry: &Entry,
    progress: &dyn Progress,
    in_parallel: bool,
) -> Result<Option<Arc<dyn ElementKernel>>> {
    let Action::Survey {
        members,
        base,
        survey,
        is_double,
    } = &entry.action
    else {
        return Ok(None);
    };
    let is_f64 = |tensor: &TensorRef| {
        let info = plan.sources[tensor.source].get(&tensor.key);
        info.is_some_and(|info| info.dtype == DType::F64)
    };
    let data = Data {
        plan,
        members,
        base: base.as_ref(),
        n_elements: entry.info.n_elements(),
        chunk_elements: chunk_elements(survey.unit()),
        is_double: *is_double || members.iter().chain(base).any(is_f64),
        in_parallel,
        progress,
        idle: Mutex::new(Vec::new()),
    };
    survey.survey(&data).map(Some)
}

/// The tensors of one group, read chunk by chunk.
struct Data<'a> {
    plan: &'a MergePlan,
    members: &'a [TensorRef],
    base: Option<&'a TensorRef>,
    n_elements: usize,
    chunk_elements: usize,
    is_double: bool,
    /// Whether chunks are spread over the cores; small tensors are, as wholes.
    in_parallel: bool,
    progress: &'a dyn Progress,
    /// Buffers that no thread is using.
    idle: Mutex<Vec<Buffers>>,
}

#[derive(Default)]
struct Buffers {
    bytes: Vec<u8>,
    single: Vec<Vec<f32>>,
    double: Vec<Vec<f64>>,
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
        let one = |index: usize| {
            if self.progress.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let idle = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop();
            let mut buffers = idle.unwrap_or_default();
            let seen = self.see(index, parts, &mut buffers, see);
            self.idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(buffers);
            seen
        };
        match self.in_parallel {
            true => chunks.into_par_iter().try_for_each(one),
            false => chunks.into_iter().try_for_each(one),
        }
    }
}

impl Data<'_> {
    fn see(
        &self,
        index: usize,
        parts: usize,
        buffers: &mut Buffers,
        see: &(dyn Fn(usize, &AnyChunk<'_>) + Sync),
    ) -> Result<()> {
        let first = index * self.chunk_elements;
        let length = (self.chunk_elements / parts.max(1)).max(1);
        let length = length.min(self.n_elements - first);
        let Buffers {
            bytes,
            single,
            double,
        } = buffers;
        if self.is_double {
            self.fill(first, length, bytes, double)?;
            self.with_chunk(first, double, |chunk| see(index, &AnyChunk::Double(chunk)));
        } else {
            self.fill(first, length, bytes, single)?;
            self.with_chunk(first, single, |chunk| see(index, &AnyChunk::Single(chunk)));
        }
        Ok(())
    }

    fn fill<T: Computed>(
        &self,
        first: usize,
        length: usize,
        bytes: &mut Vec<u8>,
        buffers: &mut Vec<Vec<T>>,
    ) -> Result<()> {
        let tensors = self.members.iter().chain(self.base);
        buffers.resize_with(
            self.members.len() + usize::from(self.base.is_some()),
            Vec::new,
        );
        for (tensor, buffer) in tensors.zip(buffers) {
            buffer.resize(length, T::zeroed());
            read(self.plan, tensor, first, bytes, buffer)?;
        }
        Ok(())
    }

    fn with_chunk<T>(&self, first: usize, buffers: &[Vec<T>], see: impl FnOnce(Chunk<'_, T>)) {
        let n_members = self.members.len();
        let members: Vec<&[T]> = buffers[..n_members].iter().map(Vec::as_slice).collect();
        see(Chunk {
            members: &members,
            base: self.base.map(|_| buffers[n_members].as_slice()),
            aside: &[],
            first,
        });
    }
}
