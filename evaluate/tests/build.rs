//! Building arrow files: resuming, bad pictures, damaged annotations.

use std::path::{Path, PathBuf};

use crate::fixture::path;
use crate::golden::build::{options, rows, run};

#[test]
fn the_same_seed_gives_the_same_bytes_and_finished_files_stay() {
    let folders = [
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    ];
    let raw = path("raw/vqa");
    let mut settings = folders
        .each_ref()
        .map(|folder| options(&raw, folder.path()));
    for settings in &settings {
        assert!(
            run("vqa", settings)
                .expect("built")
                .files
                .iter()
                .all(|file| !file.is_old)
        );
    }
    let read = |folder: usize| std::fs::read(folders[folder].path().join("vqav2_rest_val.arrow"));
    assert_eq!(read(0).expect("a file"), read(1).expect("a file"));
    let val = folders[0].path().join("vqav2_val.arrow");
    let made = std::fs::metadata(&val)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    std::fs::remove_file(folders[0].path().join("vqav2_train.arrow")).expect("removed");
    let report = run("vqa", &settings[0]).expect("resumed");
    let old: Vec<bool> = report.files.iter().map(|file| file.is_old).collect();
    assert_eq!(old, [false, true, true, true, true, true]);
    let still = std::fs::metadata(&val)
        .and_then(|metadata| metadata.modified())
        .expect("a time");
    assert_eq!(made, still);

    // Another seed is another data set: not taken for finished, and not overwritten unasked.
    settings[0].seed = 1;
    let error = run("vqa", &settings[0])
        .expect_err("other options")
        .to_string();
    assert!(
        error.contains("vqav2_train.arrow: is in the way: it was built of other"),
        "{error}"
    );
    settings[0].force = true;
    run("vqa", &settings[0]).expect("forced");
    assert_ne!(read(0).expect("a file"), read(1).expect("a file"));
    let left = std::fs::read_dir(folders[0].path()).expect("a folder");
    assert_eq!(left.count(), 6, "no partial file is left");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let from = entry.expect("an entry").path();
        let to = to.join(from.file_name().expect("a name"));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("copied");
        }
    }
}

/// A copy of a raw folder, and an empty folder for the result.
fn copied(dataset: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let (raw, out) = (folder.path().join("raw"), folder.path().join("out"));
    copy_folder(&path("raw").join(dataset), &raw);
    (folder, raw, out)
}

#[test]
fn bad_pictures_are_all_named_and_left_out_only_when_asked() {
    let (_folder, raw, out) = copied("f30k");
    let table = out.join("f30k_caption_karpathy_test.arrow");
    let mut settings = options(&raw, &out);
    settings.splits = vec!["test".into()];
    let images = raw.join("flickr30k-images");
    let of_test: Vec<String> = (rows(&path("arrow/f30k_caption_karpathy_test.arrow")).values())
        .map(|row| row["image_id"].as_str().expect("an id").to_owned())
        .collect();
    let bytes = std::fs::read(images.join(&of_test[0])).expect("a picture");
    std::fs::write(images.join(&of_test[0]), &bytes[..bytes.len() / 2]).expect("written");
    std::fs::remove_file(images.join(&of_test[1])).expect("removed");

    let error = run("f30k", &settings).expect_err("two bad pictures");
    assert!(error.hint().is_some_and(|hint| hint.contains("--skip-bad")));
    let error = error.to_string();
    assert!(
        error.contains("2 of its pictures cannot be used"),
        "{error}"
    );
    assert!(
        error.contains(&of_test[0]) && error.contains("it is truncated"),
        "{error}"
    );
    assert!(
        error.contains(&of_test[1]) && error.contains("there is no such file"),
        "{error}"
    );
    assert!(error.contains("dataset_flickr30k.json: row "), "{error}");
    assert!(!table.exists());

    settings.skip_bad = true;
    let report = run("f30k", &settings).expect("built");
    assert_eq!(report.skipped.len(), 2);
    assert_eq!(report.files[0].n_rows, 2);
    assert_eq!(rows(&table).len(), 2);
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("the file is there");
    assert!(text.contains(from), "{from}");
    std::fs::write(path, text.replacen(from, to, 1)).expect("written");
}

#[test]
fn damaged_annotations_are_errors_that_name_file_and_row() {
    for (dataset, file, from, to, message) in [
        (
            "f30k",
            "karpathy/dataset_flickr30k.json",
            "\"split\": \"val\"",
            "\"split\": \"dev\"",
            "split \"dev\" is unknown",
        ),
        (
            "coco",
            "karpathy/dataset_coco.json",
            "\"filename\": \"COCO",
            "\"filename\": \"../COCO",
            "row 0: \"../COCO_val2014_000000465994.jpg\" is not the name of a file",
        ),
        (
            "coco",
            "karpathy/dataset_coco.json",
            "{\"images\"",
            "{\"pictures\"",
            "is not a list of images in Karpathy's form",
        ),
        (
            "vqa",
            "v2_mscoco_val2014_annotations.json",
            "\"question_id\": 4",
            "\"question_id\": 9",
            "v2_OpenEnded_mscoco_val2014_questions.json: question 4",
        ),
        (
            "vqa",
            "v2_mscoco_train2014_annotations.json",
            "\"image_id\": ",
            "\"image_id\": 7",
            "belongs to image ",
        ),
        (
            "nlvr2",
            "nlvr2/data/dev.json",
            "\"label\": \"True\"",
            "\"label\": \"Maybe\"",
            "line 1: the label \"Maybe\" is not True or False",
        ),
        (
            "nlvr2",
            "nlvr2/data/train.json",
            "\"directory\": 14",
            "\"directory\": \"../..\"",
            "line 1: \"../..\" is no name",
        ),
        (
            "vg",
            "annotations/region_descriptions.json",
            "\"image_id\": 1923163",
            "\"image_id\": 1",
            "row 0: regions are of images 1 and 1923163",
        ),
        (
            "sbu",
            "annot.json",
            "[[",
            "[[\"a/..\", \"x\"], [",
            "row 0: \"..\" is not the name",
        ),
    ] {
        let (_folder, raw, out) = copied(dataset);
        let file = raw.join(file);
        edit(&file, from, to);
        let error = run(dataset, &options(&raw, &out))
            .expect_err(message)
            .to_string();
        assert!(error.contains(message), "{error}");
        assert!(error.contains(&raw.display().to_string()), "{error}");
    }
}

#[test]
fn an_empty_split_is_an_error() {
    let (_folder, raw, out) = copied("f30k");
    let file = raw.join("karpathy/dataset_flickr30k.json");
    let text = std::fs::read_to_string(&file).expect("the file is there");
    std::fs::write(
        &file,
        text.replace("\"split\": \"val\"", "\"split\": \"test\""),
    )
    .expect("written");
    let error = run("f30k", &options(&raw, &out))
        .expect_err("no val")
        .to_string();
    assert!(
        error.ends_with("dataset_flickr30k.json: no image is of split \"val\""),
        "{error}"
    );
    let error = run("imagenet", &options(&raw, &out))
        .expect_err("unknown")
        .to_string();
    assert!(
        error.contains("coco, f30k, gcc, cc3m, cc12m, sbu, vg, vqa, nlvr2"),
        "{error}"
    );
}
