//! Shards of webdatasets and parquet files, as their libraries write them, and damaged.

use std::path::{Path, PathBuf};

use evaluate::datasets::captions::CaptionSet;
use evaluate::datasets::class_texts::ClassTexts;
use evaluate::datasets::classes::ClassSet;
use evaluate::datasets::vqa::VqaSet;
use evaluate::datasets::{Dataset, Kind, kind};
use fixtures::tar::{header, summed, tar};
use tempfile::TempDir;

/// The draws and the facts of a picture by `tests/packed_reference.py`.
const COLORS: [(&str, [u8; 3]); 3] = [
    ("red", [200, 30, 30]),
    ("green", [30, 160, 40]),
    ("blue", [40, 60, 210]),
];

fn captions(number: usize) -> Vec<String> {
    let color = COLORS[number % 3].0;
    let mut captions = vec![format!("a {color} picture, number {number}")];
    captions.extend(vec![format!("some {color}"); number % 3]);
    captions
}

/// Looks at a picture's color and at its spot.
fn assert_drawn(picture: &evaluate::images::Rgb, number: usize, what: &str) {
    let spot = (number % 8, number / 8 % 6);
    for (place, color) in [(spot, [255; 3]), ((7, 5), COLORS[number % 3].1)] {
        assert_eq!(
            picture.pixel(place.0, place.1),
            Some(color),
            "{what}: {number}"
        );
    }
}

fn packed(name: &str) -> PathBuf {
    fixtures::path("packed").join(name)
}

/// A data set `x` with a file.
fn with_file(name: &str, bytes: &[u8]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("x").join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
    folder
}

