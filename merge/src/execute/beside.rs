//! Writing what goes beside the weights.

use std::path::{Path, PathBuf};

use crate::beside::card;
use crate::beside::travel::{Files, travelling};
use crate::io::folder::{NewFolders, folder_of, is_weights_name};
use crate::io::{Belongings, ReadyFile, WriteOptions, check_file_target};
use crate::provenance::Provenance;
use crate::{Error, MergePlan, Result, WriteFault};

/// The file name of the model card.
const CARD: &str = "README.md";

/// Makes the folder of an output that is one, and the folders in it.
pub(super) fn make_folders(plan: &MergePlan, write: &WriteOptions) -> Result<NewFolders> {
    let mut folders = NewFolders::default();
    if write.is_folder {
        folders.make(folder_of(&write.path))?;
        for path in paths(plan, write) {
            folders.make(folder_of(&path))?;
        }
    }
    Ok(folders)
}

/// Checks that nothing is in the way of the files, and returns what of an older model is to be removed.
/// A folder with another model is refused, unless the run `may_replace` it.
pub(super) fn check(
    plan: &MergePlan,
    write: &WriteOptions,
    may_replace: bool,
) -> Result<Vec<PathBuf>> {
    if !write.is_folder || !folder_of(&write.path).is_dir() {
        return Ok(Vec::new());
    }
    for path in paths(plan, write).filter(|path| path.parent().is_some_and(Path::is_dir)) {
        check_file_target(&path, may_replace)?;
    }
    let stale = stale(plan, write)?;
    let is_weights =
        |path: &&PathBuf| path.parent() == Some(folder_of(&write.path)) && is_weights(path);
    if let Some(weights) = stale.iter().find(is_weights).filter(|_| !may_replace) {
        return Err(Error::TargetExists {
            path: weights.clone(),
        });
    }
    if !may_replace {
        return Ok(Vec::new());
    }
    let same = |path: &Path| std::fs::canonicalize(path).ok();
    let inputs: Vec<Option<PathBuf>> = plan.files().iter().map(|file| same(&file.path)).collect();
    match stale.iter().find(|path| inputs.contains(&same(path))) {
        Some(path) => Err(Error::Write(WriteFault::InputInTheWay {
            path: path.clone(),
        })),
        None => Ok(stale),
    }
}

fn is_weights(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(is_weights_name)
}

/// Files of another model in the output's folder that the plan does not replace.
fn stale(plan: &MergePlan, write: &WriteOptions) -> Result<Vec<PathBuf>> {
    let folder = folder_of(&write.path);
    let own: Vec<PathBuf> = paths(plan, write).chain([write.path.clone()]).collect();
    let failed = |source| Error::io("read", folder, source);
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = folder.join(entry.map_err(failed)?.file_name());
        if is_weights(&path) && path.is_file() {
            found.push(path);
        }
    }
    let companions = travelling(&Files::Here(folder.to_owned()))?;
    found.extend(companions.into_values());
    found.sort_unstable();
    found.retain(|path| !own.contains(path));
    Ok(found)
}

/// Makes the files of the inputs and the model card, ready to get their names.
pub(super) fn prepare(
    plan: &MergePlan,
    write: &WriteOptions,
    made: &Provenance,
    stale: &[PathBuf],
) -> Result<Belongings> {
    if !write.is_folder {
        return Ok(Belongings::default());
    }
    let folder = folder_of(&write.path);
    let mut files = Vec::new();
    for file in &plan.beside().files {
        files.push(ReadyFile::new(
            &folder.join(&file.name),
            &file.content.bytes()?,
            write.force,
        )?);
    }
    if plan.beside().ingredients.is_empty() {
        return Ok(Belongings {
            files,
            stale: stale.to_vec(),
        });
    }
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let title = absolute.file_name().unwrap_or(absolute.as_os_str());
    let text = card::card(&title.to_string_lossy(), plan.beside(), made)?;
    files.push(ReadyFile::new(
        &folder.join(CARD),
        text.as_bytes(),
        write.force,
    )?);
    Ok(Belongings {
        files,
        stale: stale.to_vec(),
    })
}

fn paths<'a>(plan: &'a MergePlan, write: &'a WriteOptions) -> impl Iterator<Item = PathBuf> + 'a {
    let names = plan.beside().files.iter().map(|file| file.name.as_str());
    // A conversion is no merge, so it has no card.
    let card = (!plan.beside().ingredients.is_empty()).then_some(CARD);
    names
        .chain(card)
        .map(|name| folder_of(&write.path).join(name))
}
