//! The plan of every key: the checked form of a recipe or of a conversion.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::beside::{Beside, Companions};
use crate::gram::GramStore;
use crate::io::{Aliases, GgufHead, SourceFile};
use crate::layouts::ModelRecord;
use crate::methods::{ElementKernel, GramRef, StepRounding, Survey, WholeKernel};
use crate::provenance::{Hashes, Provenance};
use crate::recipe::ModelRef;
use crate::transplant::{TransplantReport, Work};
use crate::{Checkpoint, Progress, Result, TensorInfo};

mod builder;
pub(crate) mod checkpoints;
mod companions;
mod experts;
pub(crate) mod grams;
mod mixtures;
pub(crate) mod opener;
mod respelled;
mod settings;
pub(crate) mod stacks;
pub(crate) mod stages;
pub(crate) mod views;
pub(crate) mod vocabularies;

pub use builder::PlanBuilder;
pub(crate) use companions::{ingredient, main_dtype};
use grams::{GramUse, PairedUse};
pub use mixtures::AlignmentReport;
use mixtures::{Aligned, OrderCheck};
use opener::Opener;
pub use settings::name_pattern;
pub use stages::Stage;

/// A tensor of one of the plan's sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct TensorRef {
    /// Index into [`MergePlan::sources`].
    pub source: usize,
    /// Its name there.
    pub key: String,
}

/// Makes elements of a tensor out of nothing, for fresh heads and synthetic checkpoints.
pub trait Generator: Send + Sync {
    /// Writes elements `first..first + out.len()`, the same for any split into chunks.
    fn fill(&self, first: usize, out: &mut [f32]);
}

/// The way to make an output tensor.
#[derive(Clone)]
#[non_exhaustive]
pub enum Action {
    /// The same values; cast if the output dtype differs.
    Copy(TensorRef),
    /// Element by element from members of the same shape.
    Elementwise {
        /// The members in order.
        members: Vec<TensorRef>,
        /// The base, from which the method measures.
        base: Option<TensorRef>,
        /// A tensor beside each member, e.g. its Fisher information; empty if none are needed.
        paired: Vec<TensorRef>,
        /// The arithmetic.
        kernel: Arc<dyn ElementKernel>,
        /// Rounding of intermediate results.
        step: StepRounding,
        /// Whether to compute in f64 whatever the inputs' dtype.
        is_double: bool,
    },
    /// Element by element, after passes over the whole tensors.
    Survey {
        /// The members in order.
        members: Vec<TensorRef>,
        /// The base, from which the method measures.
        base: Option<TensorRef>,
        /// The passes, and the arithmetic.
        survey: Arc<dyn Survey>,
        /// Whether to compute in f64 whatever the inputs' dtype.
        is_double: bool,
    },
    /// The same integers or booleans in all members, which is checked.
    Agree(Vec<TensorRef>),
    /// From whole arrays.
    Whole {
        /// The members in order.
        members: Vec<TensorRef>,
        /// The base, from which the method measures.
        base: Option<TensorRef>,
        /// Names of the members' gram matrices in [`MergePlan::grams`]; empty if none are needed.
        grams: Vec<Option<GramRef>>,
        /// The arithmetic.
        kernel: Arc<dyn WholeKernel>,
    },
    /// From a generator.
    Generate(Arc<dyn Generator>),
}

impl Action {
    /// The tensors that are read, members first, then the base, then tensors beside the members.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorRef> {
        let (members, base, paired) = match self {
            Self::Copy(tensor) => (std::slice::from_ref(tensor), None, &[][..]),
            Self::Agree(members) => (members.as_slice(), None, &[][..]),
            Self::Elementwise {
                members,
                base,
                paired,
                ..
            } => (members.as_slice(), base.as_ref(), paired.as_slice()),
            Self::Survey { members, base, .. } | Self::Whole { members, base, .. } => {
                (members.as_slice(), base.as_ref(), &[][..])
            }
            Self::Generate(_) => (&[][..], None, &[][..]),
        };
        members.iter().chain(base).chain(paired)
    }

    /// Names of the gram matrices that are read.
    pub fn grams(&self) -> impl Iterator<Item = &GramRef> {
        let grams = match self {
            Self::Whole { grams, .. } => grams.as_slice(),
            _ => &[],
        };
        grams.iter().flatten()
    }
}

