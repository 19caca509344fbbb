//! CSV files that are not as they should be.

use std::path::Path;

use evaluate::Error;
use evaluate::datasets::annotations::{Annotations, Half};

/// A data set of one picture with this table.
fn folder(table: impl AsRef<[u8]>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let pictures = folder.path().join("set/valid");
    std::fs::create_dir_all(&pictures).expect("a folder");
    let picture = fixtures::path("zerovl/csv/ids/valid/a.png");
    std::fs::copy(picture, pictures.join("a.png")).expect("copied");
    std::fs::write(folder.path().join("set/valid_anno.csv"), table).expect("written");
    folder
}

fn open(folder: &Path) -> Result<Annotations, Error> {
    Annotations::open(folder, "set", Half::Valid)
}

/// The error of opening a data set with this table.
fn fault(table: impl AsRef<[u8]>) -> String {
    let folder = folder(table);
    let error = open(folder.path()).expect_err("a fault");
    error.to_string()
}

const HEAD: &str = "image,image_id,caption,caption_id\n";

#[test]
fn a_fault_names_file_line_and_field() {
    let cases: [(&str, &str); 9] = [
        (
            "a.png,1,one,1\na.png,two,two,2\n",
            "line 3: `image_id` is \"two\"",
        ),
        (
            "a.png,1,one,1\n\na.png,1,\"a\nb\",1.5\n",
            "line 4: `caption_id` is \"1.5\"",
        ),
        (
            "a.png,1,a caption, with a comma,1\n",
            "line 2: has 5 fields",
        ),
        ("a.png,1,one\n", "line 2: has 3 fields"),
        ("../a.png,1,one,1\n", "line 2: `image` is \"../a.png\""),
        (
            "/etc/passwd,1,one,1\n",
            "line 2: `image` is \"/etc/passwd\"",
        ),
        (",1,one,1\n", "line 2: `image` is \"\""),
        (
            "a.png,9223372036854775808,one,1\n",
            "no whole number of 64 bits",
        ),
        ("a.png,1,one,1\r\na.png,x,one,1\r\n", "line 3: `image_id`"),
    ];
    for (rows, expected) in cases {
        let said = fault(format!("{HEAD}{rows}"));
        assert!(
            said.contains("valid_anno.csv: ") && said.contains(expected),
            "{said}"
        );
    }
    assert!(fault("image,caption,caption_id\n").contains("line 1: names no column `image_id`"));
    assert!(fault("image,image,caption\n").contains("line 1: names the column `image` twice"));
    assert!(fault("").contains("line 1: names no columns"));
    assert!(fault(HEAD).contains("holds no pairs"));
    let bytes = [HEAD.as_bytes(), b"a.png,1,\xff,1\n"].concat();
    assert!(fault(bytes).contains("line 2: `caption` is not UTF-8"));
}

#[test]
fn a_quote_that_nothing_closes_takes_no_more_memory_than_a_row() {
    let said = fault(format!("{HEAD}a.png,1,\"{}", "x".repeat(3 << 20)));
    assert!(
        said.contains("line 2: ") && said.contains("is a quote not closed?"),
        "{said}"
    );
}

#[test]
fn a_file_may_begin_with_a_mark_and_end_without_a_line_break() {
    let folder = folder("\u{feff}caption,image,caption_id,image_id\r\nNA,a.png,2,1\r\n7,a.png,3,1");
    let set = open(folder.path()).expect("a table");
    let captions: Vec<String> = (0..2)
        .map(|row| set.annotation(row).expect("a row").caption)
        .collect();
    assert_eq!(captions, ["NA", "7"]);
}

#[test]
fn pairs_with_one_path_have_one_picture() {
    let rows = "a.png,1,one,1\nb.png,2,two,2\na.png,3,three,3\n";
    let set = open(folder(format!("{HEAD}{rows}")).path()).expect("a table");
    assert_eq!(set.images(), [0, 1, 0]);
    assert_eq!(set.first(2).images(), [0, 1]);
}

#[test]
fn a_picture_that_is_not_there_or_lies_outside_is_named() {
    let folder = folder(format!("{HEAD}a.png,1,one,1\nb.png,2,two,2\n"));
    let pictures = folder.path().join("set/valid");
    let set = open(folder.path()).expect("a table");
    set.picture(0).expect("a picture");
    for error in [set.picture(1).map(drop), set.check_pictures()] {
        let said = error.expect_err("missing").to_string();
        assert!(
            said.contains("line 3: `image`: the picture valid/b.png"),
            "{said}"
        );
    }
    std::fs::write(pictures.join("b.png"), b"no picture").expect("written");
    set.check_pictures().expect("both are there");
    let said = set.picture(1).expect_err("damaged").to_string();
    assert!(
        said.contains("line 3") && said.contains("not JPEG, PNG"),
        "{said}"
    );
    std::fs::create_dir(pictures.join("sub")).expect("a folder");
    assert!(Annotations::open(folder.path(), "../set", Half::Valid).is_err());
    assert!(Annotations::open(folder.path(), "", Half::Valid).is_err());
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_folder_is_not_followed() {
    let folder = folder(format!("{HEAD}b.png,1,one,1\nc.png,1,two,2\n"));
    let pictures = folder.path().join("set/valid");
    let outside = folder.path().join("outside.png");
    std::fs::copy(pictures.join("a.png"), &outside).expect("copied");
    std::os::unix::fs::symlink(&outside, pictures.join("b.png")).expect("a link");
    std::os::unix::fs::symlink("a.png", pictures.join("c.png")).expect("a link");
    let set = open(folder.path()).expect("a table");
    let said = set.picture(0).expect_err("outside").to_string();
    assert!(
        said.contains("line 2") && said.contains("is a link to"),
        "{said}"
    );
    set.picture(1).expect("a link within the folder");
}

#[test]
fn a_file_that_changes_while_it_is_open_is_noticed() {
    let folder = folder(format!("{HEAD}a.png,1,one,1\na.png,2,two,2\n"));
    let set = open(folder.path()).expect("a table");
    std::fs::write(folder.path().join("set/valid_anno.csv"), "gone").expect("written");
    assert!(set.annotation(1).is_err());
}
