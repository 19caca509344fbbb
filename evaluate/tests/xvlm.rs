//! X-VLM's JSON files: made of public downloads, read, built into arrow files, and refused where they are wrong.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use evaluate::Error;
use evaluate::build::{BuildReport, build_json};
use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::nlvr2::Nlvr2Set;
use evaluate::datasets::vqa::{Question, VqaSet};
use evaluate::datasets::xvlm::JsonFiles;
use merge::progress::Silent;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::path;
use crate::golden::build::{options, rows, run};

/// Each data set with its folder of pictures and the tables that its JSON files give, those of VQA whose rows do
/// not depend on a draw.
const SETS: [(&str, &str, &[&str]); 4] = [
    (
        "coco",
        "coco",
        &[
            "coco_caption_karpathy_train",
            "coco_caption_karpathy_restval",
            "coco_caption_karpathy_val",
            "coco_caption_karpathy_test",
        ],
    ),
    (
        "f30k",
        "flickr30k",
        &[
            "f30k_caption_karpathy_train",
            "f30k_caption_karpathy_val",
            "f30k_caption_karpathy_test",
        ],
    ),
    ("vqa", "coco", &["vqav2_train", "vqav2_val", "vqav2_test"]),
    (
        "nlvr2",
        "nlvr2",
        &["nlvr2_train", "nlvr2_dev", "nlvr2_test1"],
    ),
];

fn made(dataset: &str, out: &Path) -> Result<BuildReport, Error> {
    let options = options(&path("raw").join(dataset), out);
    build_json(dataset, &options, &Silent, |_, _| ())
}

/// The JSON files of a data set in a folder, and a link to its pictures.
fn folder(dataset: &str, pictures: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    made(dataset, folder.path()).unwrap_or_else(|error| panic!("{dataset}: {error}"));
    let images = folder.path().join("images");
    std::fs::create_dir(&images).expect("made");
    let raw = path("raw").join(dataset);
    std::os::unix::fs::symlink(raw, images.join(pictures)).expect("linked");
    folder
}

#[test]
fn files_of_public_downloads_give_the_arrow_files_of_these_downloads() {
    for (dataset, pictures, tables) in SETS {
        let json = folder(dataset, pictures);
        let out = tempfile::tempdir().expect("a folder");
        run(dataset, &options(json.path(), out.path()))
            .unwrap_or_else(|e| panic!("{dataset}: {e}"));
        for table in tables {
            let name = format!("{table}.arrow");
            let ours = rows(&out.path().join(&name));
            let theirs = rows(&path("arrow").join(&name));
            assert!(ours.keys().eq(theirs.keys()), "{name}");
            for (id, row) in &ours {
                assert!(*row == theirs[id], "{name}, row {id}: {row}");
            }
        }
    }
}

#[test]
fn captions_are_those_of_arrow_files() {
    let json = folder("coco", "coco");
    let by_id = |set: &CaptionSet| -> BTreeMap<String, (Vec<String>, usize)> {
        let images = 0..set.n_images();
        let entries = images.map(|image| {
            let id = set.image_id(image).rsplit('/').next().unwrap_or_default();
            let n_pixels = set.picture(image).expect("a picture").pixels.len();
            (id.to_owned(), (set.captions(image).to_vec(), n_pixels))
        });
        entries.collect()
    };
    for split in ["train+restval", "val", "test"] {
        let open = |folder: &Path| {
            let set = CaptionSet::open(folder, "coco", split);
            set.unwrap_or_else(|error| panic!("{split}: {error}"))
        };
        let (ours, theirs) = (open(json.path()), open(&path("arrow")));
        assert_eq!(by_id(&ours), by_id(&theirs), "{split}");
        ours.check_pictures().expect("all are there");
    }
}