/// One output tensor.
#[derive(Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape and dtype.
    pub info: TensorInfo,
    /// The way to make it.
    pub action: Action,
    /// The reason, in a few words for the printed plan, e.g. `0.5 vision + 0.5 language`.
    pub why: String,
}

/// An input tensor that has no place in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The tensor.
    pub tensor: TensorRef,
    /// The reason why it is left out.
    pub why: String,
}

/// Whether a name is that of the head whose classes or answers a note names.
fn is_head(key: &str) -> bool {
    let mut segments = key.split('.');
    segments.any(|segment| segment.contains("classifier") || ["head", "fc"].contains(&segment))
}

/// Notes in the metadata of inputs that the output keeps: inputs that have one must agree. A model whose head is left out
/// says nothing.
const INHERITED: &[(&str, &str)] = &[
    ("vlmerge.answers", "the answers of its classes"),
    ("vlmerge.classes", "the classes of its images"),
];

/// The action for every key. A plan is complete and consistent, for [`PlanBuilder::finish`], the only way to one, has
/// checked it: every key of the merged sources is used or dropped with a reason, and all shapes and dtypes agree.
pub struct MergePlan {
    recipe: String,
    sources: Vec<Arc<Checkpoint>>,
    stages: Vec<Stage>,
    grams: Vec<Arc<GramStore>>,
    gram_uses: Vec<GramUse>,
    paired_uses: Vec<PairedUse>,
    model: ModelRecord,
    /// Facts in words, by the metadata's key.
    notes: BTreeMap<String, String>,
    entries: Vec<Entry>,
    /// Other names of entries.
    aliases: Aliases,
    dropped: Vec<Dropped>,
    beside: Beside,
    /// Sources whose experts or units stand as those of another.
    aligned: Vec<Arc<Aligned>>,
    /// Mixtures whose experts are merged number by number.
    order_checks: Vec<OrderCheck>,
    /// Rows of other tokens, which are made before tensors are read.
    transplant: Option<Arc<Work>>,
    /// Whether the last stage makes the output, and the plan gives it other keys.
    is_respelled: bool,
}

/// A model as merges see it: dequantized, its queries, keys and values apart, its adapter (`MODEL+ADAPTER`) merged in; and
/// what users should know of how it was found.
///
/// # Errors
/// When it cannot be read.
pub fn opened(model: &Path) -> Result<(Arc<Checkpoint>, Vec<String>)> {
    let opener = Opener::default();
    opener.keep_ranks(true);
    let checkpoint = opener.open(&ModelRef::new(model))?;
    Ok((checkpoint, opener.notes()))
}

/// As [`opened`], with the files beside the model, which join those that were `seen`.
///
/// # Errors
/// As [`opened`].
pub(crate) fn opened_with_files(
    model: &Path,
    seen: &mut Vec<SourceFile>,
) -> Result<(Arc<Checkpoint>, Companions, Vec<String>)> {
    let opener = Opener::default();
    opener.keep_ranks(true);
    let model = ModelRef::new(model);
    let checkpoint = opener.open(&model)?;
    let companions = opener.companions(&model)?;
    seen.extend(opener.seen());
    Ok((checkpoint, companions, opener.notes()))
}

impl MergePlan {
    /// The origin of the output, for its provenance: a resolved recipe or a command, with file names instead of paths,
    /// so that the same inputs give the same bytes anywhere.
    #[must_use]
    pub fn recipe(&self) -> &str {
        &self.recipe
    }

    /// The open inputs.
    #[must_use]
    pub fn sources(&self) -> &[Arc<Checkpoint>] {
        &self.sources
    }

    /// Merges that must be done first, for sources of this one.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The files of the gram matrices.
    #[must_use]
    pub fn grams(&self) -> &[Arc<GramStore>] {
        &self.grams
    }

