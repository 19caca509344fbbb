//! Pictures in a folder for each class, as ImageNet is kept.
//!
//! | path | holds |
//! |---|---|
//! | `<folder>/<data set>/<split>/<class>/` | the pictures of a class, in folders within it if there are any |
//!
//! Classes are numbered in the order of their names by bytes, as torchvision's `ImageFolder` numbers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::remote::address::is_address;

use super::{ClassSet, Image, Place, Source};
use crate::{DataFault, Error, Result, images};

/// Whether a folder of this machine has folders.
pub(super) fn has_folders(path: &Path) -> bool {
    !is_address(path) && class_names(path).is_ok_and(|names| !names.is_empty())
}

/// The pictures of the folders in a folder.
pub(super) fn open(path: &Path) -> Result<ClassSet> {
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
    let mut opened = ClassSet {
        path: path.into(),
        classes: Vec::with_capacity(of_classes.len()),
        is_named: true,
        images: Vec::new(),
        source: Source::Folders { n_others },
    };
    for (number, (class, pictures)) in of_classes.into_iter().enumerate() {
        opened.classes.push(class);
        let pictures = pictures.into_iter().map(|(name, path)| Image {
            name,
            place: Place::File(path),
            class: number,
        });
        opened.images.extend(pictures);
    }
    Ok(opened)
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
        let set = ClassSet::open(folder.path(), "toy", "val").expect("opened");
        assert_eq!(set.classes(), ["cat", "cat-b"]);
        let found: Vec<_> = (0..set.len())
            .map(|i| (set.name(i).expect("a name"), set.class(i).expect("a class")))
            .collect();
        assert_eq!(
            found,
            [("cat/2.jpg", 0), ("cat/in/3.JPEG", 0), ("cat-b/1.png", 1)]
        );
        assert_eq!(set.left_out().expect("notes")[0].n, 1);
        let facts = set.facts().expect("facts");
        let sizes: Vec<_> = facts.iter().map(|f| (f.name.as_str(), f.n_bytes)).collect();
        assert_eq!(sizes, [("cat", 2), ("cat-b", 1)]);
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
            let set = ClassSet::open(folder.path(), "toy", "val").expect("opened");
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
            let opened = ClassSet::open(folder.path(), "toy", "val");
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
        let outside = ClassSet::open(folder.path(), "..", "val");
        assert!(matches!(
            outside,
            Err(Error::Data(DataFault::DatasetName { .. }))
        ));
    }
}
