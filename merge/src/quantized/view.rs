//! A checkpoint whose quantized weights are computed while they are read.

use std::sync::Arc;

use super::stored::{Kept, N_KEPT};
use super::{Quantization, Weight, info};
use crate::io::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Result, TensorSource};

pub(super) struct View {
    inner: Arc<Checkpoint>,
    tensors: Vec<TensorEntry>,
    /// The name in the file of a tensor that is as it is stored, or what computes it.
    own: Vec<Own>,
    kept: Kept,
}

enum Own {
    Stored(String),
    Weight(Weight),
}

impl View {
    pub(super) fn new(inner: Arc<Checkpoint>, found: Quantization) -> Self {
        let mut entries: Vec<(TensorEntry, Own)> = Vec::new();
        let parts = found.parts();
        for (key, info) in inner.tensors().filter(|(key, _)| !parts.contains(*key)) {
            let entry = TensorEntry::named(key.to_owned(), info.clone());
            entries.push((entry, Own::Stored(key.to_owned())));
        }
        for (name, weight) in found.weights {
            let entry = TensorEntry::named(name, info(&weight.shape));
            entries.push((entry, Own::Weight(weight)));
        }
        entries.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, own) = entries.into_iter().unzip();
        Self {
            inner,
            tensors,
            own,
            kept: Kept::default(),
        }
    }
}

impl TensorSource for View {
    fn info(&self) -> &SourceInfo {
        self.inner.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// Other names of tensors that are not quantized; parts of quantized weights are no tensors of the view.
    fn aliases(&self) -> Aliases {
        let is_stored = |key: &str| {
            let mut own = self.own.iter();
            own.any(|own| matches!(own, Own::Stored(stored) if stored == key))
        };
        (self.inner.aliases().iter())
            .filter(|(_, of)| is_stored(of))
            .map(|(name, of)| (name.clone(), of.clone()))
            .collect()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        match &self.own[index] {
            Own::Weight(weight) => weight.codes.dtype(),
            Own::Stored(key) => (self.inner.stored_dtype(key)).unwrap_or(DType::F32),
        }
    }

    fn is_computed(&self, index: usize) -> bool {
        match &self.own[index] {
            Own::Weight(_) => true,
            Own::Stored(key) => self.inner.is_computed(key),
        }
    }

    fn held_bytes(&self) -> u64 {
        let weights = self.own.iter().filter_map(|own| match own {
            Own::Weight(weight) => Some(weight.codes.kept_bytes()),
            Own::Stored(_) => None,
        });
        let n_kept = N_KEPT.max(rayon::current_num_threads()) as u64;
        self.inner.source().held_bytes() + n_kept * weights.max().unwrap_or(0)
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let weight = match &self.own[index] {
            Own::Stored(key) => return self.inner.read(key, first, out),
            Own::Weight(weight) => weight,
        };
        if let Ok(values) = bytemuck::try_cast_slice_mut(out) {
            return weight.codes.fill(&self.inner, &self.kept, first, values);
        }
        let mut values = vec![0.0f32; out.len() / size_of::<f32>()];
        weight
            .codes
            .fill(&self.inner, &self.kept, first, &mut values)?;
        out.copy_from_slice(bytemuck::cast_slice(&values));
        Ok(())
    }
}
