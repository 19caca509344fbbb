//! From the public downloads of a benchmark to the arrow files that existing code reads.
//!
//! [`build`] plans every file of a data set from its annotations, then reads and checks the
//! pictures in parallel and writes file by file: beside its target, then renamed, so that a file
//! with its right name is whole. Files that are there already are not made again.

mod json;
pub(crate) mod karpathy;
pub(crate) mod listed;
mod packed;
pub(crate) mod plan;
pub(crate) mod pretraining;
pub(crate) mod regions;
mod shuffle;
pub(crate) mod statements;
mod texts;
pub(crate) mod vqa;
mod write;
mod xvlm;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use merge::Progress;
use serde::Serialize;

use crate::datasets::arrow::Table;
pub use json::build_json;
pub(crate) use texts::NO_PICTURE;

pub use crate::datasets::left_out::BadPicture;
use crate::datasets::left_out::{self, LeftOut, Omission};
use crate::datasets::{DATASETS, DatasetSpec, Kind, prefetch};
use crate::{DataFault, Error, Result};
use plan::{Picture, Row, TablePlan};
use write::Writer;

/// Plans the files of a data set from its annotations.
pub(crate) type Planner = fn(&BuildOptions) -> Result<Vec<TablePlan>>;

/// The metadata key under which a file records its sources.
const NOTE: &str = "vlmerge.build";

/// The most bad pictures that an error lists.
const MAX_LISTED: usize = 20;

/// The folders and the choices of a build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// The folder of the downloads.
    pub raw: PathBuf,
    /// The folder for arrow files; made if it is not there.
    pub out: PathBuf,
    /// The splits to build; all of the data set if empty.
    pub splits: Vec<String>,
    /// For the order of VQA's validation images, whose last 1000 become `rest_val`. The published
    /// program shuffles them without a seed.
    pub seed: u64,
    /// Leave pictures out that cannot be read or decoded, with their texts, instead of failing.
    pub skip_bad: bool,
    /// Replace files that are there but were made of something else.
    pub force: bool,
}

/// The report of a build.
#[derive(Clone, Debug, Serialize)]
pub struct BuildReport {
    /// The files of the data set.
    pub files: Vec<BuiltFile>,
    /// Pictures that were left out.
    pub skipped: Vec<BadPicture>,
}

/// A file of the data set.
#[derive(Clone, Debug, Serialize)]
pub struct BuiltFile {
    /// The file.
    pub path: PathBuf,
    /// Its rows.
    pub n_rows: usize,
    /// Whether it was there already.
    pub is_old: bool,
    /// The omissions of the file, though the annotations have them.
    pub left_out: Vec<Omission>,
}

/// Builds the arrow files of `dataset`, one of those rows of [`DATASETS`] that can be built.
///
/// Calls `done` after every file, so the caller can list what that file leaves out even if a later one fails.
/// A file that is there and lacks pictures which have been repaired since is built again.
///
/// The row order is that of the annotations, except for VQA's validation images. Pictures are stored
/// as their original bytes; each is decoded once, to know that it can be.
///
/// # Errors
/// [`DataFault::UnknownDataset`] and [`DataFault::UnknownSplit`] for names; an error that names file and
/// row for annotations that are damaged or do not fit each other; [`DataFault::BadPictures`] when
/// pictures are missing or broken, unless they are to be skipped; [`DataFault::OtherTable`] when a
/// file is in the way.
pub fn build(
    dataset: &str,
    options: &BuildOptions,
    progress: &dyn Progress,
    mut done: impl FnMut(&BuiltFile, &[BadPicture]),
) -> Result<BuildReport> {
    if let Some(set) = DatasetSpec::of(dataset).filter(|set| set.kind == Kind::Texts) {
        return texts::build(set, options, progress, done);
    }
    let plans = plans(dataset, options)?;
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(|source| Error::io("create", out, source))?;
    let mut report = BuildReport {
        files: Vec::new(),
        skipped: Vec::new(),
    };
    for plan in plans {
        let path = out.join(format!("{}.arrow", plan.name));
        let note = plan.note(dataset, options);
        let (n_rows, left_out, is_old) = match finished(&path, &note, &plan, options)? {
            Some((n_rows, left_out)) => (n_rows, left_out, true),
            None => {
                let (n_rows, left_out) = build_table(plan, &path, &note, options, progress)?;
                (n_rows, left_out, false)
            }
        };
        let file = BuiltFile {
            path,
            n_rows,
            is_old,
            left_out: left_out.omissions(),
        };
        done(&file, &left_out.skipped);
        report.files.push(file);
        report.skipped.extend(left_out.skipped);
    }
    Ok(report)
}