    /// Output tensors, by name.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Other names of output tensors, each with the tensor's: tied tensors are one tensor.
    #[must_use]
    pub fn aliases(&self) -> &Aliases {
        &self.aliases
    }

    /// Input tensors without a place in the output, by source and name.
    #[must_use]
    pub fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    /// The plan of a GGUF file, with what the file says beside its tensors, and notes for users.
    pub(crate) fn into_gguf(self, head: GgufHead, recipe: String, notes: Vec<String>) -> Self {
        let beside = Beside {
            gguf: Some(Arc::new(head)),
            notes,
            ..Beside::default()
        };
        Self {
            recipe,
            beside,
            ..self
        }
    }

    /// The files that may be written beside the output.
    #[must_use]
    pub fn beside(&self) -> &Beside {
        &self.beside
    }

    /// Whether the output has other keys than the merge, whose result the last stage is.
    pub(crate) fn is_respelled(&self) -> bool {
        self.is_respelled
    }

    /// The plan that combines tensors: the last stage where this one gives its result other keys.
    pub(crate) fn combining(&self) -> &Self {
        let stage = self.stages.last().filter(|_| self.is_respelled);
        stage.map_or(self, |stage| &stage.plan)
    }

    /// Adds earlier merges, whose results are sources of this one; `recipe` holds their documents, too.
    fn build_on(&mut self, stages: Vec<Stage>, recipe: String) {
        self.stages = stages;
        self.recipe = recipe;
    }

    /// Every file that the plan reads from, each once.
    #[must_use]
    pub fn files(&self) -> Vec<SourceFile> {
        let grams = self.grams.iter().map(|store| store.checkpoint());
        let observed = self
            .aligned
            .iter()
            .flat_map(|aligned| aligned.activations());
        let own = self.sources.iter().chain(grams).chain(observed);
        let own = own.flat_map(|source| source.info().files.clone());
        let earlier = self.stages.iter().flat_map(|stage| stage.plan.files());
        let mut files: Vec<SourceFile> = Vec::new();
        for file in earlier.chain(own) {
            if files.iter().all(|known| known.path != file.path) {
                files.push(file);
            }
        }
        files
    }

    /// The record of the output's file on its model.
    ///
    /// # Errors
    /// [`crate::Error::BadModelRecord`]; [`crate::Error::ModelsDiffer`] when inputs do not agree on
    /// open facts.
    pub fn record(&self) -> Result<ModelRecord> {
        self.model.joined(self.sources.iter().map(AsRef::as_ref))
    }

