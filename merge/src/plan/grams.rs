//! The gram matrix of each weight, and the model whose inputs it sums.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use crate::activations::ActivationStore;
use crate::fisher::FisherRecord;
use crate::gram::{GramRecord, GramStore};
use crate::io::{self, OpenOptions, SourceFile};
use crate::methods::{GramRef, Member};
use crate::provenance::{HashKind, Hashes, InputFile};
use crate::recipe::{ForeignGrams, OnMissingGram};
use crate::{Checkpoint, Error, MergeFault, MergeRecipe, Progress, Result};

/// The gram files of a plan, each opened once.
#[derive(Default)]
pub(super) struct GramFiles {
    stores: Vec<Arc<GramStore>>,
    by_path: BTreeMap<String, usize>,
    uses: BTreeSet<GramUse>,
}

/// A gram file, and the source of the plan whose weights its matrices are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GramUse {
    /// Index into the plan's gram files.
    pub store: usize,
    /// Index into the plan's sources.
    pub source: usize,
}

/// The matrix that a member of a group should have.
pub(super) struct Due {
    /// The member whose weight it is.
    pub member: Member,
    /// The gram file of that member.
    pub store: usize,
    /// The name of its matrix; none where the family keeps no matrix of this layer.
    pub key: Option<String>,
}

impl GramFiles {
    /// Opens a gram file for the weights of `model`, the plan's source number `source`.
    ///
    /// # Errors
    /// When the file is no gram file, [`StatisticsFault::GramParts`](crate::StatisticsFault::GramParts) when it sums only some parts of its data, and
    /// [`MergeFault::ForeignGrams`] when it says that it was summed over a file of another size.
    pub(super) fn open(
        &mut self,
        path: &str,
        (source, model): (usize, &Checkpoint),
        recipe: &MergeRecipe,
    ) -> Result<usize> {
        let store = match self.by_path.get(path) {
            Some(&store) => store,
            None => {
                let file = io::open(Path::new(path), &OpenOptions::default())?;
                self.stores.push(Arc::new(GramStore::new(Arc::new(file))?));
                let store = self.stores.len() - 1;
                self.by_path.insert(path.to_owned(), store);
                store
            }
        };
        self.stores[store].require_whole()?;
        if recipe.foreign_grams == ForeignGrams::Error {
            check_sizes(&self.stores[store], model)?;
            self.uses.insert(GramUse { store, source });
        }
        Ok(store)
    }

    /// The matrices of one weight of `shape`, one for each member: `None` for a member without where
    /// the method does without it (`skips`). Empty if the weight is to take the plain mean.
    ///
    /// # Errors
    /// [`Error::MissingGram`] for a member whose file lacks its matrix, unless the recipe says what to do
    /// then; [`Error::GramShape`].
    pub(super) fn of_group(
        &self,
        slot: &str,
        shape: &[usize],
        due: &[Due],
        on_missing: OnMissingGram,
        skips: bool,
    ) -> Result<Vec<Option<GramRef>>> {
        if due.iter().all(|due| due.key.is_none()) {
            return Ok(Vec::new());
        }
        let is_there = |due: &Due| {
            let width = |key: &String| self.stores[due.store].width(key);
            due.key.as_ref().is_some_and(|key| width(key).is_some())
        };
        let skips = skips && due.iter().any(is_there);
        let mut grams = Vec::with_capacity(due.len());
        for Due { member, store, key } in due {
            let file = &self.stores[*store];
            let found = (key.as_ref()).and_then(|key| Some((key, file.width(key)?)));
            let Some((key, width)) = found else {
                match on_missing {
                    _ if skips => grams.push(None),
                    OnMissingGram::Mean => return Ok(Vec::new()),
                    OnMissingGram::Error => {
                        return Err(Error::MissingGram {
                            slot: slot.to_owned(),
                            member: member.clone(),
                            key: key.clone().unwrap_or_default(),
                            path: file.checkpoint().path().into(),
                        });
                    }
                }
                continue;
            };
            if shape.last() != Some(&width) {
                return Err(Error::GramShape {
                    slot: slot.to_owned(),
                    member: member.clone(),
                    weight: shape.to_vec(),
                    gram: vec![width, width],
                });
            }
            grams.push(Some(GramRef {
                store: *store,
                key: key.clone(),
            }));
        }
        Ok(grams)
    }

    /// One of the open files.
    pub(super) fn store(&self, index: usize) -> Arc<GramStore> {
        Arc::clone(&self.stores[index])
    }

    /// Whether a file has this matrix.
    pub(super) fn has(&self, gram: &GramRef) -> bool {
        let store = self.stores.get(gram.store);
        store.is_some_and(|store| store.width(&gram.key).is_some())
    }

    /// The open files, and which sources they belong to.
    pub(super) fn into_parts(self) -> (Vec<Arc<GramStore>>, Vec<GramUse>) {
        (self.stores, self.uses.into_iter().collect())
    }
}

/// Whether the files that a gram file was summed over are as large as the model's.
///
/// # Errors
/// [`MergeFault::ForeignGrams`].
pub(crate) fn check_sizes(store: &GramStore, model: &Checkpoint) -> Result<()> {
    match recorded(store) {
        Some(record) => are_sizes(store.checkpoint(), &record.checkpoint, model),
        None => Ok(()),
    }
}

