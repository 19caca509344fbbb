//! Writing what goes beside the weights.

use std::path::{Path, PathBuf};

use crate::beside::{Content, card, read_bytes};
use crate::io::{WriteOptions, check_file_target, write_file};
use crate::provenance::Provenance;
use crate::{Error, MergePlan, Result};

/// What the model card is called.
const CARD: &str = "README.md";

/// The folder of an output that is a folder, made if it was not there. Dropped while it is empty, it
/// is removed again.
pub(super) struct OutputFolder {
    made: Option<PathBuf>,
}

impl OutputFolder {
    /// Makes the folder if the output is one and it is not there.
    pub(super) fn make(write: &WriteOptions) -> Result<Self> {
        let folder = folder_of(write);
        if !write.is_folder || folder.is_dir() {
            return Ok(Self { made: None });
        }
        std::fs::create_dir(folder).map_err(|source| Error::io("create", folder, source))?;
        Ok(Self {
            made: Some(folder.to_owned()),
        })
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if let Some(folder) = &self.made {
            // Refused by the system if anything is in it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Checks that nothing is in the way of the files.
pub(super) fn check(plan: &MergePlan, write: &WriteOptions) -> Result<()> {
    if !write.is_folder || !folder_of(write).is_dir() {
        return Ok(());
    }
    for path in paths(plan, write) {
        check_file_target(&path, write.force)?;
    }
    Ok(())
}

/// Writes the files of the inputs and the model card; returns where they are.
pub(super) fn write(
    plan: &MergePlan,
    write: &WriteOptions,
    made: &Provenance,
) -> Result<Vec<PathBuf>> {
    if !write.is_folder {
        return Ok(Vec::new());
    }
    let folder = folder_of(write);
    for file in &plan.beside().files {
        let bytes = match &file.content {
            Content::Text(text) => text.clone().into_bytes(),
            Content::Copy(path) => read_bytes(path)?,
        };
        write_file(&folder.join(&file.name), &bytes, write.force)?;
    }
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let title = absolute.file_name().unwrap_or(absolute.as_os_str());
    let text = card::card(&title.to_string_lossy(), plan.beside(), made)?;
    write_file(&folder.join(CARD), text.as_bytes(), write.force)?;
    Ok(paths(plan, write).collect())
}

fn paths<'a>(plan: &'a MergePlan, write: &'a WriteOptions) -> impl Iterator<Item = PathBuf> + 'a {
    let names = plan.beside().files.iter().map(|file| file.name.as_str());
    names.chain([CARD]).map(|name| folder_of(write).join(name))
}

fn folder_of(write: &WriteOptions) -> &Path {
    match write.path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}