fn said<T: std::fmt::Debug>(result: evaluate::Result<T>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn parquet_files_of_every_form_hold_the_same_pictures_texts_and_classes() {
    let forms = [
        "snappy",
        "plain",
        "gzip",
        "lz4",
        "second",
        "second_gzip",
        "no_dictionary",
        "small_pages",
        "small_dictionary",
        "groups",
        "deltas",
    ];
    for form in forms {
        let bytes = std::fs::read(packed(&format!("{form}.parquet"))).expect("a file");
        let folder = with_file("test.parquet", &bytes);
        let set = CaptionSet::open(folder.path(), "x", "test").expect(form);
        // The column `split` says `val` of every fourth row.
        let numbers = [0, 1, 2, 4, 5, 6, 8];
        assert_eq!(set.n_images(), numbers.len(), "{form}");
        for (image, number) in numbers.into_iter().enumerate() {
            assert_eq!(set.captions(image), captions(number), "{form}");
            assert_eq!(set.image_id(image), (100 + number).to_string(), "{form}");
            assert_drawn(&set.picture(image).expect(form), number, form);
        }
        // In any order, too.
        for (image, number) in numbers.into_iter().enumerate().rev() {
            assert_drawn(&set.picture(image).expect(form), number, form);
        }
        let classes = ClassSet::open(folder.path(), "x", "test").expect(form);
        assert_eq!(classes.classes(), ["red", "green", "blue"], "{form}");
        let found: Vec<_> = (0..classes.len())
            .map(|index| classes.class(index).expect("a class"))
            .collect();
        assert_eq!(found, numbers.map(|number| number % 3), "{form}");
    }
}

#[test]
fn a_codec_that_is_not_read_is_an_error_by_its_name() {
    let bytes = std::fs::read(packed("zstd.parquet")).expect("a file");
    let folder = with_file("test.parquet", &bytes);
    let said = said(CaptionSet::open(folder.path(), "x", "test"));
    assert!(
        said.contains("test.parquet") && said.contains("zstd"),
        "{said}"
    );
}

#[test]
fn the_layouts_of_the_hub_are_found() {
    let folder = fixtures::path("packed");
    let set = ClassSet::open(&folder, "cifar", "test").expect("opened");
    assert_eq!(set.classes(), ["red", "green", "blue"]);
    assert_eq!(set.len(), 6);
    for index in 0..6 {
        assert_eq!(set.class(index).expect("a class"), index % 3);
        assert_drawn(&set.picture(index).expect("a picture"), index, "cifar");
    }
    assert_eq!(
        set.name(4).expect("a name"),
        "test-00001-of-00002.parquet/1"
    );
    for (split, numbers) in [("test", &[0, 1, 2, 4, 5, 6][..]), ("val", &[3, 7])] {
        let set = CaptionSet::open(&folder, "flickr", split).expect("opened");
        assert_eq!(set.n_images(), numbers.len());
        for (image, &number) in numbers.iter().enumerate() {
            assert_eq!(set.captions(image), captions(number));
            assert_drawn(&set.picture(image).expect("a picture"), number, split);
        }
    }
    let said = said(CaptionSet::open(&folder, "flickr", "train"));
    assert!(said.contains("names: test, val"), "{said}");
    // Our own columns of questions.
    let set = VqaSet::open(&folder, "val").expect("opened");
    let texts: Vec<_> = (set.questions().iter())
        .map(|question| {
            (
                question.text.as_str(),
                question.image,
                question.answers.join(" "),
            )
        })
        .collect();
    let expected = [
        ("what color?", 0, "red".to_owned()),
        ("is it red?", 0, "yes no".to_owned()),
        ("what color?", 1, "green".to_owned()),
    ];
    assert_eq!(texts, expected);
    assert_eq!(set.questions()[1].answer_scores, [1.0, 0.3]);
    let answers = set.label_answers(&folder).expect("answers");
    assert_eq!(answers[&3], "no");
}

#[test]
fn a_part_that_is_missing_is_an_error() {
    let from = packed("cifar/data/test-00001-of-00002.parquet");
    let bytes = std::fs::read(from).expect("a file");
    let folder = with_file("data/test-00001-of-00002.parquet", &bytes);
    let said = said(ClassSet::open(folder.path(), "x", "test"));
    assert!(said.contains("test-00000-of-00002.parquet"), "{said}");
}

#[test]
fn shards_of_clip_benchmark_are_read_with_its_names_and_templates() {
    let folder = fixtures::path("packed");
    let set = ClassSet::open(&folder, "wds_colors", "test").expect("opened");
    assert_eq!(set.classes(), ["red", "green", "blue"]);
    let names: Vec<_> = (0..set.len())
        .map(|i| set.name(i).expect("a name"))
        .collect();
    let expected = [
        "0.tar/s0000000",
        "0.tar/s0000001",
        "1.tar/s0000002",
        "1.tar/s0000003",
        "2.tar/s0000004",
    ];
    assert_eq!(names, expected);
    for index in 0..5 {
        assert_eq!(set.class(index).expect("a class"), index % 3);
        assert_drawn(&set.picture(index).expect("a picture"), index, "wds");
    }
    let texts = ClassTexts::open(&folder.join("wds_colors"), set.classes()).expect("texts");
    assert_eq!(&texts.prompts()[..2], ["a red picture.", "red"]);
    let set = CaptionSet::open(&folder, "wds_captions", "test").expect("opened");
    assert_eq!(set.n_images(), 4);
    for image in 0..4 {
        assert_eq!(set.captions(image), captions(image));
        assert_drawn(&set.picture(image).expect("a picture"), image, "wds");
    }
}

fn picture() -> Vec<u8> {
    let set = CaptionSet::open(&fixtures::path("packed"), "flickr", "test").expect("opened");
    set.image_bytes(0).expect("bytes")
}

/// A sample with a caption.
fn sample(key: &str, caption: &str, picture: &[u8]) -> Vec<u8> {
    tar(&[
        (&format!("{key}.PNG"), picture),
        (&format!("{key}.txt"), caption.as_bytes()),
    ])
}

#[test]
fn shards_of_any_names_come_in_the_order_of_their_numbers_and_patterns_name_them() {
    let folder = TempDir::new().expect("a folder");
    let inner = folder.path().join("web/train");
    std::fs::create_dir_all(&inner).expect("made");
    for number in [2, 10, 0] {
        // A text is one caption, whatever its line breaks.
        let shard = sample(
            &format!("k{number}"),
            &format!("text\n{number}"),
            &picture(),
        );
        std::fs::write(inner.join(format!("cc-{number}.tar")), shard).expect("written");
    }
    let captions = |split: &str, name: &str| {
        let set = CaptionSet::open(folder.path(), name, split).expect("opened");
        let captions = (0..set.n_images()).map(|image| set.captions(image).join("|"));
        captions.collect::<Vec<_>>()
    };
    assert_eq!(captions("train", "web"), ["text\n0", "text\n2", "text\n10"]);
    assert_eq!(
        captions("cc-{10,2}.tar", "web/train"),
        ["text\n10", "text\n2"]
    );
    let json = tar(&[
        ("a.png", &picture()),
        ("a.json", br#"{"caption": ["one", "two"], "url": "x"}"#),
    ]);
    std::fs::write(folder.path().join("web/json.tar"), json).expect("written");
    assert_eq!(captions("json.tar", "web"), ["one|two"]);
    let said = said(CaptionSet::open(folder.path(), "web", "cc-{0..x}.tar"));
    assert!(said.contains("no pattern"), "{said}");
    // The files of the split decide the kind of the data set.
    let opened = Dataset::open_packed(folder.path(), "web", "train", true).expect("opened");
    assert!(matches!(opened, Dataset::Captions(_)));
    let wds = fixtures::path("packed");
    let opened = Dataset::open_packed(&wds, "wds_colors", "test", true).expect("opened");
    assert!(matches!(opened, Dataset::Classes(_)));
    assert_eq!(kind("imagenet1k").expect("a kind"), Kind::Classes);
}

#[test]
fn faults_of_shards_name_file_and_member() {
    let image = picture();
    let image = image.as_slice();
    let whole = tar(&[("a.png", image), ("a.cls", b"1")]);
    let mut link = header("a.png", b'2', 0);
    link.extend(&whole);
    let mut sized = header("a.png", b'0', 1 << 20);
    sized.extend(image);
    let mut enormous = header("a.png", b'0', 0);
    enormous[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0]);
    let enormous = summed(enormous);
    let huge_name = header("x", b'L', 1 << 20);
    let mut huge_name_whole = huge_name.clone();
    huge_name_whole.resize(512 + (1 << 20), b'a');
    let cases: &[(&str, &[u8], &str)] = &[
        (
            "truncated within a member",
            &sized,
            "a.png: has 1048576 bytes",
        ),
        (
            "truncated within a header",
            &whole[..whole.len() - 1024 - 200],
            "truncated",
        ),
        (
            "without an end",
            &whole[..whole.len() - 1024],
            "truncated: it has no end",
        ),
        (
            "of enormous size",
            &enormous,
            "a.png: has 9151314442816847872 bytes",
        ),
        ("with a name that is too long", &huge_name_whole, "too long"),
        ("empty", &[], "it is empty"),
        ("no archive", &[1; 1024], "there is no header at byte 0"),
        ("compressed", &[0x1f, 0x8b, 8, 0], "compressed with gzip"),
        ("a link", &link, "a.png: is a link"),
        (
            "leading out",
            &tar(&[("../a.png", image), ("../a.cls", b"1")]),
            "../a.png: its name leads out",
        ),
        (
            "from the root",
            &tar(&[("/a.png", image), ("/a.cls", b"1")]),
            "/a.png: its name leads out",
        ),
        (
            "picture alone",
            &tar(&[("a.png", image)]),
            "a.png: has no a.cls, a.txt nor a.json",
        ),
        (
            "class alone",
            &tar(&[("a.cls", b"1"), ("b.png", image), ("b.cls", b"0")]),
            "a.cls: has no picture",
        ),
        (
            "two pictures",
            &tar(&[("a.png", image), ("a.jpg", image), ("a.cls", b"1")]),
            "a.png: is one of two",
        ),
        (
            "twice",
            &tar(&[("a.png", image), ("a.cls", b"1"), ("a.cls", b"2")]),
            "a.cls: is there twice",
        ),
        (
            "again",
            &tar(&[
                ("a.png", image),
                ("a.cls", b"1"),
                ("b.png", image),
                ("b.cls", b"1"),
                ("a.png", image),
                ("a.cls", b"1"),
            ]),
            "a: its key comes again",
        ),
        (
            "no number",
            &tar(&[("a.png", image), ("a.cls", b"cat")]),
            "a.cls: is \"cat\"",
        ),
        (
            "below zero",
            &tar(&[("a.png", image), ("a.cls", b"-1")]),
            "a: its class is -1",
        ),
        (
            "no UTF-8",
            &tar(&[("a.png", image), ("a.cls", b"\xff")]),
            "a.cls: is not UTF-8",
        ),
        (
            "nothing",
            &tar(&[("readme.md", b"hello")]),
            "no sample with a picture",
        ),
    ];
    for (what, bytes, words) in cases {
        let folder = with_file("test/0.tar", bytes);
        let said = said(ClassSet::open(folder.path(), "x", "test"));
        assert!(
            said.contains("0.tar") && said.contains(words),
            "{what}: {said}"
        );
    }
    // A class beyond the names; another number of names than classes; several classes an image.
    let folder = with_file("test/0.tar", &whole);
    let beside = |name: &str, text: &str| {
        std::fs::write(folder.path().join("x").join(name), text).expect("written");
    };
    let open = || ClassSet::open(folder.path(), "x", "test");
    beside("classnames.txt", "only\n");
    let words = said(open());
    assert!(
        words.contains("a: its class is 1, but classes are 0 to 0"),
        "{words}"
    );
    beside("classnames.txt", "one\n\nthree\n");
    assert!(
        said(open()).contains("classnames.txt: line 2"),
        "{}",
        said(open())
    );
    beside("classnames.txt", "same\nsame\n");
    assert_eq!(open().expect("opened").classes(), ["same (0)", "same (1)"]);
    beside("dataset_type.txt", "multilabel\n");
    assert!(said(open()).contains("multilabel"), "{}", said(open()));
    beside("dataset_type.txt", "classification\n");
    beside("test/nshards.txt", "2\n");
    assert!(said(open()).contains("1.tar"), "{}", said(open()));
    beside("test/nshards.txt", "many\n");
    assert!(
        said(open()).contains("nshards.txt: line 1"),
        "{}",
        said(open())
    );
}

#[test]
fn long_names_and_sizes_of_pax_headers_are_read() {
    let image = picture();
    let long = "folder/".repeat(30);
    let name = format!("{long}a");
    let mut archive = header("././@LongLink", b'L', name.len() + 5);
    archive.extend(format!("{name}.png\0").bytes());
    archive.resize(1024, 0);
    archive.extend(header("cut.png", b'0', image.len()));
    archive.extend(&image);
    archive.resize(archive.len().next_multiple_of(512), 0);
    let record = format!("path={name}.cls\n");
    let record = format!("{} {record}", record.len() + 4);
    archive.extend(header("PaxHeader", b'x', record.len()));
    archive.extend(record.bytes());
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive.extend(tar(&[("cut.cls", b"0")]));
    let folder = with_file("test/0.tar", &archive);
    let set = ClassSet::open(folder.path(), "x", "test").expect("opened");
    assert_eq!(set.name(0).expect("a name"), format!("0.tar/{name}"));
    assert_drawn(&set.picture(0).expect("a picture"), 0, "long");
}

#[test]
fn parquet_of_another_schema_is_refused_by_its_columns() {
    let bytes = std::fs::read(packed("cifar/data/test-00000-of-00002.parquet")).expect("a file");
    let folder = with_file("test.parquet", &bytes);
    let words = said(CaptionSet::open(folder.path(), "x", "test"));
    assert!(
        words.contains("no column `caption`; it has: img, fine_label, coarse_label"),
        "{words}"
    );
    let words = said(ClassSet::open(&fixtures::path("packed"), "vqa", "val"));
    assert!(words.contains("no column `label`"), "{words}");
}

/// Reads all of a set, if it opens.
fn read_all(folder: &Path) -> evaluate::Result<()> {
    let set = CaptionSet::open(folder, "x", "test")?;
    (0..set.n_images()).try_for_each(|image| set.image_bytes(image).map(drop))
}

#[test]
fn damaged_parquet_files_are_errors_and_never_more() {
    for form in ["snappy", "small_dictionary", "deltas", "groups"] {
        let bytes = std::fs::read(packed(&format!("{form}.parquet"))).expect("a file");
        for end in (0..bytes.len()).step_by(97) {
            let folder = with_file("test.parquet", &bytes[..end]);
            let words = said(read_all(folder.path()));
            assert!(words.contains("test.parquet"), "{form} {end}: {words}");
        }
        // Whatever a byte says, it is read or refused, in little memory.
        let folder = with_file("test.parquet", &bytes);
        for place in (0..bytes.len()).step_by(5) {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0xff;
            std::fs::write(folder.path().join("x/test.parquet"), damaged).expect("written");
            let _ = read_all(folder.path());
            let _ = ClassSet::open(folder.path(), "x", "test");
        }
    }
    // Pages with checksums tell every damage of their own.
    let mut bytes = std::fs::read(packed("groups.parquet")).expect("a file");
    let at = bytes
        .windows(4)
        .position(|window| window == b"IDAT")
        .expect("a picture");
    bytes[at] ^= 1;
    let folder = with_file("test.parquet", &bytes);
    let words = said(read_all(folder.path()));
    assert!(words.contains("checksum"), "{words}");
}

#[test]
fn names_of_classes_that_do_not_match_folders_are_errors() {
    let folder = with_file("test/cat/1.png", &picture());
    let beside = |name: &str, text: &str| {
        std::fs::write(folder.path().join("x").join(name), text).expect("written");
    };
    let texts = || {
        let set = ClassSet::open(folder.path(), "x", "test").expect("opened");
        ClassTexts::open(&folder.path().join("x"), set.classes())
    };
    beside("classnames.txt", "cat\ndog\n");
    assert!(
        said(texts()).contains("it names 2 classes, but the data have 1"),
        "{}",
        said(texts())
    );
    beside("classnames.txt", "house cat\n");
    assert_eq!(
        texts().expect("texts").prompts(),
        ["a photo of a house cat."]
    );
    // Our own files go first.
    beside("classes.tsv", "cat\ttom cat\ndog\tdog\n");
    assert!(said(texts()).contains("\"dog\""), "{}", said(texts()));
    beside("classes.tsv", "cat\ttom cat\n");
    assert_eq!(texts().expect("texts").prompts(), ["a photo of a tom cat."]);
}
