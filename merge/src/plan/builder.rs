//! The one way to a plan: entries are added, source keys are dropped with a reason, and `finish` checks that
//! nothing is left over and everything fits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::grams::{self, GramFiles, PairedUse};
use super::mixtures::{Aligned, OrderCheck};
use super::{Action, Dropped, Entry, MergePlan, TensorRef};
use crate::beside::Beside;
use crate::io::Aliases;
use crate::layouts::ModelRecord;
use crate::methods::{GramRef, Operation, StepRounding};
use crate::recipe::ForeignGrams;
use crate::transplant::Work;
use crate::{Checkpoint, DType, Error, MergeRecipe, PlanFault, Result, TensorInfo};

/// A plan under construction.
pub struct PlanBuilder {
    recipe: String,
    sources: Vec<Arc<Checkpoint>>,
    /// Sources of which every key must be used or dropped.
    whole: BTreeSet<usize>,
    /// Gram files that entries read.
    pub(super) grams: GramFiles,
    /// Fisher files that entries read.
    paired_uses: BTreeSet<PairedUse>,
    model: ModelRecord,
    notes: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
    aliases: Aliases,
    dropped: Vec<Dropped>,
    beside: Beside,
    aligned: Vec<Arc<Aligned>>,
    order_checks: Vec<OrderCheck>,
    transplant: Option<Arc<Work>>,
}

impl PlanBuilder {
    /// A plan of nothing yet, made by `recipe`: a resolved recipe or a command, for its provenance.
    #[must_use]
    pub fn new(recipe: String) -> Self {
        Self {
            recipe,
            sources: Vec::new(),
            whole: BTreeSet::new(),
            grams: GramFiles::default(),
            paired_uses: BTreeSet::new(),
            model: ModelRecord::default(),
            notes: BTreeMap::new(),
            entries: BTreeMap::new(),
            aliases: Aliases::new(),
            dropped: Vec::new(),
            beside: Beside::default(),
            aligned: Vec::new(),
            order_checks: Vec::new(),
            transplant: None,
        }
    }

    /// Adds a source of which every key must be used or dropped; returns its index.
    pub fn source(&mut self, source: Arc<Checkpoint>) -> usize {
        let index = self.side_source(source);
        self.whole.insert(index);
        index
    }

    /// Adds a source from which single tensors are taken, as a base; returns its index.
    pub fn side_source(&mut self, source: Arc<Checkpoint>) -> usize {
        self.sources.push(source);
        self.sources.len() - 1
    }

    /// Notes that tensors of the file beside a model, source number `file`, are used for those of source number
    /// `source`.
    ///
    /// # Errors
    /// [`crate::MergeFault::ForeignGrams`] when the file says that it was summed over files of other sizes, unless the
    /// recipe allows it.
    pub(super) fn paired(
        &mut self,
        (file, paired): (usize, &Checkpoint),
        (source, model): (usize, &Checkpoint),
        recipe: &MergeRecipe,
    ) -> Result<()> {
        if recipe.foreign_grams == ForeignGrams::Error
            && self.paired_uses.insert(PairedUse { file, source })
        {
            grams::check_paired_sizes(paired, model)?;
        }
        Ok(())
    }

