//! EVE's arrow files for pre-training: one caption a row, with and without ids.
#![cfg(unix)]

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray};
use evaluate::datasets::arrow::Table;
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::overview::overview;
use merge::progress::Silent;
use serde_json::{Value, json};

use crate::fixture::path;
use crate::golden::build::{options, run};

/// An arrow file as EVE's scripts write it.
fn write(file: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter(columns).expect("a batch");
    let to = std::fs::File::create(file).expect("made");
    let mut writer = arrow_ipc::writer::FileWriter::try_new(to, &batch.schema()).expect("a writer");
    writer.write(&batch).expect("written");
    writer.finish().expect("finished");
}

fn picture() -> Vec<u8> {
    let file = "raw/coco/train2014/COCO_train2014_000000257055.jpg";
    std::fs::read(path(file)).expect("a picture")
}

#[test]
fn files_with_one_caption_a_row_are_read_with_and_without_ids() {
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = picture();
    let images = || Arc::new(BinaryArray::from(vec![bytes.as_slice(); 2])) as ArrayRef;
    let captions = |texts: [&str; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
    let ids = Arc::new(Int64Array::from(vec![7, 7])) as ArrayRef;
    write(
        &folder.path().join("coco_0.arrow"),
        vec![
            ("image", images()),
            ("caption", captions(["a", "b"])),
            ("image_id", ids),
        ],
    );
    for number in 0..2 {
        let name = format!("sbu_{number}.arrow");
        write(
            &folder.path().join(name),
            vec![("image", images()), ("caption", captions(["c", "d"]))],
        );
    }
    let coco = CaptionSet::open(folder.path(), "coco", "pretrain").expect("pairs");
    // Rows of one image stay two images, as published code has it.
    assert_eq!((coco.n_images(), coco.image_id(1)), (2, "7"));
    assert_eq!(coco.captions(1), ["b"]);
    let sbu = CaptionSet::open(folder.path(), "sbu", "train").expect("pairs");
    assert_eq!((sbu.n_images(), sbu.n_captions()), (4, 4));
    let called: Vec<&str> = (0..4).map(|image| sbu.image_id(image)).collect();
    assert_eq!(
        called,
        ["sbu_0 row 0", "sbu_0 row 1", "sbu_1 row 0", "sbu_1 row 1"]
    );
    assert!(sbu.picture(3).expect("a picture").width > 0);
    // The overview counts their texts, as it does for other files.
    let told = overview(&folder.path().join("sbu_1.arrow"), None, &Silent).expect("texts");
    let texts = told.texts.expect("captions");
    assert_eq!((texts.n, texts.n_distinct), (2, 2));
    // A caption that is neither a text nor a list of texts.
    let numbers = Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef;
    write(
        &folder.path().join("sbu_1.arrow"),
        vec![("image", images()), ("caption", numbers)],
    );
    let error = CaptionSet::open(folder.path(), "sbu", "train").expect_err("refused");
    let error = error.to_string();
    assert!(
        error.contains("sbu_1.arrow: column `caption` is"),
        "{error}"
    );
}

/// The raw folder of COCO with official captions made of those of Karpathy.
fn raw_with_official_captions() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = path("raw/coco");
    for name in ["train2014", "val2014", "karpathy"] {
        std::os::unix::fs::symlink(raw.join(name), folder.path().join(name)).expect("linked");
    }
    let karpathy = std::fs::read(raw.join("karpathy/dataset_coco.json")).expect("read");
    let karpathy: Value = serde_json::from_slice(&karpathy).expect("JSON");
    std::fs::create_dir(folder.path().join("annotations")).expect("made");
    for year in ["train2014", "val2014"] {
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for image in karpathy["images"].as_array().expect("images") {
            if image["filepath"] != year {
                continue;
            }
            let id = images.len();
            images.push(json!({"id": id, "file_name": image["filename"]}));
            for sentence in image["sentences"].as_array().expect("sentences") {
                annotations.push(json!({"image_id": id, "caption": sentence["raw"], "id": 1}));
            }
        }
        let official = json!({"images": images, "annotations": annotations});
        let name = format!("annotations/captions_{year}.json");
        std::fs::write(folder.path().join(name), official.to_string()).expect("written");
    }
    folder
}

#[test]
fn pairs_of_coco_are_built_without_the_test_images() {
    let (raw, out) = (
        raw_with_official_captions(),
        tempfile::tempdir().expect("a folder"),
    );
    let mut options = options(raw.path(), out.path());
    options.splits = vec!["pretrain".into()];
    let report = run("coco", &options).expect("built");
    let set = |split: &str| CaptionSet::open(&path("arrow"), "coco", split).expect("images");
    let n = ["train", "restval", "val"].map(|split| set(split).n_captions());
    let test = set("test");
    assert_eq!(report.files[0].n_rows, n.iter().sum::<usize>());
    assert_eq!(report.files[0].left_out[0].n, test.n_images());
    let table = Table::open(&out.path().join("coco_0.arrow")).expect("a table");
    let columns: Vec<&str> = table
        .fields()
        .iter()
        .map(|field| field.name.as_str())
        .collect();
    assert_eq!(columns, ["image", "caption", "image_id"]);
    let pairs = CaptionSet::open(out.path(), "coco", "pretrain").expect("pairs");
    assert!((0..pairs.n_images()).all(|image| pairs.captions(image).len() == 1));
    let of_test = |id: &str| (0..test.n_images()).any(|image| test.image_id(image) == id);
    assert!((0..pairs.n_images()).all(|image| !of_test(pairs.image_id(image))));

    // A caption of an image that the file does not list is named.
    let file = raw.path().join("annotations/captions_val2014.json");
    let stray = json!({"images": [], "annotations": [{"image_id": 5, "caption": "x"}]});
    std::fs::write(&file, stray.to_string()).expect("written");
    options.force = true;
    let error = run("coco", &options).expect_err("refused").to_string();
    let said = "captions_val2014.json: row 0: `image_id` 5 is of no image";
    assert!(error.contains(said), "{error}");
}

#[test]
fn pairs_of_conceptual_captions_have_a_row_each() {
    let out = tempfile::tempdir().expect("a folder");
    let report = run("cc3m", &options(&path("raw/gcc"), out.path())).expect("built");
    let list = std::fs::read(path("raw/gcc/train_annot.json")).expect("read");
    let list: Vec<[String; 2]> = serde_json::from_slice(&list).expect("pairs");
    assert_eq!(report.files[0].n_rows, list.len());
    let set = CaptionSet::open(out.path(), "cc3m", "train").expect("pairs");
    for (image, [name, caption]) in list.iter().enumerate() {
        assert_eq!(set.captions(image), std::slice::from_ref(caption));
        assert!(name.ends_with(set.image_id(image)));
    }
    assert!(report.files[0].path.ends_with("cc3m_0.arrow"));
}