    /// The experts and hidden units that move to the places of the base's or the first model's, if the recipe asks for
    /// that; `None` if it does not. Reads their weights, once.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn alignment(&self) -> Result<Option<AlignmentReport>> {
        if let Some(report) = AlignmentReport::of(&self.aligned)? {
            return Ok(Some(report));
        }
        let mut stages = self.stages.iter().map(|stage| stage.plan.alignment());
        stages.find_map(Result::transpose).transpose()
    }

    /// The rows of other tokens, if the plan is of a transplantation; with measurements once it was carried out.
    #[must_use]
    pub fn transplant(&self) -> Option<TransplantReport> {
        self.transplant.as_ref().map(|work| work.report())
    }

    /// Settles everything that must be known before tensors are read: which experts are which, that those that are
    /// merged number by number are not plainly in another order, and what makes the rows of other tokens.
    ///
    /// # Errors
    /// [`crate::MergeFault::ShuffledExperts`], and when a tensor cannot be read.
    pub(crate) fn settle(&self, progress: &dyn Progress) -> Result<()> {
        self.alignment()?;
        if let Some(work) = &self.transplant {
            work.settle(progress)?;
            progress.start("writing", self.output_bytes());
        }
        mixtures::check_order(&self.order_checks, &self.sources)
    }

    /// The metadata of the output's file.
    pub(crate) fn metadata(&self, provenance: &Provenance) -> Result<BTreeMap<String, String>> {
        let mut metadata = provenance.to_metadata();
        self.add_facts(&mut metadata)?;
        Ok(metadata)
    }

    /// Adds what the output's file says of its model: its record, and notes of its own or of its
    /// inputs.
    pub(crate) fn add_facts(&self, metadata: &mut BTreeMap<String, String>) -> Result<()> {
        self.record()?.add_to(metadata);
        metadata.extend(self.notes.clone());
        if let Some(report) = self.alignment()? {
            // Names, numbers and lists of them always have a JSON form.
            let text = serde_json::to_string(&report).unwrap_or_default();
            metadata.insert("vlmerge.alignment".to_owned(), text);
        }
        // Before the rows are made there is nothing to say of them.
        if let Some(work) = self.transplant.as_ref().filter(|work| work.is_settled()) {
            let text = serde_json::to_string(&work.report()).unwrap_or_default();
            metadata.insert("vlmerge.transplant".to_owned(), text);
        }
        for (key, what) in INHERITED {
            if self.notes.contains_key(*key) {
                continue;
            }
            for (index, source) in self.sources.iter().enumerate() {
                let Some(note) = source.info().metadata.get(*key) else {
                    continue;
                };
                let mut left_out = self.dropped.iter().map(|dropped| &dropped.tensor);
                if left_out.any(|tensor| tensor.source == index && is_head(&tensor.key)) {
                    continue;
                }
                let known = metadata.entry((*key).to_owned());
                let known = known.or_insert_with(|| note.clone());
                if known != note {
                    let start = |text: &str| text.chars().take(60).collect::<String>() + "…";
                    return Err(crate::Error::ModelsDiffer {
                        path: source.path().into(),
                        what,
                        first: start(known),
                        second: start(note),
                    });
                }
            }
        }
        Ok(())
    }

    /// The plan of a conversion of its first source, which a gram file over that source decides: the file is an input,
    /// and hashes are compared when the plan runs.
    pub(crate) fn decided_by(mut self, store: &Arc<GramStore>) -> Self {
        self.gram_uses.push(GramUse {
            store: self.grams.len(),
            source: 0,
        });
        self.grams.push(Arc::clone(store));
        self
    }

    /// Whether gram files, Fisher files and activations are of the files that they are used for, by the hashes of
    /// `provenance`, the record of the plan's [`files`](Self::files) in their order. Files without a hash are not
    /// compared.
    ///
    /// # Errors
    /// [`crate::MergeFault::ForeignGrams`].
    pub fn check_grams(
        &self,
        provenance: &Provenance,
        hashes: &Hashes,
        progress: &dyn Progress,
    ) -> Result<()> {
        self.check_sums(&grams::Known {
            files: &self.files(),
            inputs: &provenance.inputs,
            hashes,
            progress,
        })
    }

    /// As [`check_grams`](Self::check_grams), for the plan and its stages.
    fn check_sums(&self, known: &grams::Known<'_>) -> Result<()> {
        self.gram_uses.iter().try_for_each(|of| {
            let (store, model) = (&self.grams[of.store], &self.sources[of.source]);
            grams::check_hashes(store, model, known)
        })?;
        self.paired_uses.iter().try_for_each(|of| {
            let (paired, model) = (&self.sources[of.file], &self.sources[of.source]);
            grams::check_paired_hashes(paired, model, known)
        })?;
        let mut aligned = self.aligned.iter();
        aligned.try_for_each(|aligned| aligned.check_hashes(known))?;
        // Stages themselves run without hashes.
        let mut stages = self.stages.iter();
        stages.try_for_each(|stage| stage.plan.check_sums(known))
    }

    /// Tensor bytes of the output.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.info.n_bytes()).sum()
    }

    /// Tensor bytes that are read, gram matrices included.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| self.entry_input_bytes(entry))
            .sum()
    }

    /// Tensor bytes that one entry reads.
    #[must_use]
    pub fn entry_input_bytes(&self, entry: &Entry) -> u64 {
        let size = |tensor: &TensorRef| {
            let info = self.sources[tensor.source].get(&tensor.key);
            info.map_or(0, TensorInfo::n_bytes)
        };
        let gram_size = |gram: &GramRef| {
            let info = self.grams[gram.store].checkpoint().get(&gram.key);
            info.map_or(0, TensorInfo::n_bytes)
        };
        let action = &entry.action;
        action.tensors().map(size).sum::<u64>() + action.grams().map(gram_size).sum::<u64>()
    }

    /// Most bytes of tensor data that running the plan holds in memory at once.
    #[must_use]
    pub fn peak_bytes(&self, n_threads: usize) -> u64 {
        // Each thread holds a chunk per tensor in up to f64, raw bytes and the result; surveys hold
        // as many again while they compute.
        let chunked = self.entries.iter().map(|entry| {
            let (buffers, unit, kept) = match &entry.action {
                Action::Elementwise { kernel, .. } => {
                    (entry.action.tensors().count() + 2, kernel.unit(), 0)
                }
                Action::Survey { survey, .. } => {
                    let inputs = n_threads as u64 * self.entry_input_bytes(entry);
                    (
                        2 * entry.action.tensors().count() + 4,
                        survey.unit(),
                        survey.kept_bytes(entry.info.n_elements()) + inputs.min(KEPT_BYTES as u64),
                    )
                }
                _ => (3, 1, 0),
            };
            n_threads as u64 * buffers as u64 * piece_elements(unit) as u64 * 8 + kept
        });
        let chunks = chunked.max().unwrap_or(0);
        let whole = self.whole_bytes() * self.n_whole_at_once(n_threads) as u64;
        let held = self
            .sources
            .iter()
            .map(|source| source.source().held_bytes());
        let own = chunks.max(whole) + held.sum::<u64>();
        let earlier = self
            .stages
            .iter()
            .map(|stage| stage.plan.peak_bytes(n_threads));
        own.max(earlier.max().unwrap_or(0))
    }

    /// The number of whole-tensor operations that run at a time: one where they use all threads themselves, else as
    /// many as there are threads and [`WHOLE_BYTES`] holds.
    pub(crate) fn n_whole_at_once(&self, n_threads: usize) -> usize {
        let mut kernels = self.entries.iter().filter_map(|entry| match &entry.action {
            Action::Whole { kernel, .. } => Some(kernel),
            _ => None,
        });
        match kernels.all(|kernel| kernel.is_on_one_thread()) {
            true => ((WHOLE_BYTES / self.whole_bytes().max(1)) as usize).clamp(1, n_threads.max(1)),
            false => 1,
        }
    }

    /// The most bytes that a whole-tensor operation holds.
    fn whole_bytes(&self) -> u64 {
        let whole = self.entries.iter().filter_map(|entry| match &entry.action {
            Action::Whole {
                members, kernel, ..
            } => {
                let member = members.first()?;
                let info = self.sources[member.source].get(&member.key)?;
                Some(kernel.peak_bytes(&info.shape, members.len()))
            }
            _ => None,
        });
        whole.max().unwrap_or(0)
    }
}

