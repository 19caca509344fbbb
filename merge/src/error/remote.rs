//! Faults of remote files, with the address and the range of bytes.

use std::ops::Range;
use std::path::PathBuf;

/// A fault of a remote file, with its address and the range of bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteFault {
    /// Text that looks like an address and is none.
    #[error("{address}: {why}")]
    Address {
        /// The address.
        address: String,
        /// The fault.
        why: &'static str,
    },
    /// This program was built without the feature `remote`.
    #[error("{address}: built without the feature `remote`, which reads addresses")]
    NotBuilt {
        /// The address.
        address: String,
    },
    /// Unencrypted connections to other machines must be asked for.
    #[error("{address}: http without encryption is allowed to this machine only")]
    PlainHttp {
        /// The address.
        address: String,
    },
    /// No connection can be made at all.
    #[error("{address}: {reason}")]
    Settings {
        /// The address.
        address: String,
        /// The missing or wrong part.
        reason: String,
    },
    /// The server answered that it will not give the file.
    #[error("{address}: the server answered {status}")]
    Refused {
        /// The address.
        address: String,
        /// Status code.
        status: u16,
    },
    /// The server sends whole files only.
    #[error("{address}: the server has no byte ranges: it sent the whole file for bytes {}", range(.bytes))]
    NoRanges {
        /// The address.
        address: String,
        /// The requested bytes.
        bytes: Range<u64>,
    },
    /// The answer is another part of the file than the request asked for.
    #[error("{address}: asked for bytes {}, the server sent `{found}`", range(.bytes))]
    WrongRange {
        /// The address.
        address: String,
        /// The requested bytes.
        bytes: Range<u64>,
        /// The answer's `Content-Range`.
        found: String,
    },
    /// The answer is longer or shorter than it should be.
    #[error("{address}: bytes {} came as {found} bytes", range(.bytes))]
    WrongLength {
        /// The address.
        address: String,
        /// The requested bytes.
        bytes: Range<u64>,
        /// Bytes of the answer, as announced or as sent.
        found: u64,
    },
    /// The file is not the one that was opened.
    #[error(
        "{address}: changed while it was read: bytes {} are of version {found}, the file was \
         opened as {expected}", range(.bytes)
    )]
    Changed {
        /// The address.
        address: String,
        /// The requested bytes.
        bytes: Range<u64>,
        /// Tag and size when it was opened.
        expected: String,
        /// Tag and size now.
        found: String,
    },
    /// Nothing tells one version of the file from another.
    #[error(
        "{address}: the server gives neither ETag nor Last-Modified, so a change would not be seen"
    )]
    NoTag {
        /// The address.
        address: String,
    },
    /// A file without bytes.
    #[error("{address}: is empty")]
    Empty {
        /// The address.
        address: String,
    },
    /// The answer is longer than such an answer can be.
    #[error("{address}: an answer of more than {limit} bytes is not read")]
    TooLong {
        /// The address.
        address: String,
        /// The most that is read.
        limit: u64,
    },
    /// The answer is not what the hub or store should say.
    #[error("{address}: {reason}")]
    BadAnswer {
        /// The address.
        address: String,
        /// The fault.
        reason: String,
    },
    /// The connection failed too often.
    #[error("{address}: bytes {}: gave up after {n_tries} tries: {reason}", range(.bytes))]
    GaveUp {
        /// The address.
        address: String,
        /// The requested bytes.
        bytes: Range<u64>,
        /// The number of tries without any progress.
        n_tries: u32,
        /// The last failure.
        reason: String,
    },
    /// Without a network, and the file was never opened before.
    #[error("{address}: offline, and {} knows nothing of it", cache.display())]
    OfflineUnknown {
        /// The address.
        address: String,
        /// The cache folder.
        cache: PathBuf,
    },
    /// Without a network, and these bytes were never read before.
    #[error("{address}: offline, and bytes {} are not in {}", range(.bytes), cache.display())]
    OfflineMissing {
        /// The address.
        address: String,
        /// The missing bytes.
        bytes: Range<u64>,
        /// The cache folder.
        cache: PathBuf,
    },
    /// The cache cannot be used.
    #[error("{}: cannot {action}: {reason}", path.display())]
    Cache {
        /// The failed action.
        action: &'static str,
        /// The file or folder of the cache.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}

/// A range as it is spoken of: first byte and the one after the last.
fn range(bytes: &Range<u64>) -> String {
    format!("{}..{}", bytes.start, bytes.end)
}

impl RemoteFault {
    /// Whether the fault lies in the arguments.
    pub(super) fn is_usage(&self) -> bool {
        matches!(self, Self::Address { .. } | Self::PlainHttp { .. })
    }

    /// A hint for the user.
    pub(super) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PlainHttp { .. } => Some("use https, or pass --allow-http"),
            Self::Refused {
                address,
                status: 401 | 403,
            } if address.starts_with("hf://") => Some(
                "private and gated models need a token: set HF_TOKEN to one that may read the model",
            ),
            Self::Refused { status: 404, .. } => Some("look at the name and the revision"),
            Self::NoRanges { .. } | Self::NoTag { .. } => {
                Some("download the file and give its path")
            }
            Self::Changed { .. } => Some("run it again to read the new version from the start"),
            Self::OfflineUnknown { .. } | Self::OfflineMissing { .. } => {
                Some("run it once without --offline and HF_HUB_OFFLINE, with the same --cache-dir")
            }
            _ => None,
        }
    }
}
