//! Faults of a torch file, one variant for each.

use serde::Serialize;

/// The fault of a pickle at one of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// The stream ends within an item.
    #[error("the pickle ends early: {wanted} bytes are needed, {left} are left")]
    Truncated {
        /// Bytes that the item needs.
        wanted: u64,
        /// The number of bytes found.
        left: u64,
    },
    /// The stream is longer than this program reads.
    #[error("the pickle is longer than {limit} bytes")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// A line of text, as protocol 0 has them, is longer than this program reads.
    #[error("a line of the pickle is longer than {limit} bytes")]
    LineTooLong {
        /// The limit.
        limit: u64,
    },
    /// A key of a dictionary or an element of a set that Python cannot look up.
    #[error(
        "a {kind} is the key of a dictionary or an element of a set, which Python does not allow"
    )]
    Unhashable {
        /// The value found.
        kind: &'static str,
    },
    /// Attributes are set on a value that has none.
    #[error("attributes are set on {kind}, which has none")]
    NoAttributes {
        /// The value found.
        kind: &'static str,
    },
    /// A legacy stream of another protocol than the one that torch has written.
    #[error("the protocol number of the stream is not 1001, which torch reads")]
    OtherProtocol,
    /// The operating system could not read the bytes.
    #[error("cannot read the pickle: {0}")]
    Unreadable(String),
    /// An opcode that no protocol up to 5 has, or one that needs what a file cannot hold.
    #[error("unknown opcode {0:#04x}")]
    UnknownOpcode(u8),
    /// A protocol that does not exist yet.
    #[error("pickle protocol {0}, of which protocols up to 5 are known")]
    Protocol(u8),
    /// An opcode takes more from the stack than there is.
    #[error("the stack is empty")]
    EmptyStack,
    /// An opcode needs a mark that was never set.
    #[error("no mark is set")]
    NoMark,
    /// A memo slot is read that was never written.
    #[error("memo slot {0} was never written")]
    EmptyMemo(u64),
    /// A string is not UTF-8.
    #[error("a string is not UTF-8")]
    NotUtf8,
    /// A number written as text is none.
    #[error("a number in text form is malformed")]
    BadNumber,
    /// A length is negative.
    #[error("a length is negative")]
    NegativeLength,
    /// A value is not of the type that an opcode or constructor needs.
    #[error("{wanted} is needed where {found} stands")]
    WrongType {
        /// The expected type.
        wanted: &'static str,
        /// The value found.
        found: &'static str,
    },
    /// A constructor that is understood is called with too few arguments.
    #[error("`{callable}` is called with {found} arguments, it needs {wanted}")]
    FewArguments {
        /// The constructor.
        callable: &'static str,
        /// How many arguments it needs.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// An object lacks an attribute that its class has.
    #[error("an object lacks the attribute `{name}`")]
    NoAttribute {
        /// The attribute.
        name: &'static str,
    },
    /// The values take more memory than this program grants.
    #[error("the values of the pickle need more than {limit} bytes of memory")]
    TooMuchMemory {
        /// The limit.
        limit: u64,
    },
    /// A reference to outside data is not `("storage", class, key, location, size)`.
    #[error("a persistent id is not a torch storage: {0}")]
    NotAStorage(&'static str),
    /// A storage class that torch does not have.
    #[error("`{0}` is no storage class of torch")]
    UnknownStorageClass(String),
    /// A dtype that torch does not have.
    #[error("`{0}` is no dtype of torch")]
    UnknownDtype(String),
    /// A tensor has a negative size, stride or offset.
    #[error("a tensor has the {what} {value}, which is negative")]
    Negative {
        /// `size`, `stride` or `offset`.
        what: &'static str,
        /// The number.
        value: i64,
    },
    /// A tensor has not one stride per size.
    #[error("a tensor has {sizes} sizes but {strides} strides")]
    StrideCount {
        /// How many sizes.
        sizes: usize,
        /// How many strides.
        strides: usize,
    },
    /// A tensor has more axes than torch works with.
    #[error("a tensor has {found} axes, more than {limit}")]
    TooManyAxes {
        /// How many axes.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The number of elements or bytes of a tensor does not fit 63 bits.
    #[error("the size of a tensor overflows 63 bits")]
    SizeOverflow,
    /// Following all references meets more objects than this program follows, as when lists hold
    /// each other twice over and over.
    #[error("more than {limit} objects are met when every reference is followed")]
    TooManyObjects {
        /// The limit.
        limit: u64,
    },
    /// A tensor stands deeper than this program follows.
    #[error("a tensor stands more than {limit} levels deep")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// The pickle at the start of the file is none of `torch.save`.
    #[error("a pickle, but not one that torch.save wrote")]
    NotTorch,
    /// The numbers were written by a big-endian machine.
    #[error("the file was written by a big-endian machine")]
    BigEndian,
    /// The list of storages at the end of a legacy file does not match its tensors.
    #[error(
        "the storage `{0}` in the list of storages belongs to no tensor, or stands there twice"
    )]
    StrayStorage(String),
    /// A storage of a legacy file has another size than its tensors say.
    #[error("the storage `{key}` has {found} elements, its tensors expect {expected}")]
    StorageSize {
        /// Key of the storage.
        key: String,
        /// Elements in the file.
        found: i64,
        /// Elements that the pickle claims.
        expected: u64,
    },
}

