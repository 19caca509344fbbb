//! Folders of picture files that annotations name by their paths.

use std::path::{Component, Path, PathBuf};

use crate::{Error, Result};

/// The largest picture file that is read.
const MAX_PICTURE_BYTES: u64 = 1 << 30;

/// A folder of pictures.
#[derive(Clone, Debug)]
pub(super) struct PictureFolder {
    path: PathBuf,
}

impl PictureFolder {
    /// The folder at a path, which may be a link.
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into() }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a picture within the folder, with links resolved. `fault` makes the error of a reason.
    ///
    /// # Errors
    /// The error of `fault` when the picture is not there, is no file, or lies behind a link that leads out of the
    /// folder; [`Error::Io`] when the folder is not there.
    pub(super) fn find(&self, name: &str, fault: impl Fn(&str) -> Error) -> Result<PathBuf> {
        let folder = self.path.canonicalize();
        let folder = folder.map_err(|source| Error::io("open", &self.path, source))?;
        let path = self.path.join(name).canonicalize();
        let path = path.map_err(|source| fault(&source.to_string()))?;
        match path.starts_with(&folder) && path.is_file() {
            true => Ok(path),
            false if path.starts_with(&folder) => Err(fault("is not a file")),
            false => Err(fault(&format!(
                "is a link to {}, which is not in the folder of pictures",
                path.display()
            ))),
        }
    }
}

/// Whether a path stays in the folder that it is joined to.
pub(super) fn is_inside(path: &str) -> bool {
    let mut components = Path::new(path).components().peekable();
    components.peek().is_some()
        && !path.contains('\0')
        && components.all(|component| matches!(component, Component::Normal(_)))
}

/// The bytes of a picture file that is not too large.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let n_bytes = std::fs::metadata(path)
        .map_err(|source| Error::io("open", path, source))?
        .len();
    if n_bytes > MAX_PICTURE_BYTES {
        return Err(Error::FileTooLarge {
            path: path.into(),
            n_bytes,
            limit: MAX_PICTURE_BYTES,
        });
    }
    std::fs::read(path).map_err(|source| Error::io("read", path, source))
}
