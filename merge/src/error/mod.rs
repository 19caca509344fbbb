//! The errors of this crate, one variant per fault.

mod activations;
mod adapter;
mod advice;
mod assembly;
mod boxed;
mod container;
mod conversion;
mod export;
mod gguf;
mod masks;
mod megatron;
mod merging;
mod merging_advice;
mod moe;
mod plan;
mod quantization;
mod remote;
mod safetensors;
mod slices;
mod split;
mod statistics;
mod torch;
mod trainer;
mod transplant;
mod write;
mod zero;

pub use activations::ActivationFault;
pub use adapter::AdapterFault;
pub use assembly::AssemblyFault;
pub use container::ContainerFault;
pub use conversion::ConversionFault;
pub use export::ExportFault;
pub use gguf::GgufFault;
pub use masks::MaskFault;
pub use megatron::MegatronFault;
pub use merging::MergeFault;
pub use moe::MoeFault;
pub use plan::PlanFault;
pub use quantization::QuantizationFault;
pub use remote::RemoteFault;
pub use safetensors::SafetensorsFault;
pub use slices::SliceFault;
pub use split::SplitFault;
pub use statistics::StatisticsFault;
pub use torch::TorchFault;
pub use trainer::TrainerFault;
pub use transplant::TransplantFault;
pub use write::WriteFault;
pub use zero::ZeroFault;

use std::path::{Path, PathBuf};

