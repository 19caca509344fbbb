//! Arrow files: other writers, splits, faults, and files that are cut short.

use std::path::{Path, PathBuf};

use evaluate::datasets::arrow::Table;
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::vqa::{VqaSet, label_answers};
use proptest::prelude::*;

use crate::fixture::path;

fn other(name: &str) -> PathBuf {
    path("arrow/other_writers").join(name)
}

#[test]
fn other_writers_say_the_same_in_other_ways() {
    let plain = CaptionSet::open(&path("arrow"), "f30k", "val").expect("a split");
    for name in [
        "stream.arrow",
        "lz4.arrow",
        "legacy.arrow",
        "large.arrow",
        "dictionary.arrow",
        "dictionary_stream.arrow",
        "extra_columns.arrow",
    ] {
        let set = CaptionSet::of_files(&[other(name)]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(set.n_images(), 2, "{name}");
        for image in 0..2 {
            assert_eq!(set.image_id(image), plain.image_id(image), "{name}");
            assert_eq!(set.captions(image), plain.captions(image), "{name}");
            let bytes = set.image_bytes(image).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(bytes, plain.image_bytes(image).expect("bytes"), "{name}");
        }
    }
}

#[test]
fn faults_name_file_row_and_column() {
    for (name, message) in [
        ("zstd.arrow", "it is compressed with zstd; LZ4 is read"),
        ("null_id.arrow", "row 1: column `image_id` is null"),
        ("no_caption.arrow", "row 1: the image has no caption"),
        ("empty.arrow", "holds no images"),
        (
            "missing_column.arrow",
            "has no column `caption`; it has: image, image_id, split",
        ),
        ("absent.arrow", "cannot open"),
    ] {
        let file = other(name);
        let error = CaptionSet::of_files(std::slice::from_ref(&file)).expect_err(name);
        let error = error.to_string();
        assert!(error.starts_with(&file.display().to_string()), "{error}");
        assert!(error.contains(message), "{error}");
    }
    let table = Table::open(&other("large.arrow")).expect("a table");
    let error = table
        .column::<i64>("image_id")
        .expect_err("text")
        .to_string();
    assert!(
        error.contains("column `image_id` is text, expected integers"),
        "{error}"
    );
    let error = table.bytes("image", 2).expect_err("two rows").to_string();
    assert!(error.contains("row 2: there are 2 rows"), "{error}");
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_is_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in [
        "f30k_caption_karpathy_val.arrow",
        "other_writers/stream.arrow",
    ] {
        let bytes = std::fs::read(path("arrow").join(name)).expect("the fixture is there");
        let file = folder.path().join("cut.arrow");
        for length in (0..bytes.len() - 8).step_by(397) {
            std::fs::write(&file, &bytes[..length]).expect("written");
            let outcome = CaptionSet::of_files(std::slice::from_ref(&file));
            // A stream without its end mark is whole at the end of any batch.
            let is_stream_of_fewer =
                name.contains("stream") && outcome.as_ref().is_ok_and(|set| set.n_images() < 2);
            assert!(
                outcome.is_err() || is_stream_of_fewer,
                "{name} cut at {length}"
            );
        }
    }
}

#[test]
fn splits_are_the_files_of_the_table() {
    let folder = path("arrow");
    for (dataset, split, n_images, n_captions) in [
        ("coco", "train", 5, 27),
        ("coco", "train+restval", 7, 38),
        ("coco", "val", 3, 21),
        ("coco", "test", 4, 22),
        ("f30k", "train", 5, 25),
        ("f30k", "published_train", 7, 35),
        ("f30k", "val", 2, 10),
        ("f30k", "published_val", 4, 20),
        ("sbu", "train", 5, 5),
        ("gcc", "train", 5, 5),
        ("gcc", "val", 3, 3),
    ] {
        let set = CaptionSet::open(&folder, dataset, split).unwrap_or_else(|e| panic!("{e}"));
        let counts = (set.n_images(), set.n_captions());
        assert_eq!(counts, (n_images, n_captions), "{dataset} {split}");
    }
    let error = CaptionSet::open(&folder, "coco", "minival").expect_err("no such split");
    assert_eq!(
        error.to_string(),
        "coco has no split \"minival\"; there are: train, train+restval, pretrain, restval, val, test"
    );
    assert!(error.is_usage());
    let error = CaptionSet::open(&folder, "vqa", "test")
        .expect_err("not captions")
        .to_string();
    assert!(
        error.contains("there are: coco, f30k, gcc, cc3m, cc12m, sbu, vg"),
        "{error}"
    );
    let error = CaptionSet::open(&path("raw"), "sbu", "train")
        .expect_err("no files")
        .to_string();
    assert!(
        error.contains("holds no sbu_0.arrow nor code224_sbu_0.arrow"),
        "{error}"
    );
}

fn copy(from: &str, folder: &Path, to: &str) {
    std::fs::copy(path("arrow").join(from), folder.join(to)).expect("copied");
}

#[test]
fn both_spellings_open_and_a_hole_in_the_numbers_does_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    copy("sbu_0.arrow", folder, "code224_sbu_0.arrow");
    copy("sbu_0.arrow", folder, "sbu_1.arrow");
    let set = CaptionSet::open(folder, "sbu", "train").expect("two files");
    assert_eq!(set.n_images(), 10);
    copy("sbu_0.arrow", folder, "sbu_3.arrow");
    let error = CaptionSet::open(folder, "sbu", "train")
        .expect_err("2 is not there")
        .to_string();
    assert!(error.contains("sbu_2.arrow"), "{error}");
}

