//! Tensors that every rank holds as a whole: read from the first, and compared with all others as they are read.

use std::collections::HashMap;
use std::sync::Arc;

use super::tensors::Rank;
use crate::io::assembled::InPieces;
use crate::io::{SourceInfo, TensorEntry, TensorSource};
use crate::{Result, TrainerFault};

/// Bytes that are compared at once.
const COMPARE_BYTES: usize = 1 << 20;

/// The file of a rank, which is read from two sides.
struct Shared(Arc<dyn TensorSource>);

impl TensorSource for Shared {
    fn info(&self) -> &SourceInfo {
        self.0.info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        self.0.tensors()
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        self.0.read(index, first, out)
    }
}

/// Tensors that all ranks hold.
struct Agreed {
    ranks: Vec<Arc<dyn TensorSource>>,
    /// The tensors as the first rank has them.
    entries: Vec<TensorEntry>,
    /// For each tensor, its number in the file of each rank.
    places: Vec<Vec<usize>>,
}

/// The sources of all pieces: the ranks' files, and one of the tensors that are there on every rank, to which their
/// pieces are turned.
pub(super) fn with_copies(
    mut tensors: Vec<InPieces>,
    ranks: Vec<Rank>,
) -> (Vec<InPieces>, Vec<Box<dyn TensorSource>>) {
    let is_part: Vec<bool> = (tensors.iter())
        .map(|tensor| ranks.iter().any(|rank| rank.holds_part(&tensor.entry.path)))
        .collect();
    let sources: Vec<Arc<dyn TensorSource>> = (ranks.into_iter())
        .map(|rank| Arc::from(rank.source))
        .collect();
    let mut agreed = Agreed {
        ranks: sources.clone(),
        entries: Vec::new(),
        places: Vec::new(),
    };
    // Tensors of a rank by the paths of those that it holds as a whole.
    let by_path: Vec<HashMap<_, _>> = (sources.iter())
        .map(|source| {
            let entries = source.tensors().iter().enumerate();
            entries.map(|(index, entry)| (&entry.path, index)).collect()
        })
        .collect();
    for (InPieces { entry, pieces }, is_part) in tensors.iter_mut().zip(is_part) {
        let places: Option<Vec<usize>> = (by_path.iter())
            .map(|paths| paths.get(&entry.path).copied())
            .collect();
        let (false, [_], Some(places)) = (is_part, &pieces[..], places) else {
            continue;
        };
        pieces[0].source = sources.len();
        pieces[0].tensor = agreed.entries.len();
        agreed.entries.push(entry.clone());
        agreed.places.push(places);
    }
    let files = sources
        .iter()
        .map(|source| Box::new(Shared(source.clone())) as _);
    let mut all: Vec<Box<dyn TensorSource>> = files.collect();
    all.push(Box::new(agreed));
    (tensors, all)
}

impl TensorSource for Agreed {
    fn info(&self) -> &SourceInfo {
        self.ranks[0].info()
    }

    fn tensors(&self) -> &[TensorEntry] {
        &self.entries
    }

    fn read(&self, index: usize, first: usize, out: &mut [u8]) -> Result<()> {
        let places = &self.places[index];
        self.ranks[0].read(places[0], first, out)?;
        let entry = &self.entries[index];
        let width = entry.info.dtype.size_bytes();
        let n = COMPARE_BYTES / width;
        let mut other = vec![0; out.len().min(n * width)];
        for (rank, place) in self.ranks.iter().zip(places).skip(1) {
            for (number, part) in out.chunks(n * width).enumerate() {
                let other = &mut other[..part.len()];
                rank.read(*place, first + number * n, other)?;
                if other != part {
                    return Err(TrainerFault::CopiesDiffer {
                        path: rank.info().path.clone(),
                        key: entry.path.to_string(),
                        first: self.ranks[0].info().path.clone(),
                    }
                    .into());
                }
            }
        }
        Ok(())
    }
}