/// The plans of a data set's files. X-VLM's JSON files go before packed files, and both before other downloads.
fn plans(dataset: &str, options: &BuildOptions) -> Result<Vec<TablePlan>> {
    let set = DatasetSpec::of(dataset);
    let planned = set.and_then(|set| Some((set, set.plan?)));
    let (set, plan) = planned.ok_or_else(|| {
        let built = DATASETS.iter().filter(|dataset| dataset.is_built());
        DatasetSpec::unknown(dataset, built)
    })?;
    if let Some(plans) = xvlm::plan(set, options)? {
        return Ok(plans);
    }
    match packed::plan(set, options)? {
        Some(plans) => Ok(plans),
        None => plan(options),
    }
}

/// The splits to build, of the existing ones.
fn chosen<'a>(
    dataset: &'static str,
    known: &'a [&'a str],
    options: &BuildOptions,
) -> Result<Vec<&'a str>> {
    if options.splits.is_empty() {
        return Ok(known.to_vec());
    }
    let chosen = options.splits.iter().map(|name| {
        let found = known.iter().find(|known| *known == name);
        found.copied().ok_or_else(|| {
            Error::Data(DataFault::UnknownSplit {
                dataset,
                name: name.clone(),
                known: known.join(", "),
            })
        })
    });
    chosen.collect()
}

/// The rows of a file that was made of the same before, and what it leaves out; `None` when it is
/// to be built, because there is none, or pictures that it lacks have been repaired.
fn finished(
    path: &Path,
    note: &str,
    plan: &TablePlan,
    options: &BuildOptions,
) -> Result<Option<(usize, LeftOut)>> {
    if !path.exists() {
        return Ok(None);
    }
    match known(path, note, plan) {
        Ok((n_rows, mut left_out)) => {
            if left_out.skipped.is_empty() {
                return Ok(Some((n_rows, left_out)));
            }
            // Only the pictures that it lacks are looked at again.
            let n_before = left_out.skipped.len();
            left_out.skipped = still_bad(&left_out.skipped, plan);
            if left_out.skipped.is_empty() {
                return Ok(None);
            }
            if !options.skip_bad {
                return Err(bad_pictures(path, &left_out.skipped));
            }
            let is_same = left_out.skipped.len() == n_before;
            Ok(is_same.then_some((n_rows, left_out)))
        }
        Err(_) if options.force => Ok(None),
        Err(fault) => Err(Error::Data(DataFault::OtherTable {
            path: path.into(),
            fault,
        })),
    }
}

/// A file that was made of the same plan, or how it differs.
fn known(path: &Path, note: &str, plan: &TablePlan) -> Result<(usize, LeftOut), String> {
    let damaged = |_| "it is no arrow file, or a damaged one".to_owned();
    let table = Table::open(path).map_err(damaged)?;
    let found = table.notes().get(NOTE);
    let found = found.ok_or("this program did not build it")?;
    let left_out = LeftOut::of(&table).map_err(damaged)?;
    let left_out =
        left_out.ok_or("an older version built it, which did not note what it left out")?;
    let has_note = |(key, note): &(&str, String)| table.notes().get(*key) == Some(note);
    let is_same = found == note
        && left_out.by_rule == plan.left_out
        && left_out.skipped.iter().all(|bad| bad.row < plan.rows.len())
        && plan.notes.iter().all(has_note);
    match is_same {
        true => Ok((table.n_rows(), left_out)),
        false => Err("it was built of other inputs or with other options".into()),
    }
}

/// Decodes bad pictures again; returns those that still fail, each with its present fault.
fn still_bad(bad: &[BadPicture], plan: &TablePlan) -> Vec<BadPicture> {
    let rows: BTreeSet<usize> = bad.iter().map(|bad| bad.row).collect();
    let mut found = Vec::new();
    for (number, row) in rows
        .into_iter()
        .filter_map(|n| Some((n, plan.rows.get(n)?)))
    {
        for picture in &row.pictures {
            if let Err(fault) = read_checked(picture) {
                found.push(row.bad_picture(picture, fault, number));
            }
        }
    }
    found
}

