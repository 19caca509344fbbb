//! Texts alone, of plain text files with a text a line, as VLMo's language stage reads them.
//!
//! | in the raw folder | becomes |
//! |---|---|
//! | `wikibk.<k>.txt`, k from 0, as VLMo's writer reads them; or else `train/*.txt` | `wikibk_train_<k>.arrow` |
//! | `val/*.txt` | `wikibk_val_<k>.arrow` |
//!
//! A row has the columns of VLMo's files: `image` (the text `None`), `caption` (a list of one text), `source`, `split`.
//! Files are read line by line, so that their size does not matter.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use merge::Progress;
use merge::io::files_in;
use serde_json::json;

use super::plan::{Cell, Kind};
use super::write::Writer;
use super::{BadPicture, BuildOptions, BuildReport, BuiltFile, NOTE};
use crate::datasets::DatasetSpec;
use crate::datasets::arrow::Table;
use crate::datasets::left_out::{self, LeftOut, Omission};
use crate::{DataFault, Error, Result};

/// The longest text.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Columns of VLMo's files.
const COLUMNS: [(&str, Kind); 4] = [
    ("image", Kind::Text),
    ("caption", Kind::Texts),
    ("source", Kind::Text),
    ("split", Kind::Text),
];

/// The text in place of a picture.
pub(crate) const NO_PICTURE: &str = "None";

/// Builds the arrow files of a data set of texts: one for each text file. Blank lines are left out.
pub(super) fn build(
    set: &DatasetSpec,
    options: &BuildOptions,
    progress: &dyn Progress,
    mut done: impl FnMut(&BuiltFile, &[BadPicture]),
) -> Result<BuildReport> {
    let known: Vec<&str> = set.splits.iter().map(|split| split.name).collect();
    let wanted = super::chosen(set.name, &known, options)?;
    let mut files = Vec::new();
    for split in wanted {
        let found = texts_of(set.name, &options.raw, split)?;
        // Training texts are what the set is for; others are there or not.
        if found.is_empty() && (split == "train" || !options.splits.is_empty()) {
            let names = match split {
                "train" => format!("{}.0.txt nor train/*.txt", set.name),
                split => format!("{split}/*.txt"),
            };
            return Err(Error::Data(DataFault::MissingTable {
                folder: options.raw.clone(),
                names,
            }));
        }
        files.extend(
            found
                .into_iter()
                .enumerate()
                .map(|(k, path)| (split, k, path)),
        );
    }
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(|source| Error::io("create", out, source))?;
    let mut report = BuildReport {
        files: Vec::new(),
        skipped: Vec::new(),
    };
    for (split, k, path) in files {
        let name = format!("{}_{split}_{k}", set.name);
        let file = built(set.name, split, &name, &path, options, progress)?;
        done(&file, &[]);
        report.files.push(file);
    }
    Ok(report)
}

/// The text files of a split, in their order.
fn texts_of(set: &str, raw: &Path, split: &str) -> Result<Vec<PathBuf>> {
    let names = files_in(raw)?;
    let numbered = |name: &str| {
        let number = name.strip_prefix(set)?.strip_prefix('.')?;
        number.strip_suffix(".txt")?.parse::<usize>().ok()
    };
    let n = names
        .iter()
        .filter(|(name, _)| numbered(name).is_some())
        .count();
    if split == "train" && n > 0 {
        let files = (0..n).map(|k| raw.join(format!("{set}.{k}.txt")));
        let files: Vec<PathBuf> = files.collect();
        return match files.iter().find(|path| !path.is_file()) {
            // A hole would make the data set silently smaller.
            Some(path) => Err(Error::Data(DataFault::MissingTable {
                folder: raw.into(),
                names: path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into(),
            })),
            None => Ok(files),
        };
    }
    let folder = raw.join(split);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let files = files_in(&folder)?.into_iter();
    let files = files.filter(|(name, _)| name.ends_with(".txt"));
    Ok(files.map(|(_, path)| path).collect())
}

fn built(
    set: &str,
    split: &str,
    name: &str,
    path: &Path,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<BuiltFile> {
    let target = options.out.join(format!("{name}.arrow"));
    // FNV-1a: whether a file that is there is of the same texts.
    let (mut hash, mut n_lines, mut n_texts) = (0xcbf2_9ce4_8422_2325_u64, 0, 0);
    each_line(path, |line| {
        for byte in line.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        n_lines += 1;
        n_texts += usize::from(!is_blank(line));
        Ok(())
    })?;
    let note = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "dataset": set,
        "table": name,
        "planned_rows": n_texts,
        "planned_pictures": 0,
        "annotations": format!("{hash:016x}"),
        "seed": 0,
    });
    let note = note.to_string();
    let omission = Omission {
        what: "lines".into(),
        why: "blank".into(),
        n: n_lines - n_texts,
        of: n_lines,
        ids: Vec::new(),
        file: String::new(),
    };
    let left_out = LeftOut {
        by_rule: (omission.n > 0).then_some(omission).into_iter().collect(),
        skipped: Vec::new(),
        planned_rows: n_texts,
    };
    let file = |n_rows: usize, is_old: bool| BuiltFile {
        path: target.clone(),
        n_rows,
        is_old,
        left_out: left_out.omissions(),
    };
    if target.exists() {
        let found = Table::open(&target).ok();
        let is_same = found.is_some_and(|table| table.notes().get(NOTE) == Some(&note));
        if is_same {
            return Ok(file(n_texts, true));
        }
        if !options.force {
            return Err(Error::Data(DataFault::OtherTable {
                path: target,
                fault: "it was built of other texts".into(),
            }));
        }
    }
    if n_texts == 0 {
        return Err(Error::Empty {
            path: path.into(),
            what: "texts",
        });
    }
    progress.start(&format!("build {name}"), n_texts as u64);
    let mut writer = Writer::create(&target, &[], &COLUMNS, &[(NOTE, &note)])?;
    each_line(path, |line| {
        if is_blank(line) {
            return Ok(());
        }
        if progress.is_cancelled() {
            return Err(merge::Error::Cancelled.into());
        }
        progress.advance(1);
        let texts = [NO_PICTURE, set, split].map(|text| Cell::Text(text.to_owned()));
        let [image, source, split] = texts;
        let caption = Cell::Texts(vec![line.to_owned()]);
        writer.push(Vec::new(), vec![image, caption, source, split])
    })?;
    progress.finish();
    // Names and numbers always have a JSON form.
    let last_note = serde_json::to_string(&left_out).unwrap_or_default();
    let n_rows = writer.finish(left_out::NOTE, &last_note)?;
    Ok(file(n_rows, false))
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

/// The lines of a file without their ends.
fn each_line(path: &Path, mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let io = |source| Error::io("read", path, source);
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let n = (&mut file)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut line);
        if n.map_err(io)? == 0 {
            break;
        }
        let fault = |fault: String| Error::BadLine {
            path: path.into(),
            line: number,
            fault,
        };
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(fault(format!("has more than {MAX_LINE_BYTES} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|_| fault("is not UTF-8".into()))?;
        take(text.trim_end_matches(['\n', '\r']))?;
    }
    Ok(())
}