#[test]
fn questions_are_those_of_arrow_files() {
    let json = folder("vqa", "coco");
    let by_id = |set: &VqaSet| -> BTreeMap<i64, Question> {
        let questions = set.questions().iter().cloned();
        let plain = questions.map(|question| {
            let id = question.question_id;
            (
                id,
                Question {
                    image: 0,
                    ..question
                },
            )
        });
        plain.collect()
    };
    for split in ["train", "val", "test"] {
        let open = |folder: &Path| {
            let set = VqaSet::open(folder, split);
            set.unwrap_or_else(|error| panic!("{split}: {error}"))
        };
        let (ours, theirs) = (open(json.path()), open(&path("arrow")));
        assert_eq!(by_id(&ours), by_id(&theirs), "{split}");
        assert_eq!(ours.n_images(), theirs.n_images());
        let answers = |set: &VqaSet, folder: &Path| set.label_answers(folder).expect("answers");
        assert_eq!(
            answers(&ours, json.path()),
            answers(&theirs, &path("arrow"))
        );
        ours.check_pictures().expect("all are there");
        assert!(!ours.image_bytes(0).expect("bytes").is_empty());
    }
    // Both files as one split.
    let both = VqaSet::open(json.path(), "train+val").expect("questions");
    let each = ["train", "val"].map(|split| {
        let set = VqaSet::open(json.path(), split).expect("questions");
        set.questions().len()
    });
    assert_eq!(both.questions().len(), each.iter().sum::<usize>());
}

#[test]
fn statements_are_those_of_arrow_files() {
    let json = folder("nlvr2", "nlvr2");
    for split in ["train", "dev", "test1"] {
        let open = |folder: &Path| {
            let set = Nlvr2Set::open(folder, split);
            set.unwrap_or_else(|error| panic!("{split}: {error}"))
        };
        let (ours, theirs) = (open(json.path()), open(&path("arrow")));
        let said = |set: &Nlvr2Set| -> Vec<(String, String, Option<bool>)> {
            let statements = set.statements().iter();
            let said = statements.map(|s| (s.identifier.clone(), s.sentence.clone(), s.label));
            let mut said: Vec<_> = said.collect();
            said.sort();
            said
        };
        assert_eq!(said(&ours), said(&theirs), "{split}");
        assert_eq!(ours.n_pairs(), theirs.n_pairs());
        ours.check_pictures().expect("all are there");
        let sides = [0, 1].map(|side| ours.image_bytes(0, side).expect("bytes"));
        let pair = |set: &Nlvr2Set, id: &str| {
            let mut statements = set.statements().iter();
            statements
                .find(|s| s.identifier == id)
                .expect("the pair")
                .pair
        };
        let other = pair(&theirs, &ours.statements()[0].identifier);
        assert_eq!(ours.statements()[0].pair, 0);
        for (side, bytes) in sides.iter().enumerate() {
            assert_eq!(*bytes, theirs.image_bytes(other, side).expect("bytes"));
        }
    }
}

#[test]
fn files_that_are_there_stay_and_others_are_not_overwritten_unasked() {
    let out = tempfile::tempdir().expect("a folder");
    let report = made("f30k", out.path()).expect("made");
    assert!(
        report
            .files
            .iter()
            .all(|file| !file.is_old && file.n_rows > 0)
    );
    let again = made("f30k", out.path()).expect("made again");
    assert!(again.files.iter().all(|file| file.is_old));
    std::fs::write(out.path().join("flickr30k_val.json"), "[]").expect("written");
    let error = made("f30k", out.path())
        .expect_err("in the way")
        .to_string();
    assert!(
        error.contains("flickr30k_val.json: is in the way"),
        "{error}"
    );
    let left = std::fs::read_dir(out.path()).expect("a folder");
    assert_eq!(left.count(), 3, "no partial file is left");
}

/// The error that `read` gives for files with these contents.
fn refused<T: std::fmt::Debug>(
    files: &[Value],
    answers: Option<Value>,
    read: impl Fn(&JsonFiles) -> Result<T, Error>,
) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: String, content: &Value| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, content.to_string()).expect("written");
        path
    };
    let named = files.iter().enumerate();
    let paths = named.map(|(nth, content)| write(format!("{nth}.json"), content));
    let mut json = JsonFiles::new(&paths.collect::<Vec<_>>(), folder.path());
    json.roots = ["vqa", "vg"]
        .map(|name| (name.into(), folder.path().into()))
        .into();
    json.answers = answers.map(|list| write("answer_list.json".into(), &list));
    read(&json).expect_err("refused").to_string()
}

fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no {part:?} in: {said}");
    }
    assert!(said.len() < 2000, "{} bytes", said.len());
}

#[test]
fn captions_that_are_wrong_are_named_by_file_entry_and_field() {
    let long = "x".repeat(100_000);
    let good = json!({"image": "a.png", "caption": "a dog", "image_id": 1});
    let cases: [(Value, &[&str]); 10] = [
        (json!([]), &["0.json", "images"]),
        (json!({"image": "a.png"}), &["0.json"]),
        (
            json!([good, {"image": "b.png", "image_id": 2}]),
            &["0.json: ", "row 1", "missing field `caption`"],
        ),
        (
            json!([{"image": "a.png", "caption": "a dog"}]),
            &["0.json: row 0", "`image_id`"],
        ),
        (
            json!([{"image": "a.png", "caption": []}]),
            &["row 0", "`caption` is an empty list"],
        ),
        (
            json!([good, {"image": "b.png", "caption": "x", "image_id": 1}]),
            &["row 1: `image` is \"b.png\"", "\"a.png\""],
        ),
        (
            json!([{"image": "../a.png", "caption": ["x"]}]),
            &["row 0: `image` is \"../a.png\"", "no path within"],
        ),
        (
            json!([{"image": "/etc/a.png", "caption": ["x"]}]),
            &["row 0: `image`", "no path within"],
        ),
        (
            json!([{"image": long, "caption": 7}]),
            &["0.json", "row 0", "caption"],
        ),
        (
            json!([{"image": format!("../{long}"), "caption": ["x"]}]),
            &["row 0", "100003 bytes"],
        ),
    ];
    for (content, parts) in cases {
        let said = refused(&[content], None, CaptionSet::of_json);
        assert_says(&said, parts);
    }
}

#[test]
fn questions_that_are_wrong_are_named_by_file_entry_and_field() {
    let question = |changes: Value| {
        let mut entry = json!({"question": "q", "question_id": 1, "image": "a.png"});
        for (key, value) in changes.as_object().expect("changes") {
            entry[key] = value.clone();
        }
        entry
    };
    let list = || Some(json!(["yes", "no"]));
    let one = question(json!({"answer": ["yes"]}));
    let cases: [(Value, Option<Value>, &[&str]); 11] = [
        (json!([]), list(), &["0.json", "questions"]),
        (
            json!([
                one,
                question(json!({"question_id": 2, "answer": ["maybe"]}))
            ]),
            list(),
            &["0.json: row 1: `answer`", "\"maybe\"", "answer_list.json"],
        ),
        (
            json!([question(json!({"answer": "yes"}))]),
            list(),
            &["row 0: `answer` is one text"],
        ),
        (
            json!([question(json!({"answer": ["yes"], "dataset": "vg"}))]),
            list(),
            &["row 0: `answer` is a list"],
        ),
        (
            json!([question(json!({"dataset": "okvqa"}))]),
            list(),
            &["row 0: `dataset` is \"okvqa\"", "vqa, vg"],
        ),
        (json!([one, one]), list(), &["0.json", "question", "1"]),
        (
            json!([question(json!({"question_id": "x1"}))]),
            list(),
            &["row 0: `question_id` is \"x1\""],
        ),
        (
            json!([question(json!({"question": 3}))]),
            list(),
            &["0.json", "question"],
        ),
        (json!([one]), None, &["answer_list.json", "0.json"]),
        (
            json!([one]),
            Some(json!(["yes", "no", "yes"])),
            &["answer_list.json", "yes"],
        ),
        (
            json!([one]),
            Some(json!([])),
            &["answer_list.json", "answers"],
        ),
    ];
    for (content, answers, parts) in cases {
        let said = refused(&[content], answers, VqaSet::of_json);
        assert_says(&said, parts);
    }
    // The same id may be of another data set.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("q.json");
    let other = question(json!({"answer": "no", "dataset": "vg"}));
    std::fs::write(&file, json!([one, other]).to_string()).expect("written");
    let answers = folder.path().join("a.json");
    std::fs::write(&answers, json!(["yes", "no"]).to_string()).expect("written");
    let mut json = JsonFiles::new(&[file], folder.path());
    json.roots = ["vqa", "vg"]
        .map(|name| (name.into(), folder.path().into()))
        .into();
    json.answers = Some(answers);
    let set = VqaSet::of_json(&json).expect("questions");
    let scores: Vec<f64> = set.questions().iter().map(|q| q.answer_scores[0]).collect();
    assert_eq!(scores, [0.3, 1.0]);
    // Pictures of two data sets are two, though they are called alike.
    assert_eq!(set.n_images(), 2);
}

