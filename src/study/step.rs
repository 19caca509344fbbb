//! A step of a study: commands of this program, what they read, what they leave.

use std::path::PathBuf;

use serde_json::Value;

use super::pace::Quota;

/// A file or folder that a step reads or writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file of another step, by the step's name and a path in its folder.
    Of(String, String),
    /// In the step's own folder.
    Own(String),
    /// A file of the user.
    Outside(PathBuf),
}

/// A word of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// As it stands.
    Text(String),
    /// A path.
    Path(Place),
}

impl From<&str> for Word {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Word {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Place> for Word {
    fn from(place: Place) -> Self {
        Self::Path(place)
    }
}

/// A file that is written into the step's folder before its commands run.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// Its name.
    pub name: String,
    /// Its contents, as YAML.
    pub document: Value,
    /// Places in it, by JSON pointer, whose values are paths.
    pub paths: Vec<(String, Place)>,
    /// Numbers of steps in it, by JSON pointer, that follow from what earlier steps measured.
    pub lengths: Vec<(String, Quota)>,
}

impl Draft {
    /// A file without paths.
    pub fn new(name: impl Into<String>, document: Value) -> Self {
        Self {
            name: name.into(),
            document,
            paths: Vec::new(),
            lengths: Vec::new(),
        }
    }
}

/// The kinds of work that steps do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It trains: it has a device, and may be launched on several.
    Train,
    /// It runs a model: it has a device.
    Run,
    /// It needs neither.
    Plain,
}

/// A step of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name, which is also that of its folder.
    pub name: String,
    /// The kind of its work.
    pub kind: Kind,
    /// Files that are written first.
    pub drafts: Vec<Draft>,
    /// Commands, one after the other.
    pub commands: Vec<Vec<Word>>,
    /// The files that it leaves in its folder.
    pub outputs: Vec<String>,
}

impl Step {
    /// A step without commands.
    pub fn new(name: impl Into<String>, kind: Kind, outputs: &[&str]) -> Self {
        Self {
            name: name.into(),
            kind,
            drafts: Vec::new(),
            commands: Vec::new(),
            outputs: outputs.iter().map(|&output| output.to_owned()).collect(),
        }
    }

    /// The same with one more command.
    pub fn command(mut self, words: impl IntoIterator<Item = Word>) -> Self {
        self.commands.push(words.into_iter().collect());
        self
    }

    /// One of its outputs, for another step.
    pub fn output(&self, path: &str) -> Place {
        Place::Of(self.name.clone(), path.to_owned())
    }

    /// All places that it reads or writes.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let words = self.commands.iter().flatten();
        let of_words = words.filter_map(|word| match word {
            Word::Path(place) => Some(place),
            Word::Text(_) => None,
        });
        let paths = self.drafts.iter().flat_map(|draft| &draft.paths);
        let lengths = self.drafts.iter().flat_map(|draft| &draft.lengths);
        let of_lengths = lengths.flat_map(|(_, quota)| quota.places());
        (of_words.chain(paths.map(|(_, place)| place))).chain(of_lengths)
    }

    /// Names of steps that must be finished before.
    pub fn needs(&self) -> impl Iterator<Item = &str> {
        self.places().filter_map(|place| match place {
            Place::Of(step, _) => Some(step.as_str()),
            _ => None,
        })
    }
}
