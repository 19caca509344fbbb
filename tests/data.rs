//! Building arrow files and looking at them.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::program::vlmerge;

fn shown(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}

#[test]
fn a_data_set_is_built_and_its_statistics_are_shown() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("arrow");
    let build = [
        "data",
        "build",
        "f30k",
        "--raw",
        "fixtures/raw/f30k",
        "--out",
        shown(&out),
    ];
    let said = vlmerge(&build);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout
            .contains("f30k_caption_karpathy_test.arrow: 4 rows\n"),
        "{}",
        said.stdout
    );
    let said = vlmerge(&build);
    assert!(
        said.stdout.contains("test.arrow: 4 rows, was there\n"),
        "{}",
        said.stdout
    );

    let sheet = folder.path().join("sheet.html");
    let stats = [
        "data",
        "stats",
        shown(&out),
        "--tokenizer",
        "fixtures/text/vocab.txt",
        "--json",
        "--sheet",
        shown(&sheet),
    ];
    let said = vlmerge(&stats);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let files = said.json();
    assert_eq!(files["files"].as_array().map(Vec::len), Some(3));
    // Counted by hand in the fixture's expected.json.
    let test = &files["files"][0];
    assert_eq!(test["rows"], 4);
    assert_eq!(test["texts"]["n"], 20);
    assert_eq!(
        test["texts"]["per_row"],
        serde_json::json!({ "min": 5, "median": 5, "max": 5 })
    );
    assert_eq!(
        test["pictures"]["formats"],
        serde_json::json!({ "JPEG": 4 })
    );
    assert!(test["texts"]["tokens"]["min"].as_u64() >= Some(3));
    let said = vlmerge(&stats[..3]);
    assert!(said.stdout.starts_with("file "), "{}", said.stdout);

    let page = std::fs::read_to_string(&sheet).expect("a page");
    assert_eq!(page.matches("<img ").count(), 11);
    assert_eq!(page.matches("src=\"data:image/png;base64,").count(), 11);
    assert!(!page.contains("http://") && !page.contains("https://"));
}

#[test]
fn texts_of_strangers_are_escaped_on_the_sheet() {
    let folder = TempDir::new().expect("a folder");
    let raw = folder.path().join("raw");
    std::fs::create_dir_all(raw.join("images_train/0000")).expect("made");
    std::fs::copy(
        "fixtures/raw/sbu/images_train/0006/0006001",
        raw.join("images_train/0000/<b>x"),
    )
    .expect("copied");
    let annotations = r#"[["images_train/0000/<b>x", "<script>alert(1)</script> & \"more\""]]"#;
    std::fs::write(raw.join("annot.json"), annotations).expect("written");
    let out = folder.path().join("arrow");
    let said = vlmerge(&[
        "data",
        "build",
        "sbu",
        "--raw",
        shown(&raw),
        "--out",
        shown(&out),
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let sheet = folder.path().join("sheet.html");
    vlmerge(&["data", "stats", shown(&out), "--sheet", shown(&sheet)]);
    let page = std::fs::read_to_string(&sheet).expect("a page");
    assert!(
        !page.contains("<script>") && !page.contains("<b>x"),
        "{page}"
    );
    assert!(page.contains("alert(1)"));
}

#[test]
fn faults_are_said_with_a_hint_and_the_right_exit_code() {
    let folder = TempDir::new().expect("a folder");
    let out = shown(folder.path());
    let said = vlmerge(&[
        "data",
        "build",
        "f30k",
        "--raw",
        "fixtures/raw/f30k",
        "--out",
        out,
        "--split",
        "minival",
    ]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr
            .contains("f30k has no split \"minival\"; there are: train, val, test")
    );
    let said = vlmerge(&[
        "data",
        "build",
        "coco",
        "--raw",
        "fixtures/raw/f30k",
        "--out",
        out,
    ]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr
            .contains("karpathy/dataset_coco.json: cannot open"),
        "{}",
        said.stderr
    );
    let said = vlmerge(&["data", "stats", out]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("holds no arrow file"),
        "{}",
        said.stderr
    );
}

#[test]
fn a_killed_build_leaves_no_half_file_and_goes_on() {
    let folder = TempDir::new().expect("a folder");
    let out = folder.path().join("arrow");
    let arguments = [
        "data",
        "build",
        "nlvr2",
        "--raw",
        "fixtures/raw/nlvr2",
        "--out",
        shown(&out),
    ];
    let n_files = || {
        let names = std::fs::read_dir(&out).into_iter().flatten().flatten();
        names
            .filter(|entry| entry.path().extension().is_some_and(|e| e == "arrow"))
            .count()
    };
    for n_wanted in [0, 1, 3, 5] {
        let mut program = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("the program starts");
        let start = Instant::now();
        while n_files() < n_wanted && start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        program.kill().expect("killed");
        program.wait().expect("ended");
        for entry in std::fs::read_dir(&out).into_iter().flatten() {
            let file = entry.expect("an entry").path();
            if file
                .extension()
                .is_some_and(|extension| extension == "arrow")
            {
                let said = vlmerge(&["data", "stats", shown(&file)]);
                assert_eq!(said.code, Some(0), "{}", said.stderr);
            }
        }
    }
    let said = vlmerge(&arguments);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_eq!(said.stdout.lines().count(), 7);
    let said = vlmerge(&arguments);
    assert_eq!(said.stdout.matches("was there").count(), 7);
    let names = std::fs::read_dir(&out).expect("a folder");
    assert_eq!(names.count(), 7, "nothing but the files is left");
}
