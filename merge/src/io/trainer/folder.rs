//! The folder of a model in pieces, and the way to its files.

use std::path::{Component, Path, PathBuf};

use crate::{Error, Result, TrainerFault};

/// The names in a folder, hidden ones too.
pub(crate) struct Listing {
    /// The folder.
    pub(crate) folder: PathBuf,
    /// Its files, sorted.
    pub(crate) files: Vec<String>,
    /// Its folders, sorted.
    pub(crate) folders: Vec<String>,
}

impl Listing {
    /// Of a folder of this machine.
    pub(crate) fn of(folder: &Path) -> Result<Self> {
        let failed = |source| Error::io("read", folder, source);
        let (mut files, mut folders) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            // The target of a link counts.
            match std::fs::metadata(entry.path()) {
                Ok(found) if found.is_file() => files.push(name),
                Ok(found) if found.is_dir() => folders.push(name),
                _ => {}
            }
        }
        files.sort_unstable();
        folders.sort_unstable();
        Ok(Self {
            folder: folder.into(),
            files,
            folders,
        })
    }

    /// Whether it has a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.iter().any(|file| file == name)
    }

    /// The path of one of its files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The text of its file `name` without the space around it, such as the name of the last checkpoint; `None` if the
    /// file has more than `most_bytes` or is not UTF-8.
    pub(crate) fn short_text(&self, name: &str, most_bytes: u64) -> Result<Option<String>> {
        let path = self.path(name);
        let failed = |source| Error::io("read", &path, source);
        if std::fs::metadata(&path).map_err(failed)?.len() > most_bytes {
            return Ok(None);
        }
        let text = String::from_utf8(std::fs::read(&path).map_err(failed)?);
        Ok(text.ok().map(|text| text.trim().to_owned()))
    }

    /// A note on the folders beside the one that its file `name` says; `None` if there are no others.
    pub(crate) fn passed_over(&self, name: &str, said: &str, others: &[&str]) -> Option<String> {
        (!others.is_empty()).then(|| {
            let (folder, others) = (self.folder.display(), others.join(", "));
            format!("{folder}: `{name}` names {said}; passed over: {others}")
        })
    }
}

/// The file that `name`, which a file of the folder says, stands for. It must be in the folder or below it, and so
/// must be what a link leads to, unless the folder is of the cache of the Hugging Face hub, which is made of links.
///
/// # Errors
/// [`TrainerFault::OutsideFolder`], [`TrainerFault::MissingFile`].
pub(crate) fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let outside = || {
        Error::from(TrainerFault::OutsideFolder {
            folder: folder.into(),
            file: name.to_owned(),
        })
    };
    let mut components = Path::new(name).components();
    if name.is_empty() || !components.all(|part| matches!(part, Component::Normal(_))) {
        return Err(outside());
    }
    let path = folder.join(name);
    let Ok(real) = path.canonicalize() else {
        return Err(TrainerFault::MissingFile {
            folder: folder.into(),
            file: name.to_owned(),
        }
        .into());
    };
    let home = (folder.canonicalize()).map_err(|source| Error::io("read", folder, source))?;
    match real.starts_with(&home) || hub_blobs(&home).is_some_and(|blobs| real.starts_with(blobs)) {
        true => Ok(path),
        false => Err(outside()),
    }
}

/// Where the hub's cache keeps the files of a folder of a snapshot, `MODEL/snapshots/COMMIT[/...]`.
fn hub_blobs(folder: &Path) -> Option<PathBuf> {
    let mut above = folder.ancestors();
    let snapshots = above.find(|folder| folder.file_name().is_some_and(|n| n == "snapshots"))?;
    let blobs = snapshots.with_file_name("blobs");
    blobs.is_dir().then_some(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_name_stays_in_its_folder_whatever_it_says() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = home.path().join("model");
        std::fs::create_dir_all(folder.join("below")).expect("made");
        std::fs::write(home.path().join("secret"), b"").expect("written");
        std::fs::write(folder.join("below/a"), b"").expect("written");
        std::os::unix::fs::symlink("below/a", folder.join("within")).expect("linked");
        std::os::unix::fs::symlink("../secret", folder.join("planted")).expect("linked");
        for name in ["below/a", "within"] {
            assert!(inside(&folder, name).is_ok(), "{name}");
        }
        for name in [
            "../secret",
            "/etc/passwd",
            "",
            "below/../../secret",
            "planted",
        ] {
            let said = inside(&folder, name).expect_err("refused");
            let is_outside = matches!(
                said,
                Error::Trainer(ref fault) if matches!(**fault, TrainerFault::OutsideFolder { .. })
            );
            assert!(is_outside, "{name}: {said}");
        }
        assert!(inside(&folder, "missing").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn the_cache_of_the_hub_is_made_of_links() {
        let model = tempfile::tempdir().expect("a folder");
        let folder = model.path().join("snapshots/abc/step");
        std::fs::create_dir_all(&folder).expect("made");
        std::fs::create_dir(model.path().join("blobs")).expect("made");
        std::fs::write(model.path().join("blobs/1"), b"").expect("written");
        std::os::unix::fs::symlink("../../../blobs/1", folder.join("a")).expect("linked");
        assert!(inside(&folder, "a").is_ok());
    }
}
