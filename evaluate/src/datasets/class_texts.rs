//! Texts of classes: names in templates.
//!
//! | path | holds |
//! |---|---|
//! | `<data set>/classes.tsv` | a line for each class: the name of its folder, a tab, the name in texts |
//! | `<data set>/templates.txt` | a template a line, `{}` in the place of the name |
//!
//! Without the first file a class is called as its folder, spaces in the place of `_`; without the second the template is
//! `a photo of a {}.`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use crate::text::read_at_most;
use crate::{DataFault, Error, Result};

/// The template where a data set brings none.
const TEMPLATE: &str = "a photo of a {}.";

/// What stands for the name of a class.
const PLACE: &str = "{}";

/// Most bytes of either file.
const MAX_BYTES: u64 = 16 << 20;

/// Most bytes of all texts together: 80 templates of 21,000 classes take a twentieth of it.
const MAX_TEXT_BYTES: usize = 1 << 30;

/// Every template with every class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassTexts {
    prompts: Vec<String>,
    n_templates: usize,
}

impl ClassTexts {
    /// Names of its files, in the folder of the data set; either may be missing.
    pub const FILES: [&str; 2] = ["classes.tsv", "templates.txt"];

    /// The texts of classes, by the names of their folders, of the data set in `folder`.
    ///
    /// # Errors
    /// [`DataFault::Classes`] when a class has no name, a template no place for it, a line another form, or the texts are
    /// too many; [`Error::NotAFile`] and [`Error::FileTooLarge`].
    pub fn open(folder: &Path, classes: &[String]) -> Result<Self> {
        let [names_of, templates_of] = Self::FILES.map(|name| folder.join(name));
        let names = names(&names_of, classes)?;
        let templates = templates(&templates_of)?;
        let n_bytes = n_bytes(&names, &templates);
        if n_bytes > MAX_TEXT_BYTES {
            let (n, classes) = (templates.len(), names.len());
            let fault = format!(
                "its {n} templates with {classes} classes are {n_bytes} bytes of text, and at most {MAX_TEXT_BYTES} are read"
            );
            return Err(bad(&templates_of, fault));
        }
        Ok(Self::of(&names, &templates))
    }

    /// Every template with every name.
    fn of(names: &[String], templates: &[String]) -> Self {
        let prompts = names.iter().flat_map(|name| {
            let filled = templates.iter();
            filled.map(move |template| template.replace(PLACE, name))
        });
        Self {
            prompts: prompts.collect(),
            n_templates: templates.len(),
        }
    }

    /// All templates of the first class, then those of the next.
    #[must_use]
    pub fn prompts(&self) -> &[String] {
        &self.prompts
    }

    /// Texts of a class.
    #[must_use]
    pub fn n_templates(&self) -> usize {
        self.n_templates
    }
}

/// Bytes of every template with every name.
fn n_bytes(names: &[String], templates: &[String]) -> usize {
    let of_names: usize = names.iter().map(String::len).sum();
    let of_template = |template: &String| {
        let places = template.matches(PLACE).count();
        let own = template.len() - places * PLACE.len();
        let own = own.saturating_mul(names.len());
        own.saturating_add(places.saturating_mul(of_names))
    };
    let all = templates.iter().map(of_template);
    all.fold(0, usize::saturating_add)
}

fn bad(path: &Path, fault: String) -> Error {
    Error::Data(DataFault::Classes {
        path: path.into(),
        fault,
    })
}

/// The lines of a file, if it is there; empty ones are left out.
fn lines(path: &Path) -> Result<Option<Vec<String>>> {
    let bytes = match read_at_most(path, MAX_BYTES) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let text = String::from_utf8(bytes).map_err(|_| bad(path, "it is not UTF-8".into()))?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(Some(lines.map(str::to_owned).collect()))
}

fn names(path: &Path, classes: &[String]) -> Result<Vec<String>> {
    let Some(lines) = lines(path)? else {
        return Ok(classes
            .iter()
            .map(|class| class.replace('_', " "))
            .collect());
    };
    let mut named: BTreeMap<&str, &str> = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        let parts = line.split_once('\t');
        let (folder, name) = parts.ok_or_else(|| {
            let line = index + 1;
            bad(path, format!("line {line} is no folder, tab and name"))
        })?;
        if named.insert(folder, name.trim()).is_some() {
            return Err(bad(path, format!("the folder {folder:?} has two names")));
        }
    }
    let name = |class: &String| {
        let name = named.get(class.as_str());
        name.map(|name| (*name).to_owned()).ok_or_else(|| {
            let fault = format!("the class {class:?} has no name; add a line for it");
            bad(path, fault)
        })
    };
    classes.iter().map(name).collect()
}

fn templates(path: &Path) -> Result<Vec<String>> {
    let Some(lines) = lines(path)? else {
        return Ok(vec![TEMPLATE.to_owned()]);
    };
    if let Some(line) = lines.iter().find(|line| !line.contains(PLACE)) {
        let fault = format!("the template {line:?} has no {PLACE} for the name of the class");
        return Err(bad(path, fault));
    }
    if lines.is_empty() {
        return Err(bad(path, "it holds no template".to_owned()));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_templates_come_from_files_or_from_the_folders() {
        let folder = tempfile::tempdir().expect("a folder");
        let classes = ["n01".to_owned(), "red_fox".to_owned()];
        let texts = ClassTexts::open(folder.path(), &classes).expect("texts");
        assert_eq!(
            texts.prompts(),
            ["a photo of a n01.", "a photo of a red fox."]
        );
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).expect("written");
        };
        write("templates.txt", "a {}.\n\nthe {}\n");
        write("classes.tsv", "n01\ttench\nred_fox\tfox\n");
        let texts = ClassTexts::open(folder.path(), &classes).expect("texts");
        assert_eq!(
            texts.prompts(),
            ["a tench.", "the tench", "a fox.", "the fox"]
        );
        assert_eq!(texts.n_templates(), 2);
        write("classes.tsv", "n01\ttench\n");
        let error = ClassTexts::open(folder.path(), &classes).expect_err("refused");
        assert!(error.to_string().contains("red_fox"), "{error}");
        write("templates.txt", &"{}".repeat(4 << 20));
        let long = format!("n01\t{}\n", "tench".repeat(1 << 10));
        write("classes.tsv", &long);
        let error = ClassTexts::open(folder.path(), &classes[..1]).expect_err("refused");
        assert!(error.to_string().contains("bytes of text"), "{error}");
        write("classes.tsv", "n01\ttench\n");
        write("templates.txt", "a photo\n");
        let error = ClassTexts::open(folder.path(), &classes[..1]).expect_err("refused");
        assert!(error.to_string().contains("a photo"), "{error}");
    }
}