/// Most bytes of whole-tensor operations that run side by side, unless one needs more.
const WHOLE_BYTES: u64 = 640 << 20;

/// Elements that are decoded, combined and written at a time by one thread: small enough that a few
/// chunks stay in a core's cache, large enough that the time of a system call does not count.
pub(crate) const CHUNK_ELEMENTS: usize = 1 << 14;

/// Elements of a tensor that are read, and written, at a time.
pub(crate) const PIECE_ELEMENTS: usize = 1 << 16;

/// Most bytes of inputs that are kept from the passes over a tensor to its writing.
pub(crate) const KEPT_BYTES: usize = 68 << 20;

/// Elements of a chunk that holds whole units: as near to [`CHUNK_ELEMENTS`] as may be.
pub(crate) const fn chunk_elements(unit: usize) -> usize {
    match unit {
        0 | 1 => CHUNK_ELEMENTS,
        unit if unit >= CHUNK_ELEMENTS => unit,
        unit => CHUNK_ELEMENTS / unit * unit,
    }
}

/// Elements of a piece of whole chunks: as near to [`PIECE_ELEMENTS`] as may be.
pub(crate) const fn piece_elements(unit: usize) -> usize {
    let chunk = chunk_elements(unit);
    match PIECE_ELEMENTS / chunk {
        0 => chunk,
        n_chunks => n_chunks * chunk,
    }
}