/// Whether `summed`, the files that the sums of a file are of, are as large as the model's.
fn are_sizes(sums: &Checkpoint, summed: &[InputFile], model: &Checkpoint) -> Result<()> {
    let mut sizes: Vec<u64> = summed.iter().map(|file| file.n_bytes).collect();
    let mut given: Vec<u64> = model.info().files.iter().map(|file| file.n_bytes).collect();
    sizes.sort_unstable();
    given.sort_unstable();
    // A result of another document has no files yet.
    match sizes == given || given.is_empty() {
        true => Ok(()),
        false => Err(foreign(sums.path(), summed, model.path())),
    }
}

/// Whether the files that a gram file was summed over are the model's, by their hashes as `inputs` has
/// them, the files of the whole plan. Files without a hash are not compared.
pub(super) fn check_hashes(store: &GramStore, model: &Checkpoint, known: &Known<'_>) -> Result<()> {
    match recorded(store) {
        Some(record) => are_same(store.checkpoint(), &record.checkpoint, model, known),
        None => Ok(()),
    }
}

/// Whether `summed`, the files that the sums of a file are of, are the model's, by their hashes.
fn are_same(
    sums: &Checkpoint,
    summed: &[InputFile],
    model: &Checkpoint,
    known: &Known<'_>,
) -> Result<()> {
    let versions: Option<BTreeSet<String>> = summed.iter().map(version).collect();
    let own = known.versions(&model.info().files, kind_of(summed))?;
    match (own, versions) {
        (Some(own), Some(versions)) if own != versions && !own.is_empty() => {
            Err(foreign(sums.path(), summed, model.path()))
        }
        _ => Ok(()),
    }
}

/// The facts about the files of a whole plan when they have been read.
pub(super) struct Known<'a> {
    /// The files.
    pub files: &'a [SourceFile],
    /// The output's record of each.
    pub inputs: &'a [InputFile],
    /// Hashes of the files, also of another kind than the output records.
    pub hashes: &'a Hashes,
    /// Hears of nothing, and may stop the hashing.
    pub progress: &'a dyn Progress,
}

impl Known<'_> {
    /// A text for each of `files` that tells its content from others, by hashes of a kind; `None` where nothing is
    /// known of one, because hashes were not asked for.
    fn versions(
        &self,
        files: &[SourceFile],
        kind: Option<HashKind>,
    ) -> Result<Option<BTreeSet<String>>> {
        let mut versions = BTreeSet::new();
        for file in files {
            let index = self.files.iter().position(|known| known.path == file.path);
            let Some(input) = index.and_then(|index| self.inputs.get(index)) else {
                return Ok(None);
            };
            let hash = match (input.hash(), kind) {
                (Some(own), Some(kind)) if own.kind != kind => {
                    let one = std::slice::from_ref(file);
                    self.hashes.of(one, kind, self.progress)?.remove(0)
                }
                (own, _) => own,
            };
            match hash
                .map(|hash| hash.to_string())
                .or_else(|| input.etag.clone())
            {
                Some(version) => versions.insert(version),
                None => return Ok(None),
            };
        }
        Ok(Some(versions))
    }
}

/// The kind of the hashes of files.
fn kind_of(files: &[InputFile]) -> Option<HashKind> {
    files.iter().find_map(|file| Some(file.hash()?.kind))
}

/// A file with a tensor beside each tensor of a model, and the source of the plan that it is used for; both are sources
/// of the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PairedUse {
    /// Index of the file.
    pub file: usize,
    /// Index of the model.
    pub source: usize,
}

/// Whether the files that a Fisher file was summed over are as large as the model's.
///
/// # Errors
/// [`MergeFault::ForeignGrams`].
pub(super) fn check_paired_sizes(paired: &Checkpoint, model: &Checkpoint) -> Result<()> {
    match FisherRecord::of(paired) {
        Some(record) => are_sizes(paired, &record.checkpoint, model),
        None => Ok(()),
    }
}

/// The same by their hashes, as [`check_hashes`] compares them.
pub(super) fn check_paired_hashes(
    paired: &Checkpoint,
    model: &Checkpoint,
    known: &Known<'_>,
) -> Result<()> {
    match FisherRecord::of(paired) {
        Some(record) => are_same(paired, &record.checkpoint, model, known),
        None => Ok(()),
    }
}

/// Whether the files that activations were taken of are as large as the model's.
///
/// # Errors
/// [`MergeFault::ForeignGrams`].
pub(super) fn check_activation_sizes(store: &ActivationStore, model: &Checkpoint) -> Result<()> {
    let of = &store.record().checkpoint;
    match of.is_empty() {
        true => Ok(()),
        false => are_sizes(store.checkpoint(), of, model),
    }
}

/// The same by their hashes, as [`check_hashes`] compares them.
pub(super) fn check_activation_hashes(
    store: &ActivationStore,
    model: &Checkpoint,
    known: &Known<'_>,
) -> Result<()> {
    let of = &store.record().checkpoint;
    match of.is_empty() {
        true => Ok(()),
        false => are_same(store.checkpoint(), of, model, known),
    }
}

/// A text that tells one content of a file from another.
fn version(file: &InputFile) -> Option<String> {
    let hash = file.hash().map(|hash| hash.to_string());
    hash.or_else(|| file.etag.clone())
}

/// The record of a gram file on the data that it sums, if it has one.
fn recorded(store: &GramStore) -> Option<GramRecord> {
    let record = store.record()?;
    (!record.checkpoint.is_empty()).then_some(record)
}

fn foreign(sums: &Path, summed: &[InputFile], model: &Path) -> Error {
    let names = summed.iter().map(|file| file.name.as_str());
    MergeFault::ForeignGrams {
        grams: sums.into(),
        summed: names.collect::<Vec<_>>().join(", "),
        model: model.into(),
    }
    .into()
}
