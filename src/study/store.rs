//! The finished steps of a study, and whether they still hold.
//!
//! ```text
//! DIR/steps/NAME/step.json    what the step depends on, as a hash, and whether it is finished
//! DIR/steps/NAME/…            what it reads and leaves
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use evaluate::measure::key_of;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cost::Cost;
use super::step::{Place, Step, Word};
use crate::output::UsageError;

/// Of larger files size and time stand for the content.
const MAX_HASHED_BYTES: u64 = 16 << 20;

/// The record of a step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kept {
    /// Stands for everything that the step depends on.
    pub depends_on: String,
    /// Whether it came to its end.
    pub is_finished: bool,
    /// The seconds that it took.
    pub seconds: f64,
    /// The cost of its commands, if the system tells.
    #[serde(default)]
    pub cost: Option<Cost>,
    /// Its commands, as one could type them.
    pub commands: Vec<String>,
}

/// The folder of a study; one process at a time has it.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Released by the system however the process ends; none where nothing is written.
    _lock: Option<File>,
}

/// The state of a step: to run, to go on with, or finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Finished,
    /// It was stopped and goes on.
    Begun,
    /// It begins, and the files of another are removed.
    New,
}

impl Store {
    /// Opens or makes the folder.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("study.lock");
        let steps = folder.join("steps");
        // Files there are replaced as needed, so they must be a study's.
        if steps.exists() && !path.exists() {
            let what = format!("{} is no study's; choose another --out", steps.display());
            return Err(UsageError(what).into());
        }
        let failed = || format!("cannot create {}", folder.display());
        fs::create_dir_all(folder).with_context(failed)?;
        let Some(lock) = merge::io::lock_file(&path)? else {
            let what = format!("{} is at work in another process", folder.display());
            return Err(UsageError(what).into());
        };
        fs::create_dir_all(&steps).with_context(failed)?;
        Ok(Self {
            folder: folder.into(),
            _lock: Some(lock),
        })
    }

    /// The folder, to look at.
    pub fn at(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            _lock: None,
        }
    }

    /// The folder of a step.
    pub fn of(&self, step: &str) -> PathBuf {
        self.folder.join("steps").join(step)
    }

    /// The path of a place, seen from a step.
    pub fn path(&self, step: &str, place: &Place) -> PathBuf {
        match place {
            Place::Of(other, path) => self.of(other).join(path),
            Place::Own(path) => self.of(step).join(path),
            Place::Outside(path) => path.clone(),
        }
    }

    /// The record of a step. A damaged or missing record counts as none.
    pub fn kept(&self, step: &str) -> Option<Kept> {
        let text = fs::read(self.of(step).join("step.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The state of a step.
    pub fn standing(&self, step: &Step, depends_on: &str) -> Standing {
        let Some(kept) = self.kept(&step.name).filter(|k| k.depends_on == depends_on) else {
            return Standing::New;
        };
        let folder = self.of(&step.name);
        let is_whole = step
            .outputs
            .iter()
            .all(|output| folder.join(output).exists());
        match (kept.is_finished, is_whole) {
            (true, true) => Standing::Finished,
            (true, false) => Standing::New,
            (false, _) => Standing::Begun,
        }
    }

    /// Makes the folder of a step and writes its files.
    pub fn begin(&self, step: &Step, standing: Standing, depends_on: &str) -> Result<()> {
        let folder = self.of(&step.name);
        if standing == Standing::New && folder.exists() {
            let failed = || format!("cannot remove {}", folder.display());
            // First of all what says that it is finished, because this may be stopped halfway.
            let kept = folder.join("step.json");
            if kept.exists() {
                fs::remove_file(kept).with_context(failed)?;
            }
            fs::remove_dir_all(&folder).with_context(failed)?;
        }
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        self.keep(
            &step.name,
            &Kept {
                depends_on: depends_on.to_owned(),
                is_finished: false,
                seconds: 0.0,
                cost: None,
                commands: self.lines(step),
            },
        )?;
        for draft in &step.drafts {
            let mut document = draft.document.clone();
            for (pointer, place) in &draft.paths {
                if let Some(value) = document.pointer_mut(pointer) {
                    *value = json!(self.path(&step.name, place));
                }
            }
            for (pointer, quota) in &draft.lengths {
                let steps = quota.steps(|place| self.path(&step.name, place))?;
                if let Some(value) = document.pointer_mut(pointer) {
                    *value = json!(steps);
                }
            }
            let text = serde_saphyr::to_string(&document)?;
            let path = folder.join(&draft.name);
            merge::io::write_file(&path, text.as_bytes(), true)?;
        }
        Ok(())
    }

    /// Notes the state of a step.
    pub fn keep(&self, step: &str, kept: &Kept) -> Result<()> {
        let text = serde_json::to_vec_pretty(kept)?;
        Ok(merge::io::write_file(
            &self.of(step).join("step.json"),
            &text,
            true,
        )?)
    }

    /// The words of a command as the program takes them.
    pub fn words(&self, step: &str, command: &[Word]) -> Vec<String> {
        let word = |word: &Word| match word {
            Word::Text(text) => text.clone(),
            Word::Path(place) => self.path(step, place).display().to_string(),
        };
        command.iter().map(word).collect()
    }

    /// The commands of a step as one could type them.
    pub fn lines(&self, step: &Step) -> Vec<String> {
        let line = |command: &Vec<Word>| typed(&self.words(&step.name, command));
        step.commands.iter().map(line).collect()
    }
}

fn typed(words: &[String]) -> String {
    let mut line = "vlmerge".to_owned();
    for word in words {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,".contains(c);
        line.push(' ');
        match !word.is_empty() && word.chars().all(is_plain) {
            true => line.push_str(word),
            false => line.push_str(&format!("'{}'", word.replace('\'', r"'\''"))),
        }
    }
    line
}

/// A hash per step of everything that it depends on: its words and files, and in place of the files that
/// other steps leave, the hashes of those steps.
pub fn dependencies(steps: &[Step]) -> Result<BTreeMap<String, String>> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut outside: BTreeMap<PathBuf, Value> = BTreeMap::new();
    for step in steps {
        let mut places = Vec::new();
        for place in step.places() {
            places.push(match place {
                Place::Of(other, path) => json!([known.get(other), path]),
                Place::Own(path) => json!(path),
                Place::Outside(path) => match outside.get(path) {
                    Some(identity) => identity.clone(),
                    None => {
                        let identity = identity(path)?;
                        outside.insert(path.clone(), identity.clone());
                        identity
                    }
                },
            });
        }
        let words = step.commands.iter().flatten().map(|word| match word {
            Word::Text(text) => Some(text),
            Word::Path(_) => None,
        });
        let words: Vec<Option<&String>> = words.collect();
        let drafts: Vec<Value> = (step.drafts.iter())
            .map(|draft| {
                let mut document = draft.document.clone();
                let lengths = draft.lengths.iter().map(|(pointer, _)| pointer);
                // Where a file lies makes no difference, and how many steps it will be nobody knows yet.
                for pointer in draft
                    .paths
                    .iter()
                    .map(|(pointer, _)| pointer)
                    .chain(lengths)
                {
                    if let Some(value) = document.pointer_mut(pointer) {
                        *value = Value::Null;
                    }
                }
                let mut parts = vec![
                    json!(draft.name),
                    document,
                    json!(draft.paths.iter().map(|p| &p.0).collect::<Vec<_>>()),
                ];
                let lengths = draft.lengths.iter();
                parts.extend(lengths.map(|(_, quota)| quota.identity()));
                json!(parts)
            })
            .collect();
        let key = key_of(&json!({
            "program": env!("CARGO_PKG_VERSION"),
            "words": words,
            "drafts": drafts,
            "places": places,
        }));
        known.insert(step.name.clone(), key);
    }
    Ok(known)
}

/// The first thing that is not there though a step reads it, with the step's name.
pub fn missing(steps: &[Step]) -> Option<(&str, &Path)> {
    let outside = steps.iter().flat_map(|step| {
        step.places().filter_map(|place| match place {
            Place::Outside(path) => Some((step.name.as_str(), path.as_path())),
            _ => None,
        })
    });
    outside.into_iter().find(|(_, path)| !path.exists())
}

/// Stands for the content of a file or folder; null if it is not there.
fn identity(path: &Path) -> Result<Value> {
    let failed = || format!("cannot open {}", path.display());
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Value::Null),
        metadata => metadata.with_context(failed)?,
    };
    if metadata.is_dir() {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(path).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            let length = entry.metadata().with_context(failed)?.len();
            files.insert(entry.file_name().to_string_lossy().into_owned(), length);
        }
        return Ok(json!(files));
    }
    if metadata.len() <= MAX_HASHED_BYTES {
        return Ok(json!(key_of(&fs::read(path).with_context(failed)?)));
    }
    let since = metadata
        .modified()
        .ok()
        .and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    Ok(json!([
        metadata.len(),
        since.map(|since| since.as_nanos().to_string())
    ]))
}