fn bad_pictures(path: &Path, bad: &[BadPicture]) -> Error {
    let listed = bad.iter().take(MAX_LISTED).map(|bad| {
        let BadPicture {
            path, place, fault, ..
        } = bad;
        format!("  {} ({place}): {fault}", path.display())
    });
    Error::Data(DataFault::BadPictures {
        path: path.into(),
        n: bad.len(),
        list: listed.collect::<Vec<_>>().join("\n"),
    })
}

fn build_table(
    plan: TablePlan,
    path: &Path,
    note: &str,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<(usize, LeftOut)> {
    let sizes = plan.rows.iter().flat_map(|row| &row.pictures).map(size_of);
    progress.start(&format!("build {}", plan.name), sizes.sum());
    let mut notes = vec![(NOTE, note)];
    notes.extend(plan.notes.iter().map(|(key, note)| (*key, note.as_str())));
    let pictures: &[&str] = match plan.is_pair {
        true => &["image_0", "image_1"],
        false => &["image"],
    };
    let mut writer = Writer::create(path, pictures, &plan.columns, &notes)?;
    let planned_rows = plan.rows.len();
    let bad = read_pictures(plan.rows, options, progress, |pictures, row| {
        writer.push(pictures, row.cells)
    })?;
    if !bad.is_empty() && !options.skip_bad {
        return Err(bad_pictures(path, &bad));
    }
    if writer.n_rows() == 0 && !bad.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "rows, for no picture can be used",
        });
    }
    let left_out = LeftOut {
        by_rule: plan.left_out,
        skipped: bad,
        planned_rows,
    };
    // Names and numbers always have a JSON form.
    let last_note = serde_json::to_string(&left_out).unwrap_or_default();
    let n_rows = writer.finish(left_out::NOTE, &last_note)?;
    Ok((n_rows, left_out))
}

/// Reads and checks the pictures of rows on all threads, and hands over each row with their bytes, in order.
/// Returns the pictures that cannot be used; after the first of them rows are only checked, for the list, unless
/// bad ones are to be skipped.
fn read_pictures(
    rows: Vec<Row>,
    options: &BuildOptions,
    progress: &dyn Progress,
    mut push: impl FnMut(Vec<Vec<u8>>, Row) -> Result<()>,
) -> Result<Vec<BadPicture>> {
    let n_workers = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs: Vec<Vec<Picture>> = rows.iter().map(|row| row.pictures.clone()).collect();
    let pictures = prefetch(jobs, n_workers, 4 * n_workers, |pictures| {
        Ok(pictures.iter().map(read_checked).collect::<Vec<_>>())
    });
    let mut bad = Vec::new();
    for (number, (row, pictures)) in rows.into_iter().zip(pictures).enumerate() {
        if progress.is_cancelled() {
            return Err(merge::Error::Cancelled.into());
        }
        let mut whole = Vec::with_capacity(pictures.as_ref().map_or(0, Vec::len));
        for (picture, outcome) in row.pictures.iter().zip(pictures?) {
            match outcome {
                Ok(bytes) => {
                    progress.advance(bytes.len() as u64);
                    whole.push(bytes);
                }
                Err(fault) => bad.push(row.bad_picture(picture, fault, number)),
            }
        }
        if whole.len() == row.pictures.len() && (bad.is_empty() || options.skip_bad) {
            push(whole, row)?;
        }
    }
    Ok(bad)
}

fn size_of(picture: &Picture) -> u64 {
    if picture.packed.is_some() {
        return 0;
    }
    std::fs::metadata(&picture.path).map_or(0, |metadata| metadata.len())
}

/// The bytes of a picture that can be decoded, or its fault.
fn read_checked(picture: &Picture) -> Result<Vec<u8>, String> {
    const MAX_FILE_BYTES: u64 = 256 << 20;
    if let Some((set, index)) = &picture.packed {
        let bytes = set.image_bytes(*index).map_err(|error| error.to_string())?;
        crate::images::decode(&bytes).map_err(|error| error.to_string())?;
        return Ok(bytes);
    }
    let metadata = std::fs::metadata(&picture.path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        _ => error.to_string(),
    })?;
    if !metadata.is_file() {
        return Err("is not a regular file".into());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(format!("has {} bytes", metadata.len()));
    }
    let bytes = std::fs::read(&picture.path).map_err(|error| error.to_string())?;
    crate::images::decode(&bytes).map_err(|error| error.to_string())?;
    Ok(bytes)
}