use crate::methods::Member;
use crate::recipe::Place;
use crate::{DType, Expert};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, with the file, the key and the numbers at hand.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // ---- files ------------------------------------------------------------------------------
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The failed action, as a verb: `open`, `read`, `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The target exists and overwriting was not asked for.
    #[error("{}: already exists", path.display())]
    TargetExists {
        /// The target.
        path: PathBuf,
    },
    /// Nothing that is read here.
    #[error("{}: unknown kind of file: it {looks_like}", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// The look of its first bytes, as a clause.
        looks_like: String,
    },
    /// An input was written to while it was read.
    #[error("{}: changed while it was read; nothing was written", path.display())]
    InputChanged {
        /// The file.
        path: PathBuf,
    },
    /// Another run is writing to the same target.
    #[error("{}: another run is writing it", path.display())]
    TargetBusy {
        /// The target.
        path: PathBuf,
    },
    /// The operation was stopped by the user when some of its files were complete.
    #[error("stopped; {n_files} complete files are kept")]
    Stopped {
        /// The number of files.
        n_files: usize,
    },
    /// A remote file is wrong or out of reach.
    #[error(transparent)]
    Remote(Box<RemoteFault>),
    /// The operation was stopped by the user.
    #[error("stopped; nothing was written")]
    Cancelled,

    // ---- tensors ----------------------------------------------------------------------------
    /// A tensor was asked for that the checkpoint does not hold.
    #[error("{}: no tensor named `{key}`{}", path.display(), nearest_note(nearest.as_deref()))]
    MissingKey {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        key: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// Two tensors of one checkpoint have the same name.
    #[error("{}: the name `{key}` belongs to more than one tensor", path.display())]
    DuplicateKey {
        /// The checkpoint.
        path: PathBuf,
        /// The name.
        key: String,
    },
    /// Arithmetic was asked for on a dtype that has none here.
    #[error("`{key}` has dtype {dtype}, which cannot be converted to {wanted}")]
    UnsupportedCast {
        /// The tensor.
        key: String,
        /// Its dtype.
        dtype: DType,
        /// The wanted dtype.
        wanted: DType,
    },

    // ---- reading: safetensors ---------------------------------------------------------------
    /// A safetensors file is damaged.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsFault),
    /// A GGUF file is damaged, or of a kind that is not read.
    #[error(transparent)]
    Gguf(Box<GgufFault>),

    /// A file of arrays of Flax, NumPy or ONNX is damaged, or of a kind that is not read.
    #[error(transparent)]
    Container(Box<ContainerFault>),
    /// A model cannot become a GGUF file.
    #[error(transparent)]
    Export(Box<ExportFault>),

    // ---- reading: split models --------------------------------------------------------------
    /// A split model or a folder is damaged or incomplete.
    #[error(transparent)]
    Split(#[from] SplitFault),

    /// A model in pieces is damaged or incomplete.
    #[error(transparent)]
    Assembly(Box<AssemblyFault>),
    /// A folder that a trainer left is damaged or incomplete.
    #[error(transparent)]
    Trainer(Box<TrainerFault>),

    // ---- reading: torch ---------------------------------------------------------------------
    /// A pickle or a zip archive is damaged or refused.
    #[error(transparent)]
    Torch(#[from] TorchFault),
    /// The wanted root does not exist.
    #[error("{}: no root named `{root}` (roots: {})", path.display(), roots_note(roots))]
    UnknownRoot {
        /// The file.
        path: PathBuf,
        /// The requested root.
        root: String,
        /// The roots in the file.
        roots: Vec<String>,
    },

    // ---- layouts and conversion -------------------------------------------------------------
    /// A key outside the grammar of the checkpoint's family.
    #[error("`{key}` is not a key of layout {layout}{}", nearest_note(nearest.as_deref()))]
    UnknownKey {
        /// The layout.
        layout: &'static str,
        /// The key.
        key: String,
        /// The most similar key of the family.
        nearest: Option<String>,
    },
    /// Two keys of a checkpoint claim the same place in the model.
    #[error("{}: `{first}` and `{second}` both stand for `{slot}`", path.display())]
    BrokenLayout {
        /// The checkpoint.
        path: PathBuf,
        /// The place, as the merged key.
        slot: String,
        /// One of the keys.
        first: String,
        /// The other.
        second: String,
    },
    /// A router that chooses among other experts than its block has.
    #[error(
        "{}: `{router}` {}, but its block has {found} experts", path.display(), rows_in_words(*rows)
    )]
    RouterMisfit {
        /// The checkpoint.
        path: PathBuf,
        /// The router.
        router: String,
        /// Its rows, if it is there.
        rows: Option<usize>,
        /// Experts of the block.
        found: usize,
    },
    /// A family was asked for by name that the checkpoint does not belong to.
    #[error("{}: not a checkpoint of layout `{layout}`: {reason}", path.display())]
    LayoutMismatch {
        /// The checkpoint.
        path: PathBuf,
        /// The layout asked for.
        layout: String,
        /// The missing part, or the contents instead.
        reason: String,
    },
    /// A file's record of its model cannot be read.
    #[error("{}: `vlmerge.model` in its metadata: {reason}", path.display())]
    BadModelRecord {
        /// The checkpoint.
        path: PathBuf,
        /// The fault and its place.
        reason: String,
    },
    /// A file's record of its model contradicts its tensors.
    #[error("{}: its metadata say {what} = {recorded}, its tensors {found}", path.display())]
    RecordContradicted {
        /// The checkpoint.
        path: PathBuf,
        /// The size.
        what: &'static str,
        /// The number in the metadata.
        recorded: usize,
        /// The number by the tensors.
        found: String,
    },
    /// Checkpoints of different models are to become one.
    #[error("{}: its metadata say {what} = {second}, those of an input before it {first}", path.display())]
    ModelsDiffer {
        /// The second checkpoint.
        path: PathBuf,
        /// The size.
        what: &'static str,
        /// The value of the first one.
        first: String,
        /// The value of the second one.
        second: String,
    },
    /// Sizes that no model can have.
    #[error("no such model: {reason}")]
    UnfitSizes {
        /// The fault.
        reason: &'static str,
    },
    /// There is no family of this name.
    #[error("no layout named `{name}`{}", nearest_note(nearest.as_deref()))]
    UnknownLayout {
        /// The name.
        name: String,
        /// The most similar name there is.
        nearest: Option<String>,
    },
    /// A conversion cannot be done.
    #[error(transparent)]
    Conversion(#[from] ConversionFault),
    /// Dense models cannot be made a mixture.
    #[error(transparent)]
    Moe(#[from] MoeFault),
    /// A model cannot get another model's tokenizer.
    #[error(transparent)]
    Transplant(#[from] TransplantFault),

    // ---- merging ----------------------------------------------------------------------------
    /// Two members of a group differ in shape.
    #[error("cannot merge `{slot}`: `{key}` has shape {found:?}, expected {expected:?}")]
    ShapeMismatch {
        /// The merged key.
        slot: String,
        /// The member that differs.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The first member's shape.
        expected: Vec<usize>,
    },
    /// A recipe is not the YAML it should be.
    #[error("{}: {reason}", path.display())]
    BadRecipe {
        /// The recipe.
        path: PathBuf,
        /// The parser's message, with line and column.
        reason: String,
    },
    /// A recipe names a method that does not exist.
    #[error("there is no merge method `{name}` (there are: {known})")]
    UnknownMethod {
        /// The name in the recipe.
        name: String,
        /// All methods.
        known: String,
    },
    /// A recipe gives a parameter that its method does not have.
    #[error("{method} has no parameter `{name}`{place} (it has: {known})")]
    UnknownParameter {
        /// The method.
        method: &'static str,
        /// The parameter.
        name: String,
        /// The method's parameters.
        known: String,
        /// Its place in the recipe.
        place: Place,
    },
    /// A parameter has the wrong type or is out of range.
    #[error("parameter `{name}` must be {wanted}{place}")]
    BadParameter {
        /// The parameter.
        name: &'static str,
        /// The valid values, in words.
        wanted: &'static str,
        /// Its place in the recipe.
        place: Place,
    },
    /// A parameter or input that the method cannot do without.
    #[error("{method} needs {what}")]
    MethodNeeds {
        /// The method.
        method: &'static str,
        /// The missing input.
        what: &'static str,
    },
    /// A recipe with something its method has no use for.
    #[error("{method} has no use for {what}")]
    MethodHasNoUse {
        /// The method.
        method: &'static str,
        /// The useless input.
        what: &'static str,
    },
    /// A recipe with a number of models that cannot be merged.
    #[error("a merge of experts takes one model, and the recipe lists {found}")]
    ModelCount {
        /// The number of models.
        found: usize,
    },
    /// The recipe's choice of experts does not say what happens in a block.
    #[error("`experts`: block {block} of {n_blocks} {flaw}")]
    BadExpertChoice {
        /// The block.
        block: usize,
        /// Blocks of the model.
        n_blocks: usize,
        /// The fault.
        flaw: &'static str,
    },
    /// A task was named for a layout without a published choice of experts.
    #[error("layout {layout} has no published choice of experts for a task")]
    NoPublishedChoice {
        /// The layout.
        layout: String,
    },
    /// No expert copies in the checkpoint.
    #[error("{}: nothing to merge: no tensor of layout {layout} has copies for several experts", path.display())]
    NothingToMerge {
        /// The checkpoint.
        path: PathBuf,
        /// The layout that was found.
        layout: String,
    },
    /// An expert that takes part in a block lacks a tensor there.
    #[error(
        "cannot merge `{slot}`: no tensor of the {expert} expert, such as `{example}` has for {present}"
    )]
    MissingExpert {
        /// The merged key.
        slot: String,
        /// The expert without a copy.
        expert: Expert,
        /// A copy that is there.
        example: String,
        /// The expert of that copy.
        present: Expert,
    },
    /// A slot has both expert copies and a shared tensor.
    #[error("`{slot}` is ambiguous: `{key}` would become the same key as the merged experts")]
    AmbiguousSlot {
        /// The merged key.
        slot: String,
        /// The shared tensor.
        key: String,
    },
    /// Experts whose elements are no floats.
    #[error("cannot merge `{slot}`: `{key}` has dtype {dtype}")]
    NotFloat {
        /// The merged key.
        slot: String,
        /// The member.
        key: String,
        /// Its dtype.
        dtype: DType,
    },
    /// The parameters say nothing about a set of experts.
    #[error("cannot merge `{slot}`: no share is given for the experts {experts:?}")]
    NoShare {
        /// The merged key.
        slot: String,
        /// The experts.
        experts: Vec<Expert>,
    },
    /// The gram file lacks the matrix of a member of a linear weight.
    #[error("cannot merge `{slot}`: no gram matrix for {member}: {} has no `{key}`", path.display())]
    MissingGram {
        /// The merged key.
        slot: String,
        /// The member that it belongs to.
        member: Member,
        /// The name that it would have.
        key: String,
        /// The gram file.
        path: PathBuf,
    },
    /// A gram matrix that does not fit its layer.
    #[error("cannot merge `{slot}`: {member} has shape {weight:?}, its gram matrix {gram:?}")]
    GramShape {
        /// The merged key.
        slot: String,
        /// The member of the weight.
        member: Member,
        /// Shape of the weight, `(out, in)`.
        weight: Vec<usize>,
        /// Shape of the gram matrix; should be `(in, in)`.
        gram: Vec<usize>,
    },
    /// A tensor of a gram file that cannot be a gram matrix.
    #[error("{}: `{key}` is no gram matrix: {dtype} {shape:?} is neither square nor a packed triangle of floats", path.display())]
    NotAGram {
        /// The gram file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its dtype.
        dtype: DType,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Gram files that do not belong together cannot be added.
    #[error("{}: cannot be added to the files before it: {fault}", path.display())]
    GramsDiffer {
        /// The gram file.
        path: PathBuf,
        /// The difference, as a clause.
        fault: String,
    },
    /// The summed gram matrix has no Cholesky factor.
    #[error("cannot merge `{slot}`: the summed gram matrix of {members:?} is singular{}", pivot_note(*pivot))]
    SingularGram {
        /// The merged key.
        slot: String,
        /// The members of the gram matrices.
        members: Vec<Member>,
        /// The row where the factorization failed, if known.
        pivot: Option<usize>,
    },
    /// A value of a result is infinite or not a number.
    #[error("`{key}` has values that are infinite or not numbers")]
    NonFinite {
        /// The tensor.
        key: String,
    },

    /// Several checkpoints cannot be merged as the recipe says.
    #[error(transparent)]
    Merge(Box<MergeFault>),
    /// Slices cannot be cut as the recipe says.
    #[error(transparent)]
    Slices(Box<SliceFault>),
    /// Gram matrices, activations or Fisher information are wrong.
    #[error(transparent)]
    Statistics(Box<StatisticsFault>),
    /// Activations by which models are to be matched are wrong.
    #[error(transparent)]
    Activations(Box<ActivationFault>),
    /// The masks of tasks are wrong.
    #[error(transparent)]
    Masks(#[from] MaskFault),
    /// A plan that does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanFault),
    /// A low-rank adapter is wrong.
    #[error(transparent)]
    Adapter(Box<AdapterFault>),
    /// Quantized tensors cannot be read.
    #[error(transparent)]
    Quantization(Box<QuantizationFault>),
    /// Several faults that were found at once.
    #[error("{}", list_note(.0))]
    Several(Vec<Error>),

    // ---- comparing --------------------------------------------------------------------------
    /// There are no two tensors to compare.
    #[error("{}: nothing to compare: {why}", path.display())]
    NothingToCompare {
        /// The (first) checkpoint.
        path: PathBuf,
        /// The missing part.
        why: &'static str,
    },
    /// Two tensors that should be compared differ in shape.
    #[error(
        "{}: `{key}` has shape {found:?} and cannot be compared with one of shape {expected:?}",
        path.display()
    )]
    CompareShapes {
        /// The second checkpoint, or the seed.
        path: PathBuf,
        /// The tensor there.
        key: String,
        /// Its shape.
        found: Vec<usize>,
        /// The shape in the first checkpoint.
        expected: Vec<usize>,
    },
    /// A distance was asked for to something that is not a number.
    #[error("{}: element {element} of `{key}` is not finite", path.display())]
    NonFiniteInput {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first such element that was met, counted in row-major order.
        element: usize,
    },

    // ---- writing ----------------------------------------------------------------------------
    /// A checkpoint cannot be written.
    #[error(transparent)]
    Write(#[from] WriteFault),
}

impl Error {
    /// The operating system's error at `path`, or another machine's if `path` is there.
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        match source.downcast::<RemoteFault>() {
            Ok(fault) => fault.into(),
            Err(source) => Self::Io {
                action,
                path: path.into(),
                source,
            },
        }
    }
}

/// The number of faults, then one a line.
fn list_note(faults: &[Error]) -> String {
    let lines: Vec<String> = faults.iter().map(|fault| format!("  {fault}")).collect();
    format!("{} faults:\n{}", faults.len(), lines.join("\n"))
}

fn pivot_note(pivot: Option<usize>) -> String {
    pivot.map_or_else(String::new, |row| {
        format!(" (input {row} depends on those before it)")
    })
}

fn roots_note(roots: &[String]) -> String {
    let list: Vec<String> = roots.iter().map(|root| format!("`{root}`")).collect();
    list.join(", ")
}

fn rows_in_words(rows: Option<usize>) -> String {
    match rows {
        Some(rows) => format!("has rows for {rows} experts"),
        None => "is missing".to_owned(),
    }
}

fn nearest_note(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (nearest: `{name}`)"))
}
