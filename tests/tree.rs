//! The files of the repository.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages at the top, and the files with one of these endings in the folders and below, without outputs of builds.
pub fn top_pages_and(folders: &[&str], endings: &[&str]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
        .map(|name| root().join(name))
        .into();
    for folder in folders {
        below(root().join(folder), endings, &mut found);
    }
    found
}

/// Adds the files with one of these endings in a folder and below, without outputs of builds.
pub fn below(folder: PathBuf, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        if path.is_dir() {
            if !path.ends_with("target") {
                below(path, endings, found);
            }
        } else if ending.is_some_and(|ending| endings.contains(&ending)) {
            found.push(path);
        }
    }
}