/// Why an object of a TorchScript model is not read as attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScriptFault {
    /// It is stored by a method of its own, as packed weights of quantized layers are.
    #[error("is stored in a form of its own, which only its code can read")]
    OwnState,
    /// Nothing is stored of it.
    #[error("is stored without attributes")]
    NoState,
    /// It is among its own attributes, or theirs.
    #[error("is a part of itself")]
    HoldsItself,
}

/// The fault of a zip archive or of one of its entries.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZipFault {
    /// There is no end record: no zip archive, or one that was cut.
    #[error("the end record of the zip archive is missing; the file may be cut")]
    NoEndRecord,
    /// The end record and the directory contradict each other or the file's size.
    #[error("the directory of the zip archive does not end where its end record begins")]
    DirectoryMisplaced,
    /// A header lacks its signature or is cut.
    #[error("the header at byte {0} is damaged")]
    BadHeader(u64),
    /// The directory is larger than this program reads.
    #[error("the directory of the zip archive has {0} bytes, which is too much")]
    DirectoryTooLarge(u64),
    /// The archive is one part of several.
    #[error("the archive is one of several parts")]
    MultiPart,
    /// Two entries have the same name.
    #[error("the entry stands twice in the archive")]
    DuplicateEntry,
    /// An entry name is not UTF-8.
    #[error("an entry name is not UTF-8")]
    NameNotUtf8,
    /// An entry name is absolute or climbs out of its folder.
    #[error("the entry name leaves the archive's folder")]
    UnsafeName,
    /// An entry is encrypted.
    #[error("the entry is encrypted")]
    Encrypted,
    /// An entry is compressed, which torch never does.
    #[error("the entry is compressed (method {0}); torch stores without compression")]
    Compressed(u16),
    /// An entry reaches beyond the data part of the file.
    #[error("the entry claims bytes {start}..{end}, but the data end at byte {limit}")]
    OutOfFile {
        /// First byte.
        start: u64,
        /// One after the last byte.
        end: u64,
        /// Where the directory begins.
        limit: u64,
    },
    /// An entry is larger than this program accepts for its purpose.
    #[error("the entry has {n_bytes} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Its size.
        n_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// There is no `data.pkl`.
    #[error("the zip archive holds no data.pkl, so torch.save did not write it")]
    NoPickle,
    /// A TorchScript archive of the form before torch 1.4.
    #[error(
        "`model.json` describes a TorchScript model as torch wrote it before 1.4, which is not read"
    )]
    OldScript,
    /// There are several `data.pkl`.
    #[error("the zip archive holds more than one data.pkl")]
    TwoPickles,
    /// The record with this program's provenance is not a JSON object of strings.
    #[error("the entry is not a JSON object of strings: {0}")]
    BadMetadata(String),
    /// The numbers were written by a big-endian machine.
    #[error("the byte order is `{0}`, of which only `little` is supported")]
    ByteOrder(String),
}

/// A function or class that loading a pickle in Python would call, and that is not known to be a
/// constructor of harmless data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PickleCall {
    /// `module.name`.
    pub callable: String,
    /// Byte of the pickle at which it would be called.
    pub offset: u64,
}