#[test]
fn repeated_captions_go_only_when_asked() {
    let set = || CaptionSet::open(&path("arrow"), "coco", "train").expect("a split");
    let (all, once) = (set(), set().without_repeats());
    assert!(once.n_captions() < all.n_captions());
    for image in 0..all.n_images() {
        let mut expected: Vec<String> = Vec::new();
        for caption in all.captions(image) {
            if !expected.contains(caption) {
                expected.push(caption.clone());
            }
        }
        assert_eq!(once.captions(image), expected);
    }
}

#[test]
fn questions_of_splits_without_answers_or_without_rows() {
    let test = VqaSet::open(&path("arrow"), "test-dev").expect("a split");
    assert_eq!(test.questions().len(), 8);
    assert!(
        test.questions()
            .iter()
            .all(|question| question.answers.is_empty())
    );
    let both = VqaSet::open(&path("arrow"), "train+val").expect("trainable_val is empty here");
    assert_eq!(both.n_images(), 9);
    let error = VqaSet::open(&path("arrow"), "trainable_val")
        .expect_err("empty")
        .to_string();
    assert!(error.contains("holds no images with questions"), "{error}");
}

#[test]
fn the_classes_of_the_answers_come_from_the_tables() {
    // The order that the README of the fixture gives.
    let expected = [
        "2", "yes", "cat", "red", "3", "1", "brown", "no", "on table", "tabby",
    ];
    let answers = label_answers(&path("arrow")).expect("answers");
    for (label, answer) in &answers {
        assert_eq!(expected[usize::try_from(*label).expect("a class")], answer);
    }
    assert!(answers.len() >= 8, "{answers:?}");
    let error = label_answers(&path("raw"))
        .expect_err("no tables")
        .to_string();
    assert!(error.contains("vqav2_train"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn flipped_bytes_never_panic(
        which in 0_usize..4,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let names = ["f30k_caption_karpathy_val.arrow", "other_writers/stream.arrow",
                     "other_writers/lz4.arrow", "other_writers/dictionary.arrow"];
        let mut bytes = std::fs::read(path("arrow").join(names[which])).expect("the fixture");
        // Headers are at both ends; pictures between are not looked at here.
        let n_heads = 2400.min(bytes.len() / 2);
        for (index, value) in flips {
            let place = index.index(2 * n_heads);
            let place = if place < n_heads { place } else { bytes.len() - 1 - (place - n_heads) };
            bytes[place] = value;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("flipped.arrow");
        std::fs::write(&file, &bytes).expect("written");
        if let Ok(set) = CaptionSet::of_files(&[file]) {
            for image in 0..set.n_images().min(4) {
                let _ = set.image_bytes(image);
            }
        }
    }
}