    /// Adds an output tensor.
    ///
    /// # Errors
    /// [`PlanFault::NameTwice`].
    pub fn add(&mut self, entry: Entry) -> Result<()> {
        let name = entry.name.clone();
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(PlanFault::NameTwice { name }.into()),
        }
    }

    /// Adds a tensor of a source under its own name, with its values and dtype.
    ///
    /// # Errors
    /// [`Error::MissingKey`] and [`PlanFault::NameTwice`].
    pub fn copy(&mut self, source: usize, key: &str, why: &str) -> Result<()> {
        let info = self.sources[source].require(key)?.clone();
        self.add(Entry {
            name: key.to_owned(),
            info,
            action: Action::Copy(TensorRef {
                source,
                key: key.to_owned(),
            }),
            why: why.to_owned(),
        })
    }

    /// Gives an output tensor another name. Other names of the sources' tensors need no such call: where
    /// the output has a tensor under the name that it goes by, it has its other names, too.
    ///
    /// # Errors
    /// [`PlanFault::NameTwice`] for a name that is another tensor's already.
    pub fn alias(&mut self, name: &str, of: &str) -> Result<()> {
        match self.aliases.insert(name.to_owned(), of.to_owned()) {
            Some(known) if known != of => Err(PlanFault::NameTwice {
                name: name.to_owned(),
            }
            .into()),
            _ => Ok(()),
        }
    }

    /// Whether there is an output tensor of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The output tensors so far, by name.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        self.entries.values().collect()
    }

    /// Puts the owner of each output tensor in front of the reason in the printed plan.
    pub(super) fn label_by<'a>(&mut self, belongs_to: impl Fn(&str) -> &'a str) {
        for (name, entry) in &mut self.entries {
            entry.why = format!("{}: {}", belongs_to(name), entry.why);
        }
    }

    /// Leaves a tensor of a source out, for a reason.
    pub fn drop_tensor(&mut self, tensor: TensorRef, why: impl Into<String>) {
        let why = why.into();
        self.dropped.push(Dropped { tensor, why });
    }

    /// Facts about the output's model; fields left `None` are inherited from the sources.
    #[must_use]
    pub fn model(mut self, model: ModelRecord) -> Self {
        self.model = model;
        self
    }

    /// A fact about the output in words, by the metadata's key: `vlmerge.answers`, the answers of the
    /// classes of a VQA head, or `vlmerge.classes`, the classes of images. Without it the sources' is kept.
    #[must_use]
    pub fn note(mut self, key: &str, note: String) -> Self {
        self.notes.insert(key.to_owned(), note);
        self
    }

    /// Files that may be written beside the output.
    #[must_use]
    pub(crate) fn beside(mut self, beside: Beside) -> Self {
        self.beside = beside;
        self
    }

    /// Rows of other tokens, which a source has once they are made.
    #[must_use]
    pub(crate) fn transplant(mut self, work: Arc<Work>) -> Self {
        self.transplant = Some(work);
        self
    }

    /// Sources that are brought into the order of another, and mixtures whose order is checked before they are read.
    #[must_use]
    pub(super) fn orders(mut self, aligned: Vec<Arc<Aligned>>, checks: Vec<OrderCheck>) -> Self {
        (self.aligned, self.order_checks) = (aligned, checks);
        self
    }

    /// The plan: entries and dropped tensors by name.
    ///
    /// # Errors
    /// [`Error::MissingKey`] for a tensor that its source lacks; [`PlanFault`] for a source key that is
    /// neither used nor dropped, for tensors of other shapes than their entry, and for integers that would
    /// have to be rounded or floats that would become integers.
    pub fn finish(mut self) -> Result<MergePlan> {
        for entry in self.entries.values() {
            self.check(entry)?;
        }
        self.check_complete()?;
        self.take_aliases()?;
        self.dropped.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        let (grams, gram_uses) = self.grams.into_parts();
        Ok(MergePlan {
            recipe: self.recipe,
            sources: self.sources,
            stages: Vec::new(),
            grams,
            gram_uses,
            paired_uses: self.paired_uses.into_iter().collect(),
            model: self.model,
            notes: self.notes,
            entries: self.entries.into_values().collect(),
            aliases: self.aliases,
            dropped: self.dropped,
            beside: self.beside,
            aligned: self.aligned,
            order_checks: self.order_checks,
            transplant: self.transplant,
            is_respelled: false,
        })
    }

    /// Takes over the other names of tensors of whole sources, and checks all.
    fn take_aliases(&mut self) -> Result<()> {
        for &index in &self.whole {
            for (name, of) in self.sources[index].aliases() {
                if self.entries.contains_key(of) && !self.entries.contains_key(name) {
                    let known = self.aliases.entry(name.clone());
                    known.or_insert_with(|| of.clone());
                }
            }
        }
        for (name, of) in &self.aliases {
            if self.entries.contains_key(name) {
                return Err(PlanFault::NameTwice { name: name.clone() }.into());
            }
            if !self.entries.contains_key(of) {
                return Err(PlanFault::AliasOfNothing {
                    name: name.clone(),
                    of: of.clone(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn info(&self, tensor: &TensorRef) -> Result<&TensorInfo> {
        match self.sources.get(tensor.source) {
            Some(source) => source.require(&tensor.key),
            None => Err(PlanFault::NoSource {
                key: tensor.key.clone(),
                source_index: tensor.source,
            }
            .into()),
        }
    }

    /// Whether an entry's inputs are there and fit it.
    fn check(&self, entry: &Entry) -> Result<()> {
        for gram in entry.action.grams() {
            if !self.grams.has(gram) {
                return Err(PlanFault::NoGram {
                    name: entry.name.clone(),
                    key: gram.key.clone(),
                }
                .into());
            }
        }
        let is_whole = matches!(entry.action, Action::Whole { .. });
        for tensor in entry.action.tensors() {
            let found = self.info(tensor)?;
            // Whole-tensor operations may change the shape.
            if !is_whole && found.shape != entry.info.shape {
                return Err(PlanFault::Shapes {
                    name: entry.name.clone(),
                    expected: entry.info.shape.clone(),
                    key: tensor.key.clone(),
                    found: found.shape.clone(),
                }
                .into());
            }
            let is_cast = found.dtype != entry.info.dtype;
            if is_cast && !(found.dtype.is_float() && entry.info.dtype.is_float()) {
                return Err(PlanFault::Casts {
                    name: entry.name.clone(),
                    to: entry.info.dtype,
                    key: tensor.key.clone(),
                    from: found.dtype,
                }
                .into());
            }
        }
        Ok(())
    }

    /// Whether every key of the sources that are to be used up is used or dropped.
    fn check_complete(&self) -> Result<()> {
        let used: BTreeSet<&TensorRef> = (self.entries.values())
            .flat_map(|entry| entry.action.tensors())
            .chain(self.dropped.iter().map(|dropped| &dropped.tensor))
            .collect();
        for &index in &self.whole {
            let source = &self.sources[index];
            for (key, _) in source.tensors() {
                let tensor = TensorRef {
                    source: index,
                    key: key.to_owned(),
                };
                if !used.contains(&tensor) {
                    return Err(PlanFault::LeftOver {
                        path: source.path().into(),
                        key: tensor.key,
                    }
                    .into());
                }
            }
        }
        Ok(())
    }
}

/// The dtype that a merge of both is written in: theirs if it is one, else a wider one that holds the values
/// of both.
pub(super) fn common_dtype(a: DType, b: DType) -> DType {
    match (a, b) {
        (a, b) if a == b => a,
        (DType::F64, _) | (_, DType::F64) => DType::F64,
        _ => DType::F32,
    }
}

/// The tensors that an operation combines, and how.
pub(super) struct Operands {
    /// The members in order.
    pub members: Vec<TensorRef>,
    /// A tensor beside each member; empty if none are needed.
    pub paired: Vec<TensorRef>,
    /// The members' gram matrices; empty if none are needed.
    pub grams: Vec<Option<GramRef>>,
    /// Rounding of intermediate results.
    pub step: StepRounding,
    /// Whether to compute in f64 whatever the inputs' dtype.
    pub is_double: bool,
}

impl Operands {
    /// The action of an operation of `method` on them. The base is looked for only where it is read.
    ///
    /// # Errors
    /// [`Error::MethodNeeds`] for an operation without its base; the errors of `base`.
    pub(super) fn action(
        self,
        operation: Operation,
        method: &'static str,
        base: impl FnOnce() -> Result<Option<TensorRef>>,
    ) -> Result<Action> {
        let Self {
            mut members,
            paired,
            grams,
            step,
            is_double,
        } = self;
        Ok(match operation {
            Operation::Take(index) => Action::Copy(members.swap_remove(index)),
            Operation::TakeBase => Action::Copy(base()?.ok_or(Error::MethodNeeds {
                method,
                what: "a base_model",
            })?),
            Operation::Elementwise(kernel) => Action::Elementwise {
                members,
                base: base()?,
                paired,
                kernel,
                step,
                is_double,
            },
            Operation::Survey(survey) => Action::Survey {
                members,
                base: base()?,
                survey,
                is_double,
            },
            Operation::Whole(kernel) => Action::Whole {
                members,
                base: base()?,
                grams,
                kernel,
            },
        })
    }
}
