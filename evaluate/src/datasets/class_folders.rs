//! Pictures in a folder for each class, as ImageNet is kept.
//!
//! | path | holds |
//! |---|---|
//! | `<folder>/<data set>/<split>/<class>/` | the pictures of a class, in folders within it if need be |
//!
//! Classes are numbered in the order of their names by bytes, as torchvision's `ImageFolder` numbers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::left_out::Omission;
use super::pictures::is_inside;
use crate::images::{self, Rgb};
use crate::{DataFault, Error, Result};

/// The key of a checkpoint's metadata that holds the names of the classes of its head, a JSON list.
pub const CLASSES: &str = "vlmerge.classes";

/// The pictures of a split, each of one class.
#[derive(Debug)]
pub struct ClassFolders {
    path: PathBuf,
    classes: Vec<String>,
    pictures: Vec<Picture>,
    n_others: usize,
}

/// A picture file and its class.
#[derive(Debug)]
struct Picture {
    /// Its path within the split's folder.
    name: String,
    path: PathBuf,
    class: usize,
}

impl ClassFolders {
    /// Opens a split such as `val` of a data set in a folder. Pictures come class by class, by their
    /// paths.
    ///
    /// # Errors
    /// [`DataFault::DatasetName`] for a name that leads out of the folder, [`DataFault::Classes`] when a
    /// class has no picture or a picture no class, [`Error::Empty`], and when a folder cannot be listed.
    pub fn open(folder: &Path, dataset: &str, split: &str) -> Result<Self> {
        let outside = [dataset, split].into_iter().find(|name| !is_inside(name));
        if let Some(name) = outside {
            return Err(Error::Data(DataFault::DatasetName { name: name.into() }));
        }
        Self::of_folder(&folder.join(dataset).join(split))
    }

    fn of_folder(path: &Path) -> Result<Self> {
        let mut of_classes: BTreeMap<String, Vec<(String, PathBuf)>> = BTreeMap::new();
        for class in class_names(path)? {
            of_classes.insert(class, Vec::new());
        }
        let (found, n_others) = images::list(path)?;
        let fault = |fault: String| {
            Error::Data(DataFault::Classes {
                path: path.into(),
                fault,
            })
        };
        for (name, file) in found {
            let class = name.split_once('/').map(|(class, _)| class.to_owned());
            match class.and_then(|class| of_classes.get_mut(&class)) {
                Some(pictures) => pictures.push((name, file)),
                None => {
                    let reason = format!("{name} is in no class's folder; move it to one");
                    return Err(fault(reason));
                }
            }
        }
        if let Some((class, _)) = of_classes.iter().find(|(_, pictures)| pictures.is_empty()) {
            let reason = format!("the folder of the class {class:?} holds no picture");
            return Err(fault(reason));
        }
        let mut opened = Self {
            path: path.into(),
            classes: Vec::with_capacity(of_classes.len()),
            pictures: Vec::new(),
            n_others,
        };
        for (number, (class, pictures)) in of_classes.into_iter().enumerate() {
            opened.classes.push(class);
            let pictures = pictures.into_iter().map(|(name, path)| Picture {
                name,
                path,
                class: number,
            });
            opened.pictures.extend(pictures);
        }
        Ok(opened)
    }

    /// Number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether there are none, which [`open`](Self::open) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// The folder of the split.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the classes, by number.
    #[must_use]
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// `n` pictures, as even over the classes as can be: the first of each class, then the second, and so
    /// on. Their order and all classes stay.
    #[must_use]
    pub fn evenly(mut self, n: usize) -> Self {
        let mut n_seen = vec![0_usize; self.classes.len()];
        let turn = |picture: &Picture| {
            let of_class = n_seen.get_mut(picture.class)?;
            *of_class += 1;
            Some((*of_class, picture.class))
        };
        let turns: Vec<_> = self.pictures.iter().map(turn).collect();
        let mut sorted = turns.clone();
        sorted.sort_unstable();
        if let Some(end) = sorted.get(n) {
            let mut turns = turns.iter();
            self.pictures
                .retain(|_| turns.next().is_some_and(|turn| turn < end));
        }
        self
    }

    /// The number of a picture's class.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`].
    pub fn class(&self, index: usize) -> Result<usize> {
        Ok(self.entry(index)?.class)
    }

    /// A picture's path within the split's folder.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`].
    pub fn name(&self, index: usize) -> Result<&str> {
        Ok(&self.entry(index)?.name)
    }

    /// A decoded picture.
    ///
    /// # Errors
    /// [`DataFault::NoSuchRow`], and with the file when it cannot be read, is too large or damaged.
    pub fn picture(&self, index: usize) -> Result<Rgb> {
        images::open(&self.entry(index)?.path)
    }

