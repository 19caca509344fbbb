//! X-VLM's JSON files from the public downloads of a benchmark.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use merge::Progress;
use serde_json::{Value, json};

use super::plan::{Cell, Picture, Row, TablePlan};
use super::{
    BadPicture, BuildOptions, BuildReport, BuiltFile, bad_pictures, read_pictures, size_of,
};
use crate::datasets::left_out::LeftOut;
use crate::datasets::vqa::ANSWERS;
use crate::datasets::xvlm::ANSWER_LIST;
use crate::datasets::{DATASETS, DatasetSpec, Kind, Split};
use crate::metrics::answers::soft_score_of_count;
use crate::{DataFault, Error, Result};

/// Writes the JSON files of `dataset` that X-VLM and EVE read, from the same downloads as [`build`](super::build),
/// with the list of answers where there are questions. Pictures are decoded once, to know that they can be, and stay
/// where they are: their paths are those in the raw folder.
///
/// Splits are those that have JSON files, such as COCO's `train+restval`. An answer to a question stands in its list
/// as often as it counts: once to four times. Questions that no answer of the list answers are left out.
///
/// # Errors
/// As [`build`](super::build)'s; [`DataFault::UnknownDataset`] for data sets without JSON files;
/// [`DataFault::OtherTable`] when another file is in the way.
pub fn build_json(
    dataset: &str,
    options: &BuildOptions,
    progress: &dyn Progress,
    mut done: impl FnMut(&BuiltFile, &[BadPicture]),
) -> Result<BuildReport> {
    let has_json = |set: &&DatasetSpec| set.splits.iter().any(|split| !split.json.is_empty());
    let found = DatasetSpec::of(dataset).filter(has_json);
    let planned = found.and_then(|set| Some((set, set.plan?)));
    let (set, plan) =
        planned.ok_or_else(|| DatasetSpec::unknown(dataset, DATASETS.iter().filter(has_json)))?;
    let splits = wanted(set, options)?;
    // COCO's `train+restval` is of two public splits.
    let public = splits.iter().flat_map(|split| split.name.split('+'));
    let mut plans = plan(&BuildOptions {
        splits: public.map(str::to_owned).collect(),
        ..options.clone()
    })?;
    let out = &options.out;
    std::fs::create_dir_all(out).map_err(|source| Error::io("create", out, source))?;
    let mut report = BuildReport {
        files: Vec::new(),
        skipped: Vec::new(),
    };
    let answers = plans.iter().flat_map(|plan| &plan.notes);
    let answers = answers.clone().find(|(key, _)| *key == ANSWERS);
    if let Some((_, answers)) = answers {
        // The note is a JSON list.
        let answers: Vec<Value> = serde_json::from_str(answers).unwrap_or_default();
        let mut list = List::create(&out.join(ANSWER_LIST))?;
        answers.iter().try_for_each(|answer| list.push(answer))?;
        let file = list.finish(options, Vec::new())?;
        done(&file, &[]);
        report.files.push(file);
    }
    for split in splits {
        let mut rows = Vec::new();
        let mut left_out = LeftOut::default();
        for table in split.tables {
            if let Some(plan) = plans.iter_mut().find(|plan| plan.name == *table) {
                let TablePlan {
                    rows: own,
                    left_out: by_rule,
                    ..
                } = plan;
                rows.append(own);
                left_out.by_rule.append(by_rule);
            }
        }
        // In the order of the annotations, which arrow files of VQA's validation split do not have.
        rows.sort_by_key(|row| row.place.row);
        let name = split.json.iter().flat_map(|names| names.iter()).next();
        let path = out.join(name.copied().unwrap_or(split.name));
        left_out.planned_rows = rows.len();
        let sizes = rows.iter().flat_map(|row| &row.pictures).map(size_of);
        progress.start(&format!("build {}", path.display()), sizes.sum());
        let mut list = List::create(&path)?;
        left_out.skipped = read_pictures(rows, options, progress, |_, row| {
            let entries = entries(set.kind, split, &options.raw, &row);
            entries.iter().try_for_each(|entry| list.push(entry))
        })?;
        progress.finish();
        if !left_out.skipped.is_empty() && !options.skip_bad {
            return Err(bad_pictures(&path, &left_out.skipped));
        }
        if list.n == 0 {
            return Err(Error::Empty {
                path,
                what: "entries, for no picture can be used",
            });
        }
        let file = list.finish(options, left_out.omissions())?;
        done(&file, &left_out.skipped);
        report.files.push(file);
        report.skipped.extend(left_out.skipped);
    }
    Ok(report)
}

