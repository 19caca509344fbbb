//! Folders of classes for tests of classifiers: `toy/<split>/<class>` with pictures of the fixtures.

use std::path::PathBuf;

use tempfile::TempDir;

/// The pictures of the fixtures, in the order of their names.
pub(crate) fn pictures() -> Vec<PathBuf> {
    let pictures = std::fs::read_dir("fixtures/real/raw/val2014").expect("pictures");
    let mut pictures: Vec<PathBuf> = pictures
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pictures.sort();
    pictures
}

/// Makes the folder of a class.
pub(crate) fn class_folder(folder: &TempDir, split: &str, class: &str) -> PathBuf {
    let of_class = folder.path().join("toy").join(split).join(class);
    std::fs::create_dir_all(&of_class).expect("made");
    of_class
}

/// Makes a folder with one picture for each class of the golden set `set`. Each split begins with another picture.
pub(crate) fn one_picture_each(folder: &TempDir, set: &str, splits: &[&str]) {
    let pictures = pictures();
    let n_classes = fixtures::json(&format!("{set}/config.json"))["classes"].as_u64();
    for class in 0..n_classes.expect("a number") as usize {
        for (at, split) in splits.iter().enumerate() {
            let of_class = class_folder(folder, split, &format!("class{class}"));
            let picture = &pictures[(class + at) % pictures.len()];
            std::fs::copy(picture, of_class.join("1.jpg")).expect("copied");
        }
    }
}