    /// The files that are left out: their names end like none of a picture.
    #[must_use]
    pub fn left_out(&self) -> Vec<Omission> {
        let omission = Omission {
            what: "files".into(),
            why: "no ending of a picture's name".into(),
            n: self.n_others,
            of: self.n_others + self.len(),
            ids: Vec::new(),
            file: self.path.display().to_string(),
        };
        match self.n_others {
            0 => Vec::new(),
            _ => vec![omission],
        }
    }

    /// Each class with the bytes of its pictures: what tells this split from another.
    ///
    /// # Errors
    /// When a file is gone.
    pub fn sizes(&self) -> Result<Vec<(String, u64)>> {
        let mut sizes: Vec<_> = self.classes.iter().map(|name| (name.clone(), 0)).collect();
        for picture in &self.pictures {
            let path = &picture.path;
            let metadata = std::fs::metadata(path);
            let metadata = metadata.map_err(|source| Error::io("open", path, source))?;
            if let Some((_, n_bytes)) = sizes.get_mut(picture.class) {
                *n_bytes += metadata.len();
            }
        }
        Ok(sizes)
    }

    fn entry(&self, index: usize) -> Result<&Picture> {
        self.pictures.get(index).ok_or_else(|| {
            Error::Data(DataFault::NoSuchRow {
                row: index,
                n_rows: self.len(),
            })
        })
    }
}

/// The names of the folders in a folder.
fn class_names(path: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::io("list", path, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (kind, name) = (entry.file_type().map_err(failed)?, entry.file_name());
        let name = name.to_string_lossy().into_owned();
        if kind.is_symlink() && entry.path().is_dir() {
            return Err(Error::Data(DataFault::Classes {
                path: path.into(),
                fault: format!(
                    "{name} is a link to a folder, which is not followed; move the folder here"
                ),
            }));
        }
        if kind.is_dir() {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join("toy/val").join(file);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(path, b"x").expect("written");
        }
    }

    #[test]
    fn classes_are_numbered_by_their_names_and_not_by_the_paths_of_pictures() {
        let folder = tempfile::tempdir().expect("a folder");
        // `cat-b/1.png` comes before `cat/2.jpg` by bytes, the class `cat` before `cat-b`.
        write(
            folder.path(),
            &["cat/2.jpg", "cat-b/1.png", "cat/in/3.JPEG", "cat/notes.txt"],
        );
        let set = ClassFolders::open(folder.path(), "toy", "val").expect("opened");
        assert_eq!(set.classes(), ["cat", "cat-b"]);
        let found: Vec<_> = (0..set.len())
            .map(|i| (set.name(i).expect("a name"), set.class(i).expect("a class")))
            .collect();
        assert_eq!(
            found,
            [("cat/2.jpg", 0), ("cat/in/3.JPEG", 0), ("cat-b/1.png", 1)]
        );
        assert_eq!(set.left_out()[0].n, 1);
        assert_eq!(
            set.sizes().expect("sizes"),
            [("cat".into(), 2), ("cat-b".into(), 1)]
        );
        let error = set.picture(0).expect_err("no picture").to_string();
        assert!(error.contains("toy/val/cat/2.jpg: "), "{error}");
    }

    #[test]
    fn a_limit_takes_pictures_of_all_classes_in_turn() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = [
            "a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg", "c/1.jpg", "c/2.jpg",
        ];
        write(folder.path(), &files);
        let names = |n| {
            let set = ClassFolders::open(folder.path(), "toy", "val").expect("opened");
            let set = set.evenly(n);
            assert_eq!(set.classes(), ["a", "b", "c"]);
            let names = (0..set.len()).map(|i| set.name(i).expect("a name").to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(2), ["a/1.jpg", "b/1.jpg"]);
        assert_eq!(names(4), ["a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.jpg"]);
        assert_eq!(names(6), files);
        assert_eq!(names(usize::MAX), files);
    }

    #[test]
    fn a_class_without_a_picture_and_a_picture_without_a_class_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let fault = || {
            let opened = ClassFolders::open(folder.path(), "toy", "val");
            opened.expect_err("refused").to_string()
        };
        write(folder.path(), &["a/1.jpg", "b/readme.md"]);
        let said = fault();
        assert!(said.contains("class \"b\" holds no picture"), "{said}");
        write(folder.path(), &["b/1.jpg", "2.png"]);
        let said = fault();
        assert!(
            said.contains("toy/val: 2.png is in no class's folder"),
            "{said}"
        );
        let outside = ClassFolders::open(folder.path(), "..", "val");
        assert!(matches!(
            outside,
            Err(Error::Data(DataFault::DatasetName { .. }))
        ));
    }
}
