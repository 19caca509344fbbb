//! Faults of models that trainers left in pieces, with the file and the tensor.

use std::path::PathBuf;

use super::{MegatronFault, ZeroFault};
use crate::io::PickleFault;

/// A fault of a folder that a trainer left, with the file and the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerFault {
    /// A file holds a part of a model only.
    #[error("{}: is one part of a {kind}; the model is the folder {}", path.display(), folder.display())]
    OnePart {
        /// The file.
        path: PathBuf,
        /// The users' name for the whole.
        kind: &'static str,
        /// Its folder.
        folder: PathBuf,
    },
    /// A folder holds models of several kinds.
    #[error("{}: several models in this folder: a {}", folder.display(), kinds.join(" and a "))]
    SeveralKinds {
        /// The folder.
        folder: PathBuf,
        /// The users' name for them.
        kinds: Vec<&'static str>,
    },
    /// Several folders of a folder hold a model.
    #[error("{}: several models in this folder: {}", folder.display(), folders.join(", "))]
    SeveralFolders {
        /// The folder.
        folder: PathBuf,
        /// Names of the folders with a model.
        folders: Vec<String>,
    },
    /// A model in pieces is not of this machine.
    #[error("{}: a {kind} is read from a folder of this machine only", folder.display())]
    Remote {
        /// The address.
        folder: PathBuf,
        /// The users' name for it.
        kind: &'static str,
    },
    /// A file names another outside of the folder.
    #[error("{}: the file `{file}` that the checkpoint names is not in its folder", folder.display())]
    OutsideFolder {
        /// The folder.
        folder: PathBuf,
        /// The file as named.
        file: String,
    },
    /// A file holds a part of a tensor only.
    #[error("{}: holds the part of rank {rank} of `{key}`, which has the shape {shape:?}", path.display())]
    PartOfTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The process whose part it is.
        rank: usize,
        /// The shape of the whole.
        shape: Vec<usize>,
    },
    /// The description of a part of a tensor is not that of a version of torch that is known.
    #[error("{}: the part of `{key}` is not understood: {fault}", path.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The fault.
        fault: PickleFault,
    },
    /// A tensor is placed on its devices in a way that cannot be undone, such as a sum that is not summed yet.
    #[error("{}: `{key}` is placed as {placement}, which is not read", path.display())]
    Placement {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The placement as torch writes it.
        placement: String,
    },
    /// The mesh of devices of a tensor has no place for its file.
    #[error("{}: the mesh of devices of `{key}` has no place for this file", path.display())]
    Mesh {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// A part has another size than its place says.
    #[error("{}: the part of `{key}` has the size {found:?}; its place wants {wanted:?}", path.display())]
    PartSize {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The value that it has.
        found: Vec<usize>,
        /// The value by its place.
        wanted: Vec<usize>,
    },
    /// No file of a rank holds a tensor.
    #[error("{}: no tensor in the files of ranks in this folder", folder.display())]
    NoRanks {
        /// The folder.
        folder: PathBuf,
    },
    /// The files of ranks are of several models or of several numbers of ranks.
    #[error("{}: files of several models or worlds in this folder: {}", folder.display(), found.join(", "))]
    SeveralWorlds {
        /// The folder.
        folder: PathBuf,
        /// Their names with `*` for the rank.
        found: Vec<String>,
    },
    /// A file of a rank says a number that its world does not have.
    #[error("{}: is of a rank that a world of {world} does not have", path.display())]
    RankBeyondWorld {
        /// The file.
        path: PathBuf,
        /// How many ranks there are.
        world: usize,
    },
    /// Files of ranks are missing.
    #[error("{}: the files of {n_missing} of {world} ranks are missing, such as of rank {}", folder.display(), numbers(ranks))]
    MissingRanks {
        /// The folder.
        folder: PathBuf,
        /// How many ranks there are.
        world: usize,
        /// How many are missing.
        n_missing: usize,
        /// The first of them.
        ranks: Vec<usize>,
    },
    /// FSDP has flattened parameters into one, which has no names any more.
    #[error("{}: `{key}` holds the parameters of a block in a row, without their names", path.display())]
    FlatParameter {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
    },
    /// A rank holds nothing of a tensor that it must hold.
    #[error("{}: rank {rank} does not hold `{key}`, which other ranks hold with it", path.display())]
    RankLacks {
        /// The rank's file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The rank.
        rank: usize,
    },
    /// The size of a tensor is beyond all memory.
    #[error("{}: `{key}` of the shape {shape:?} is larger than any memory", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Ranks contradict each other.
    #[error("{}: `{key}` is {found}; on the ranks before it is {wanted}", path.display())]
    RanksDisagree {
        /// The rank's file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The value there.
        found: String,
        /// The value elsewhere.
        wanted: String,
    },
    /// A file was written by another rank, or in a larger world, than its name says.
    #[error("{}: `{key}` is the part of rank {rank}{}, which the name of the file contradicts", path.display(), world_note(*world))]
    OtherRank {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The rank that the tensor says.
        rank: usize,
        /// How many ranks there are at least, by the tensor.
        world: Option<usize>,
    },
    /// Ranks hold other numbers under one name, and nothing says how they belong together.
    #[error("{}: `{key}` has other numbers than in {}, and nothing says how they belong together", path.display(), first.display())]
    CopiesDiffer {
        /// The rank's file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The file of the first rank.
        first: PathBuf,
    },
    /// The metadata of a distributed checkpoint are damaged, or of a version that is not known.
    #[error("{}: {}: {fault}", path.display(), metadata_note(key.as_deref()))]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The tensor, if it is one.
        key: Option<String>,
        /// The fault.
        fault: PickleFault,
    },
    /// A checkpoint lies in more pieces than this program keeps account of.
    #[error(
        "{}: {n_pieces} pieces of {n_tensors} tensors are described up to where their account takes more than {} MiB, the most that is granted; `dcp_to_torch_save` of torch makes one file of them",
        path.display(), limit >> 20
    )]
    ManyPieces {
        /// The metadata.
        path: PathBuf,
        /// Tensors so far.
        n_tensors: usize,
        /// Pieces so far.
        n_pieces: usize,
        /// The most bytes that their account may take.
        limit: usize,
    },
    /// A tensor of a distributed checkpoint is of a kind that has no counterpart here.
    #[error("{}: `{key}` is of the kind {kind}, which is not supported", path.display())]
    Kind {
        /// The metadata.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its dtype or layout.
        kind: String,
    },
    /// A piece of a tensor has no place in any file.
    #[error("{}: no file is named for the piece of `{key}` at {start:?}", path.display())]
    NoPlace {
        /// The metadata.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Where the piece begins.
        start: Vec<usize>,
    },
    /// A piece of a tensor has two places.
    #[error("{}: two places are named for the piece of `{key}` at {start:?}", path.display())]
    TwoPlaces {
        /// The metadata.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Where the piece begins.
        start: Vec<usize>,
    },
    /// A piece was changed as it was written, such as compressed.
    #[error("{}: the piece of `{key}` in `{file}` is stored through {transforms}, which is not read", path.display())]
    Transformed {
        /// The metadata.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The file of the piece.
        file: String,
        /// The names of the changes.
        transforms: String,
    },
    /// The place of a piece is not in its file, or too small for it.
    #[error("{}: the piece of `{key}` needs {n_bytes} bytes; its place is {start}..{end} of a file of {file_bytes}", path.display())]
    PlaceOutside {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Bytes of the piece.
        n_bytes: u64,
        /// First byte of the place.
        start: u64,
        /// One after its last.
        end: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// Two pieces share bytes of a file.
    #[error("{}: `{}` and `{}` claim the same bytes from {at} on", path.display(), keys[0], keys[1])]
    SharedPlace {
        /// The file.
        path: PathBuf,
        /// The tensors.
        keys: [String; 2],
        /// Where the second begins.
        at: u64,
    },
    /// Something else lies at the place of a piece.
    #[error("{}: at byte {at} lies {found} where `{key}` has {wanted}", path.display())]
    OtherPiece {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Where the place begins.
        at: u64,
        /// The value found.
        found: String,
        /// The value in the metadata.
        wanted: String,
    },
    /// The bytes at the place of a piece are damaged.
    #[error("the piece of `{key}` at byte {at}: {source}")]
    DamagedPiece {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Where the place begins.
        at: u64,
        /// The fault, which names the file.
        source: Box<crate::Error>,
    },
    /// A shard does not say where its boxes of tensors begin.
    #[error("{}: the metadata of this shard lack `DCP_SHARDING_INFO`, which says where its parts of tensors begin", path.display())]
    NoShardingInfo {
        /// The shard.
        path: PathBuf,
    },
    /// The record of a shard's boxes is no JSON of the known form.
    #[error("{}: `DCP_SHARDING_INFO` in the metadata of this shard: {source}", path.display())]
    BadShardingInfo {
        /// The shard.
        path: PathBuf,
        /// The fault.
        source: serde_json::Error,
    },
    /// A shard does not say where a box begins, or with another number of axes.
    #[error("{}: `DCP_SHARDING_INFO` has no offsets for the part of `{key}` of the shape {shape:?}", path.display())]
    NoOffsets {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The shape of the box.
        shape: Vec<usize>,
    },
    /// A file that another names is not there.
    #[error("{}: the file `{file}` of the checkpoint is missing", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file.
        file: String,
    },
    /// A checkpoint of DeepSpeed is damaged or incomplete.
    #[error(transparent)]
    Zero(#[from] ZeroFault),
    /// A checkpoint of Megatron-LM is damaged or incomplete.
    #[error(transparent)]
    Megatron(#[from] MegatronFault),
}

fn numbers(ranks: &[usize]) -> String {
    let numbers: Vec<String> = ranks.iter().map(ToString::to_string).collect();
    numbers.join(", ")
}

fn world_note(world: Option<usize>) -> String {
    world.map_or_else(String::new, |world| format!(" of at least {world}"))
}

fn metadata_note(key: Option<&str>) -> String {
    key.map_or_else(|| "the metadata".into(), |key| format!("`{key}`"))
}
