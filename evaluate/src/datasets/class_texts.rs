//! Texts of classes: names in templates.
//!
//! | path | holds |
//! |---|---|
//! | `<data set>/classes.tsv` | a line for each class: the name of its folder, a tab, the name in texts |
//! | `<data set>/templates.txt` | a template a line, `{}` in place of the name |
//! | `<data set>/classnames.txt` | clip_benchmark's names in texts: a line for each class, in the order of their numbers |
//! | `<data set>/zeroshot_classification_templates.txt` | clip_benchmark's templates, `{c}` in place of the name |
//!
//! Of names, and of templates, the first file that is there counts. Without names a class is called as its folder, spaces in
//! the place of `_`; without templates it is `a photo of a {}.`.

use std::collections::BTreeMap;
use std::path::Path;

use super::packed;
use crate::{DataFault, Error, Result};

/// The template where a data set brings none.
const TEMPLATE: &str = "a photo of a {}.";

/// The mark in place of a class's name, here and in clip_benchmark's files.
const PLACE: &str = "{}";
const THEIR_PLACE: &str = "{c}";

/// Most bytes of all texts together: 80 templates of 21,000 classes take a twentieth of it.
const MAX_TEXT_BYTES: usize = 1 << 30;

/// Every template with every class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassTexts {
    prompts: Vec<String>,
    n_templates: usize,
}

impl ClassTexts {
    /// Names of its files, in the folder of the data set; any may be missing.
    pub const FILES: [&str; 4] = [
        "classes.tsv",
        "templates.txt",
        packed::CLASS_NAMES,
        "zeroshot_classification_templates.txt",
    ];

    /// The texts of classes, by the names of their folders, of the data set in `folder`.
    ///
    /// # Errors
    /// [`DataFault::Classes`] when a class has no name, a template no place for it, a line another form, or the texts are
    /// too many; [`Error::NotAFile`] and [`Error::FileTooLarge`].
    pub fn open(folder: &Path, classes: &[String]) -> Result<Self> {
        let [names_of, templates_of, _, their_templates] =
            Self::FILES.map(|name| folder.join(name));
        let names = match names(&names_of, classes)? {
            Some(names) => names,
            None => their_names(folder, classes)?,
        };
        let templates = match templates(&templates_of, PLACE)? {
            Some(templates) => templates,
            None => templates(&their_templates, THEIR_PLACE)?
                .unwrap_or_else(|| vec![TEMPLATE.to_owned()]),
        };
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
    let Some(text) = packed::note(path)? else {
        return Ok(None);
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(Some(lines.map(str::to_owned).collect()))
}

/// The names of `classnames.txt`, one for each class in their order, or else those of folders.
fn their_names(folder: &Path, classes: &[String]) -> Result<Vec<String>> {
    let Some(names) = packed::class_names(folder)? else {
        let classes = classes.iter();
        return Ok(classes.map(|class| class.replace('_', " ")).collect());
    };
    if names.len() != classes.len() {
        let (n, n_classes) = (names.len(), classes.len());
        let fault = format!("it names {n} classes, but the data have {n_classes}");
        return Err(bad(&folder.join(packed::CLASS_NAMES), fault));
    }
    Ok(names)
}

fn names(path: &Path, classes: &[String]) -> Result<Option<Vec<String>>> {
    let Some(lines) = lines(path)? else {
        return Ok(None);
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
    let names: Vec<String> = classes.iter().map(name).collect::<Result<_>>()?;
    // A name that no class has may be that of a class whose folder is called otherwise.
    named.retain(|folder, _| !classes.iter().any(|class| class == folder));
    if let Some(folder) = named.keys().next() {
        let n = named.len();
        let fault = format!(
            "it names {n} classes that the data do not have, {folder:?} first; remove their lines, or add their folders"
        );
        return Err(bad(path, fault));
    }
    Ok(Some(names))
}

/// The templates of a file, with [`PLACE`] in place of the name; `None` where there is no file.
fn templates(path: &Path, place: &str) -> Result<Option<Vec<String>>> {
    let Some(lines) = lines(path)? else {
        return Ok(None);
    };
    if let Some(line) = lines.iter().find(|line| !line.contains(place)) {
        let fault = format!("the template {line:?} has no {place} for the name of the class");
        return Err(bad(path, fault));
    }
    if lines.is_empty() {
        return Err(bad(path, "it holds no template".to_owned()));
    }
    if place == PLACE {
        return Ok(Some(lines));
    }
    // As clip_benchmark reads them.
    let lines = lines.iter().map(|line| line.trim().replace(place, PLACE));
    Ok(Some(lines.collect()))
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
