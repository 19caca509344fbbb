//! The sources of a remote file's bytes.

use std::ops::Range;
use std::time::Duration;

use super::cache::Version;
use crate::RemoteFault;

/// Part of a file, and of which version.
pub(super) struct Answer {
    /// The whole file's version.
    pub(super) version: Version,
    /// The bytes from the start of the range on.
    pub(super) bytes: Vec<u8>,
}

/// The reason why there is no answer, or half of one.
pub(super) enum Trouble {
    /// Trying again may help.
    Again {
        /// The part that came before the connection broke.
        part: Option<Answer>,
        /// The event.
        reason: String,
        /// The pause that the server asks for.
        after: Option<Duration>,
    },
    /// Trying again will not help.
    Final(RemoteFault),
}

impl From<RemoteFault> for Trouble {
    fn from(fault: RemoteFault) -> Self {
        Self::Final(fault)
    }
}

/// A remote file that can be read by ranges.
pub(super) trait Store: Send + Sync {
    /// The bytes of a range, up to the end of the file.
    fn get(&self, range: Range<u64>) -> Result<Answer, Trouble>;
}
