//! Files of the repository's fixtures.

use std::path::{Path, PathBuf};

/// A file of the fixtures.
pub fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures")
        .join(name)
}
