//! Annotations of data sets and captions that somebody hostile wrote: refused by name, at once, in few words.

use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program::{Said, vlmerge};

/// Messages stay as short as this whatever a file repeats.
const MAX_MESSAGE_BYTES: usize = 2000;

fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The error of `data build f30k` for annotations.
fn built(images: &str) -> Said {
    let folder = TempDir::new().expect("a folder");
    let raw = folder.path().join("raw");
    for inner in ["karpathy", "flickr30k-images"] {
        std::fs::create_dir_all(raw.join(inner)).expect("made");
    }
    let json = format!(r#"{{"images": [{images}]}}"#);
    std::fs::write(raw.join("karpathy/dataset_flickr30k.json"), json).expect("written");
    let out = folder.path().join("arrow");
    let begun = Instant::now();
    let said = vlmerge(&[
        "data",
        "build",
        "f30k",
        "--split",
        "test",
        "--raw",
        shown(&raw),
        "--out",
        shown(&out),
    ]);
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
    assert!(!out.join("f30k_caption_karpathy_test.arrow").exists());
    said
}

/// An image whose file is called `name`, as JSON.
fn image(name: &str) -> String {
    let name = serde_json::json!(name);
    format!(r#"{{"filename": {name}, "split": "test", "sentences": [{{"raw": "a dog"}}]}}"#)
}

fn assert_refused(said: &Said, words: &str) {
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    let start = said.stderr.chars().take(400).collect::<String>();
    assert!(
        said.stderr.len() < MAX_MESSAGE_BYTES,
        "{} bytes: {start}",
        said.stderr.len()
    );
    assert!(said.stderr.contains(words), "{start}");
}

#[test]
fn names_of_pictures_stay_in_their_folder() {
    let long = "a".repeat(1_000_000);
    for name in [
        "../x.jpg",
        "/etc/passwd",
        "a/b.jpg",
        "..",
        "",
        ".",
        "a\0b.jpg",
        "x.jpg/",
        &long,
    ] {
        let said = built(&image(name));
        assert_refused(&said, "is not the name of a file");
        assert!(said.stderr.contains("row 0"), "{}", said.stderr);
    }
}

#[test]
fn wrong_types_duplicates_and_unknown_splits_are_named() {
    let good = image("a.jpg");
    for (images, words) in [
        (format!("{good}, {good}"), "a.jpg"),
        (format!("{good}, 7"), "row 1"),
        (good.replace(r#""a.jpg""#, "[1]"), "`filename`"),
        (good.replace(r#"[{"raw": "a dog"}]"#, "null"), "`sentences`"),
        (good.replace(r#""a dog""#, "NaN"), "is NaN or infinite"),
        (
            good.replace(r#""test""#, r#""../test""#),
            r#"split "../test" is unknown"#,
        ),
        (
            good.replace(r#""test""#, &format!("\"{}\"", "x".repeat(500_000))),
            "(500000 bytes) is unknown",
        ),
        (
            good.replace(r#""a.jpg""#, &format!("{{\"{}\": 1}}", "k".repeat(500_000))),
            "row 0",
        ),
        (
            good.replace(
                r#"[{"raw""#,
                &format!("\"{}\", \"x\": [{{\"raw\"", "s".repeat(500_000)),
            ),
            "`sentences`",
        ),
        (String::new(), "no image is of split"),
    ] {
        assert_refused(&built(&images), words);
    }
}

#[test]
fn deep_nesting_is_refused_or_passed_over() {
    let good = image("a.jpg");
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}")] {
        // In a field that nobody reads, whole and broken off; and in one that is read.
        let nested = format!("{}1{}", open.repeat(1_000_000), close.repeat(1_000_000));
        let said = built(&good.replacen('{', &format!(r#"{{"x": {nested}, "#), 1));
        assert_refused(&said, "a.jpg");
        let broken = good.replacen('{', &format!(r#"{{"x": {}!, "#, open.repeat(1_000_000)), 1);
        assert_refused(&built(&broken), "row 0");
        let read = good.replace(r#""a dog""#, &nested);
        assert_refused(&built(&read), "`raw`");
    }
}

#[test]
fn captions_of_strangers_are_judged_or_refused() {
    let folder = TempDir::new().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        shown(&path).to_owned()
    };
    let good_annotations =
        r#"{"images": [{"id": 1}], "annotations": [{"image_id": 1, "caption": "a dog"}]}"#;
    let good_results = r#"[{"image_id": 1, "caption": "a dog"}]"#;
    let judged = |annotations: &str, results: &str| {
        let annotations = write("annotations.json", annotations);
        let results = write("results.json", results);
        let begun = Instant::now();
        let said = vlmerge(&[
            "score",
            "captions",
            "--results",
            &results,
            "--annotations",
            &annotations,
        ]);
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{:?}",
            begun.elapsed()
        );
        said
    };
    assert_eq!(judged(good_annotations, good_results).code, Some(0));
    let deep = "[".repeat(2_000_000);
    let long = format!(
        r#"[{{"image_id": 1, "caption": "{}"}}]"#,
        "a ".repeat(2_000_000)
    );
    for (annotations, results, words) in [
        (good_annotations, deep.as_str(), "results.json"),
        (good_annotations, long.as_str(), "4000000 bytes"),
        (
            good_annotations,
            r#"[{"image_id": "1", "caption": "a"}]"#,
            "expected a whole number",
        ),
        (
            good_annotations,
            r#"[{"image_id": 1, "caption": null}]"#,
            "`caption`",
        ),
        (
            good_annotations,
            r#"[{"image_id": 1e400, "caption": "a"}]"#,
            "results.json",
        ),
        (
            good_annotations,
            r#"[{"image_id": 18446744073709551615, "caption": "a"}]"#,
            "`image_id`",
        ),
        (
            good_annotations,
            r#"[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]"#,
            "image 1",
        ),
        (
            good_annotations,
            r#"[{"image_id": 2, "caption": "a"}]"#,
            "2",
        ),
        (good_annotations, "{}", "results.json"),
        (
            r#"{"images": [{"id": 1}, {"id": 1}], "annotations": [{"image_id": 1, "caption": "a"}]}"#,
            good_results,
            "image 1",
        ),
        (
            r#"{"images": [{"id": 1}], "annotations": []}"#,
            good_results,
            "1",
        ),
        (
            r#"{"images": {}, "annotations": []}"#,
            good_results,
            "annotations.json",
        ),
        (deep.as_str(), good_results, "annotations.json"),
    ] {
        assert_refused(&judged(annotations, results), words);
    }
}
