//! From the public downloads of a benchmark to the arrow files that existing code reads.
//!
//! [`build`] plans every file of a data set from its annotations, then reads and checks the
//! pictures in parallel and writes file by file: beside its target, then renamed, so that a file
//! with its right name is whole. Files that are there already are not made again.

mod karpathy;
mod listed;
mod plan;
mod regions;
mod shuffle;
mod statements;
mod vqa;
mod write;

use std::path::{Path, PathBuf};

use merge::Progress;
use serde::Serialize;

use crate::datasets::arrow::Table;
use crate::datasets::{DATASETS, prefetch};
use crate::{DataFault, Error, Result};
use plan::{Picture, TablePlan};
use write::Writer;

/// Where a file says of what it was made.
const NOTE: &str = "vlmerge.build";

/// At most so many bad pictures are listed in an error.
const MAX_LISTED: usize = 20;

/// What to build, from where to where.
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

/// What was built.
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
}

/// A picture that cannot be used.
#[derive(Clone, Debug, Serialize)]
pub struct BadPicture {
    /// The picture file.
    pub path: PathBuf,
    /// The annotation that refers to it: file and row.
    pub place: String,
    /// What is wrong with it.
    pub fault: String,
}

/// Builds the arrow files of `dataset`: `coco`, `f30k`, `vqa`, `nlvr2`, `sbu`, `gcc` or `vg`.
///
/// The row order is that of the annotations, but for VQA's validation images. Pictures are stored
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
) -> Result<BuildReport> {
    let plans = match dataset {
        "coco" => karpathy::plan(&karpathy::COCO, options),
        "f30k" => karpathy::plan(&karpathy::FLICKR30K, options),
        "gcc" => listed::plan(&listed::CONCEPTUAL_CAPTIONS, options),
        "sbu" => listed::plan(&listed::SBU, options),
        "vg" => regions::plan(options),
        "vqa" => vqa::plan(options),
        "nlvr2" => statements::plan(options),
        _ => Err(Error::Data(DataFault::UnknownDataset {
            name: dataset.into(),
            known: (DATASETS.iter().map(|dataset| dataset.name))
                .collect::<Vec<_>>()
                .join(", "),
        })),
    }?;
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(|source| Error::io("create", out, source))?;
    let mut report = BuildReport {
        files: Vec::new(),
        skipped: Vec::new(),
    };
    for plan in plans {
        let path = out.join(format!("{}.arrow", plan.name));
        let note = plan.note(dataset, options);
        let n_rows = match finished(&path, &note, options.force)? {
            Some(n_rows) => {
                report.files.push(BuiltFile {
                    path,
                    n_rows,
                    is_old: true,
                });
                continue;
            }
            None => build_table(plan, &path, &note, options, progress, &mut report.skipped)?,
        };
        report.files.push(BuiltFile {
            path,
            n_rows,
            is_old: false,
        });
    }
    Ok(report)
}

/// The splits to build, of those that there are.
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

/// The rows of a file that was made of the same before.
fn finished(path: &Path, note: &str, force: bool) -> Result<Option<usize>> {
    if !path.exists() {
        return Ok(None);
    }
    let other = |fault: &str| {
        Error::Data(DataFault::OtherTable {
            path: path.into(),
            fault: fault.into(),
        })
    };
    let fault = match Table::open(path) {
        Ok(table) => match table.notes().get(NOTE) {
            Some(found) if found == note => return Ok(Some(table.n_rows())),
            Some(_) => "it was built of other inputs or with other options",
            None => "this program did not build it",
        },
        Err(_) => "it is no arrow file, or a damaged one",
    };
    if force { Ok(None) } else { Err(other(fault)) }
}

fn build_table(
    plan: TablePlan,
    path: &Path,
    note: &str,
    options: &BuildOptions,
    progress: &dyn Progress,
    skipped: &mut Vec<BadPicture>,
) -> Result<usize> {
    let n_workers = std::thread::available_parallelism().map_or(1, usize::from);
    let sizes = plan.rows.iter().flat_map(|row| &row.pictures).map(size_of);
    progress.start(&format!("build {}", plan.name), sizes.sum());
    let mut writer = Writer::create(path, &plan.columns, plan.is_pair, note)?;
    let jobs: Vec<Vec<Picture>> = plan.rows.iter().map(|row| row.pictures.clone()).collect();
    let pictures = prefetch(jobs, n_workers, 4 * n_workers, |pictures| {
        Ok(pictures.iter().map(read_checked).collect::<Vec<_>>())
    });
    let mut bad = Vec::new();
    for (row, pictures) in plan.rows.into_iter().zip(pictures) {
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
                Err(fault) => bad.push(BadPicture {
                    path: picture.path.clone(),
                    place: row.place.to_string(),
                    fault,
                }),
            }
        }
        // After the first bad one the rest is only checked, for the list.
        if whole.len() == row.pictures.len() && (bad.is_empty() || options.skip_bad) {
            writer.push(whole, row.cells)?;
        }
    }
    progress.finish();
    if !bad.is_empty() && !options.skip_bad {
        let listed = bad.iter().take(MAX_LISTED).map(|bad| {
            let BadPicture { path, place, fault } = bad;
            format!("  {} ({place}): {fault}", path.display())
        });
        return Err(Error::Data(DataFault::BadPictures {
            path: path.into(),
            n: bad.len(),
            list: listed.collect::<Vec<_>>().join("\n"),
        }));
    }
    if writer.n_rows() == 0 && !bad.is_empty() {
        return Err(Error::Empty {
            path: path.into(),
            what: "rows, for no picture can be used",
        });
    }
    skipped.extend(bad);
    writer.finish()
}

fn size_of(picture: &Picture) -> u64 {
    std::fs::metadata(&picture.path).map_or(0, |metadata| metadata.len())
}

/// The bytes of a picture that can be decoded, or what is wrong with it.
fn read_checked(picture: &Picture) -> Result<Vec<u8>, String> {
    const MAX_FILE_BYTES: u64 = 256 << 20;
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
