//! A model with the rows of other tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::work::Work;
use crate::io::{Aliases, SourceInfo, TensorEntry};
use crate::{Checkpoint, DType, Result, TensorSource, encode_f64};

/// The checkpoint with tables that have a row for each of the donor's tokens.
pub(super) struct Transplanted {
    model: Arc<Checkpoint>,
    work: Arc<Work>,
    tensors: Vec<TensorEntry>,
    names: Vec<String>,
    /// The table of each tensor that is one.
    tables: Vec<Option<usize>>,
}

impl Transplanted {
    pub(super) fn view(model: &Arc<Checkpoint>, work: &Arc<Work>) -> Arc<Checkpoint> {
        let by_name: BTreeMap<&str, usize> = (work.tables().iter().enumerate())
            .map(|(index, table)| (table.model.key.as_str(), index))
            .collect();
        let mut view = Self {
            model: Arc::clone(model),
            work: Arc::clone(work),
            tensors: Vec::new(),
            names: Vec::new(),
            tables: Vec::new(),
        };
        for (name, info) in model.tensors() {
            let table = by_name.get(name).copied();
            let mut info = info.clone();
            if let Some(table) = table.map(|index| &work.tables()[index]) {
                info.dtype = table.dtype;
                if let Some(rows) = info.shape.first_mut() {
                    *rows = table.origins.len();
                }
            }
            view.tensors.push(TensorEntry::named(name.to_owned(), info));
            view.names.push(name.to_owned());
            view.tables.push(table);
        }
        Arc::new(Checkpoint::new(Box::new(view)))
    }
}

impl TensorSource for Transplanted {
    fn info(&self) -> &SourceInfo {
        self.model.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    fn aliases(&self) -> Aliases {
        self.model.aliases().clone()
    }

    fn stored_dtype(&self, index: usize) -> DType {
        match self.tables[index] {
            Some(_) => self.tensors[index].info.dtype,
            None => {
                let stored = self.model.stored_dtype(&self.names[index]);
                stored.unwrap_or(self.tensors[index].info.dtype)
            }
        }
    }

    fn is_computed(&self, index: usize) -> bool {
        self.tables[index].is_some() || self.model.is_computed(&self.names[index])
    }

    fn held_bytes(&self) -> u64 {
        self.model.source().held_bytes() + self.work.held_bytes()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let Some(table) = self.tables[index] else {
            return self.model.read(&self.names[index], first, out);
        };
        let own = &self.work.tables()[table];
        let (width, size) = (own.model.width, own.dtype.size_bytes());
        let (mut at, mut rest) = (first, out);
        let mut row = vec![0.0; width];
        while !rest.is_empty() {
            let within = at % width;
            let n = (rest.len() / size).min(width - within);
            let (part, after) = rest.split_at_mut(n * size);
            match own.copied(at / width) {
                Some(place) => own.model.copy(place * width + within, own.dtype, part)?,
                None => {
                    self.work.row(table, at / width, &mut row)?;
                    encode_f64(&own.model.key, own.dtype, &row[within..within + n], part)?;
                }
            }
            (at, rest) = (at + n, after);
        }
        Ok(())
    }
}
