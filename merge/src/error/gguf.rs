//! Faults of GGUF files, with the tensor or the entry of the metadata.

use std::path::PathBuf;

/// A fault of a GGUF file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufFault {
    /// Numbers in the other byte order.
    #[error("{}: the GGUF file is big-endian; only little-endian files are read", path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// A version whose form is not known.
    #[error("{}: the GGUF file is of version {version}; versions 2 and 3 are read", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version that it gives.
        version: u32,
    },
    /// The header goes on where the file ends, or beyond what a header may have.
    #[error("{}: the header has {n_bytes} bytes of {what} from byte {at} on, but ends at byte {end}", path.display())]
    HeaderCut {
        /// The file.
        path: PathBuf,
        /// The thing that was read.
        what: &'static str,
        /// Where it begins.
        at: u64,
        /// How many bytes it would take.
        n_bytes: u64,
        /// Where the file, or the longest header, ends.
        end: u64,
    },
    /// More of something than the file has room for, or than any model has.
    #[error("{}: the header counts {n} {what}; a file of this size has at most {limit}", path.display())]
    Count {
        /// The file.
        path: PathBuf,
        /// The things counted.
        what: &'static str,
        /// Their number.
        n: u64,
        /// The most that there can be.
        limit: u64,
    },
    /// A name that is not UTF-8.
    #[error("{}: the {what} at byte {at} is not UTF-8", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// A key, or the name of a tensor.
        what: &'static str,
        /// Where it begins.
        at: u64,
    },
    /// An entry of the metadata twice.
    #[error("{}: the metadata have `{key}` twice", path.display())]
    RepeatedEntry {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
    },
    /// An entry of the metadata of a type that the format does not have, or an array of arrays.
    #[error("{}: the metadata's `{key}` is of type {kind}, which is not read", path.display())]
    EntryType {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// The type, as a number of the format.
        kind: String,
    },
    /// An alignment that is no power of two.
    #[error("{}: `general.alignment` is {alignment}, not a power of two of at least 8", path.display())]
    Alignment {
        /// The file.
        path: PathBuf,
        /// The number, or what stands in its place.
        alignment: String,
    },
    /// A tensor of no axis, or of more than the format has.
    #[error("{}: `{key}` has {n_axes} axes; a tensor of a GGUF file has 1 to 4", path.display())]
    Axes {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its axes.
        n_axes: u32,
    },
    /// A type of elements that is not known.
    #[error("{}: `{key}` is of type {type_id}, which no known version of the format has", path.display())]
    Type {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The type, as a number of the format.
        type_id: u32,
    },
    /// Sizes whose product is beyond 64 bits.
    #[error("{}: `{key}` has the sizes {sizes:?}, whose product overflows", path.display())]
    Overflow {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its sizes, in the order of the file.
        sizes: Vec<u64>,
    },
    /// Rows that blocks of a quantization do not fill.
    #[error("{}: `{key}` is {scheme} with rows of {width} elements, which blocks of {block} do not fill", path.display())]
    Rows {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The type of its elements.
        scheme: &'static str,
        /// Elements of a row.
        width: u64,
        /// Elements of a block.
        block: usize,
    },
    /// Data that are not where the alignment allows.
    #[error("{}: the data of `{key}` begin at offset {offset}, no multiple of the alignment of {alignment}", path.display())]
    Unaligned {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Where they begin, from the first byte of all data on.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// Data beyond the end of the file.
    #[error("{}: the data of `{key}` are bytes {first}..{end}, and the file has {n_file_bytes}", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first byte.
        first: u64,
        /// The end.
        end: u64,
        /// Size of the file.
        n_file_bytes: u64,
    },
    /// Two tensors with bytes in common.
    #[error("{}: the data of `{key}` overlap those of `{other}`", path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// The tensor that begins later.
        key: String,
        /// The tensor that begins before.
        other: String,
    },
    /// A quantization that is not read as numbers.
    #[error("{}: `{key}` is quantized as {scheme}, which is not read as numbers", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The type of its elements.
        scheme: &'static str,
    },
    /// Data that could not be read.
    #[error("{}: cannot read bytes {first}..{end} of `{key}`: {source}", path.display())]
    ReadTensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// The first byte.
        first: u64,
        /// The end.
        end: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// A part of a split model whose name does not give the names of the others.
    #[error("{}: the file is one of {n_parts} parts, and its name does not end in `-00001-of-{n_parts:05}.gguf`", path.display())]
    PartName {
        /// The file.
        path: PathBuf,
        /// The parts that its metadata count.
        n_parts: u64,
    },
    /// A part that is not there.
    #[error("{}: part {part} of {n_parts} is not there", path.display())]
    PartMissing {
        /// The missing file.
        path: PathBuf,
        /// Its number, from 1.
        part: u64,
        /// The parts.
        n_parts: u64,
    },
    /// A part whose metadata contradict its name or the other parts.
    #[error("{}: the metadata's `{key}` are {found}, and the part should have {expected}", path.display())]
    PartRecord {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: &'static str,
        /// The value found, in words if it is missing.
        found: String,
        /// The expected value.
        expected: u64,
    },
    /// Metadata that are needed for the names or the order of rows of a model.
    #[error("{}: {wanted} needs the metadata's `{key}`, which {found}", path.display())]
    Fact {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// Its fault, in words.
        found: String,
        /// The reader that needs it.
        wanted: String,
    },
    /// Metadata of which no configuration of Hugging Face says the same.
    #[error("{}: the metadata's `{key}` {found}, and config.json cannot say that", path.display())]
    Unsaid {
        /// The file.
        path: PathBuf,
        /// The entry, or the tensor.
        key: String,
        /// Its kind, in words.
        found: String,
    },
    /// An architecture whose configuration is not known.
    #[error("{}: no config.json is written for the architecture `{architecture}`", path.display())]
    NoSuchConfig {
        /// The file.
        path: PathBuf,
        /// The value of `general.architecture`.
        architecture: String,
    },
    /// A tensor whose sizes contradict the metadata.
    #[error("{}: `{key}` has the shape {shape:?}, which does not fit {wanted}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        key: String,
        /// Its shape, as torch counts axes.
        shape: Vec<usize>,
        /// The size that it should fit, in words.
        wanted: String,
    },
}

impl GgufFault {
    /// A hint for the user.
    pub(super) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BigEndian { .. } => {
                Some("gguf-py's `gguf-convert-endian` writes a little-endian file")
            }
            Self::Unreadable { .. } => Some(
                "llama.cpp's `llama-quantize --allow-requantize model.gguf out.gguf F16` writes numbers that are read",
            ),
            Self::HeaderCut { .. } | Self::Outside { .. } => Some("fetch or copy the file again"),
            Self::PartMissing { .. } => Some("put all parts into one folder"),
            Self::Unsaid { .. } | Self::NoSuchConfig { .. } => {
                Some("name a .safetensors file as the output, for the weights alone")
            }
            Self::PartName { .. } => {
                Some("give all parts the names that they were published under")
            }
            Self::Fact { .. } | Self::Shape { .. } => {
                Some("`vlmerge inspect --raw` shows the file with the names of GGUF")
            }
            _ => None,
        }
    }
}