#[test]
fn statements_that_are_wrong_are_named_by_file_entry_and_field() {
    let statement =
        |images: Value, label: Value| json!({"images": images, "sentence": "s", "label": label});
    let good = statement(json!(["a.png", "b.png"]), json!("True"));
    let unlabelled = json!({"images": ["a.png", "b.png"], "sentence": "s"});
    let cases: [(Value, &[&str]); 6] = [
        (json!([]), &["0.json", "statements"]),
        (
            json!([good, statement(json!(["a.png"]), json!("True"))]),
            &["row 1: `images` has 1 entries"],
        ),
        (
            json!([statement(json!(["a", "b"]), json!("true"))]),
            &["row 0: `label` is \"true\""],
        ),
        (json!([good, unlabelled]), &["row 1: `label`: some entries"]),
        (
            json!([statement(json!(["a", "b/../../c"]), json!("True"))]),
            &["row 0: `image` is"],
        ),
        (
            json!([statement(json!("a"), json!("True"))]),
            &["0.json", "images"],
        ),
    ];
    for (content, parts) in cases {
        let said = refused(&[content], None, Nlvr2Set::of_json);
        assert_says(&said, parts);
    }
}

#[test]
fn a_picture_that_is_not_there_or_lies_elsewhere_is_named_with_its_entry() {
    let folder = tempfile::tempdir().expect("a folder");
    let (pictures, outside) = (folder.path().join("pictures"), folder.path().join("b.png"));
    std::fs::create_dir(&pictures).expect("made");
    std::fs::write(&outside, b"x").expect("written");
    std::os::unix::fs::symlink(&outside, pictures.join("b.png")).expect("linked");
    let file = folder.path().join("list.json");
    let said = |image: &str| {
        let entries = json!([{"image": image, "caption": ["x"]}]);
        std::fs::write(&file, entries.to_string()).expect("written");
        let set = CaptionSet::of_json(&JsonFiles::new(std::slice::from_ref(&file), &pictures));
        let set = set.expect("images");
        let said = set.check_pictures().expect_err("refused").to_string();
        assert_eq!(set.picture(0).expect_err("refused").to_string(), said);
        said
    };
    assert_says(
        &said("a.png"),
        &[
            "list.json: row 0: `image`",
            "the picture \"a.png\" in ",
            "No such file",
        ],
    );
    assert_says(
        &said("b.png"),
        &["list.json: row 0: `image`", "is a link to"],
    );
}

#[test]
fn a_split_of_two_files_needs_both() {
    let json = folder("vqa", "coco");
    std::fs::remove_file(json.path().join("vqa_val_filter.json")).expect("removed");
    let error = VqaSet::open(json.path(), "train+val").expect_err("refused");
    assert_says(
        &error.to_string(),
        &["vqa_val_filter.json nor vqa_val.json"],
    );
    let error = VqaSet::open(json.path(), "val")
        .expect_err("refused")
        .to_string();
    assert_says(&error, &["vqav2_val.arrow", "vqa_val_filter.json"]);
    // A split without a JSON file says which have one.
    let error = VqaSet::open(json.path(), "rest_val").expect_err("refused");
    assert_says(
        &error.to_string(),
        &[
            "vqav2_rest_val.arrow",
            "JSON files of the splits train, test",
        ],
    );
}