/// The splits to write, of those that have one JSON file.
fn wanted(set: &'static DatasetSpec, options: &BuildOptions) -> Result<Vec<&'static Split>> {
    let with_json = set.splits.iter().filter(|split| split.json.len() == 1);
    let known: Vec<&'static Split> = with_json.collect();
    let names: Vec<&str> = known.iter().map(|split| split.name).collect();
    let wanted = super::chosen(set.name, &names, options)?;
    Ok(known
        .into_iter()
        .filter(|split| wanted.contains(&split.name))
        .collect())
}

/// The entries of a row.
fn entries(kind: Kind, split: &Split, raw: &Path, row: &Row) -> Vec<Value> {
    let name = |picture: &Picture| {
        let inside = picture.path.strip_prefix(raw).unwrap_or(&picture.path);
        inside.display().to_string()
    };
    let images: Vec<String> = row.pictures.iter().map(name).collect();
    let image = images.first().cloned().unwrap_or_default();
    match (kind, row.cells.as_slice()) {
        (Kind::Captions, [Cell::Texts(captions), Cell::Text(id), ..])
            if split.name.starts_with("train") =>
        {
            let entries = captions
                .iter()
                .map(|caption| json!({"image": image, "caption": caption, "image_id": id}));
            entries.collect()
        }
        (Kind::Captions, [Cell::Texts(captions), ..]) => {
            vec![json!({"image": image, "caption": captions})]
        }
        (
            Kind::Questions,
            [
                Cell::Texts(questions),
                Cell::TextLists(answers),
                _,
                Cell::FloatLists(scores),
                _,
                Cell::Integers(ids),
                ..,
            ],
        ) => {
            let pairs = questions.iter().zip(ids).enumerate();
            let entries = pairs.map(|(nth, (question, id))| {
                let mut entry = json!({
                    "question": question, "question_id": id, "image": image, "dataset": "vqa"
                });
                if let (Some(answers), Some(scores)) = (answers.get(nth), scores.get(nth)) {
                    let said = answers.iter().zip(scores);
                    let said = said.flat_map(|(answer, &score)| {
                        std::iter::repeat_n(answer, count_of_soft_score(score))
                    });
                    entry["answer"] = json!(said.collect::<Vec<_>>());
                }
                entry
            });
            entries.collect()
        }
        (Kind::Statements, [Cell::Texts(sentences), Cell::Texts(labels), ..]) => {
            let entry =
                |(sentence, label)| json!({"images": images, "sentence": sentence, "label": label});
            sentences.iter().zip(labels).map(entry).collect()
        }
        _ => Vec::new(),
    }
}

/// The number of people who gave an answer of this score; four stands for four and more.
fn count_of_soft_score(score: f64) -> usize {
    let counts = 1..4;
    let mut found = counts.filter(|&n| soft_score_of_count(n) >= score);
    found.next().unwrap_or(4)
}

/// A JSON list with an entry a line, written beside its target.
struct List {
    target: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    n: usize,
}

impl List {
    fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        // Files of a killed run go; links that others may put there are not followed.
        let partial = target.with_file_name(format!(".{name}.partial"));
        let made = match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => File::create_new(&partial),
        };
        let file = made.map_err(|source| Error::io("create", &partial, source))?;
        Ok(Self {
            target: target.into(),
            partial,
            file: BufWriter::with_capacity(1 << 20, file),
            n: 0,
        })
    }

    fn push(&mut self, entry: &Value) -> Result<()> {
        let before = if self.n == 0 { "[\n" } else { ",\n" };
        self.n += 1;
        let written = write!(self.file, "{before}{entry}");
        written.map_err(|source| Error::io("write", &self.target, source))
    }

    /// Gives the file its name, unless the same is there.
    fn finish(
        mut self,
        options: &BuildOptions,
        left_out: Vec<crate::datasets::left_out::Omission>,
    ) -> Result<BuiltFile> {
        let io = |source| Error::io("write", &self.target, source);
        self.file.write_all(b"\n]\n").map_err(io)?;
        self.file.flush().map_err(io)?;
        self.file.get_ref().sync_all().map_err(io)?;
        let is_old = self.target.exists();
        let is_same = is_old && is_same(&self.partial, &self.target).map_err(io)?;
        if is_old && !is_same && !options.force {
            return Err(Error::Data(DataFault::OtherTable {
                path: self.target.clone(),
                fault: "it holds other entries".into(),
            }));
        }
        if !is_same {
            std::fs::rename(&self.partial, &self.target).map_err(io)?;
        }
        Ok(BuiltFile {
            path: self.target.clone(),
            n_rows: self.n,
            is_old: is_same,
            left_out,
        })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // Renamed, if it was finished: then there is nothing to remove.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Whether two files have the same bytes.
fn is_same(a: &Path, b: &Path) -> std::io::Result<bool> {
    if std::fs::metadata(a)?.len() != std::fs::metadata(b)?.len() {
        return Ok(false);
    }
    let open =
        |path: &Path| File::open(path).map(|file| BufReader::with_capacity(1 << 20, file).bytes());
    let (mut a, mut b) = (open(a)?, open(b)?);
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(true),
            (one, other) if one != other => return Ok(false),
            _ => {}
        }
    }
}
