//! Hostile files and circumstances: bounded memory and time, nothing planted is followed, nothing panics.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::program::{Said, vlmerge_in};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("written");
    }

    fn run(&self, arguments: &[&str]) -> Said {
        vlmerge_in(self.0.path(), arguments)
    }

    /// A safetensors file with tensors of one f32 each.
    fn model(&self, name: &str, tensors: &[(&str, &[usize])]) {
        let mut header = serde_json::Map::new();
        for (index, (key, shape)) in tensors.iter().enumerate() {
            let place = json!({
                "dtype": "F32", "shape": shape, "data_offsets": [4 * index, 4 * index + 4],
            });
            header.insert((*key).to_owned(), place);
        }
        let header = serde_json::to_vec(&header).expect("JSON");
        let mut file = std::fs::File::create(self.path(name)).expect("made");
        file.write_all(&(header.len() as u64).to_le_bytes())
            .expect("written");
        file.write_all(&header).expect("written");
        file.write_all(&vec![0; 4 * tensors.len()])
            .expect("written");
    }

    /// A recipe of a split output, and its arguments.
    fn split(&self) -> [&'static str; 6] {
        let source =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ckpt/all_moe.safetensors");
        let yaml = format!(
            "merge_method: interpolate\nmodels: [{}]\nparameters: {{ratio: 0.5}}\n",
            source.display()
        );
        self.write("r.yaml", yaml.as_bytes());
        [
            "merge",
            "r.yaml",
            "--out",
            "t.safetensors",
            "--shard-size",
            "100KB",
        ]
    }
}

#[test]
fn wide_names_and_shapes_are_shown() {
    let folder = Folder::new();
    let long = "a".repeat(65_536);
    folder.model("n.safetensors", &[(&long, &[1])]);
    folder.model("m.safetensors", &[("b", &vec![1; 22_000])]);
    for arguments in [
        &["inspect", "n.safetensors"][..],
        &["inspect", "m.safetensors"],
        &["diff", "n.safetensors", "m.safetensors"],
    ] {
        let said = folder.run(arguments);
        assert!(
            said.code.is_some_and(|code| code < 3),
            "{arguments:?}: {}",
            &said.stderr[..200.min(said.stderr.len())]
        );
    }
}

/// Runs the program with at most this many KiB of memory to address; an abort is an exit code of its own.
fn bounded(folder: &Path, kib: u64, arguments: &[&str]) -> (Said, Duration) {
    let begun = Instant::now();
    let output = Command::new("sh")
        .current_dir(folder)
        .args([
            "-c",
            &format!("ulimit -v {kib}; exec \"$0\" --threads 2 \"$@\""),
        ])
        .arg(env!("CARGO_BIN_EXE_vlmerge"))
        .args(arguments)
        .output()
        .expect("a shell");
    (Said::new(&output), begun.elapsed())
}

/// A string of a pickle, and what puts it into the memo under number 0.
fn memo(text: &[u8]) -> Vec<u8> {
    let n_bytes = (text.len() as u32).to_le_bytes();
    [b"X".as_slice(), &n_bytes, text, b"q\0"].concat()
}

#[test]
fn a_text_that_a_pickle_names_many_times_is_not_multiplied() {
    let folder = Folder::new();
    // 50,000 times a text of 100 KB, and 60,000 numbers below a key of 200 KB: 5 and 12 GB.
    let values = [
        b"\x80\x02".as_slice(),
        &memo(&[b'a'; 100_000]),
        b"](",
        &b"h\0".repeat(50_000),
        b"e.",
    ];
    let paths = [
        b"\x80\x02".as_slice(),
        &memo(&[b'k'; 200_000]),
        b"}h\0](",
        &b"K\x01".repeat(60_000),
        b"es.",
    ];
    for (name, pickle) in [("values.pt", values.concat()), ("paths.pt", paths.concat())] {
        folder.write(name, &pickle);
        for arguments in [
            &["inspect", name][..],
            &["inspect", name, "--json"],
            &["convert", name, "out.safetensors"],
        ] {
            let (said, seconds) = bounded(folder.0.path(), 1_000_000, arguments);
            let start: String = said.stderr.chars().take(300).collect();
            assert!(
                matches!(said.code, Some(0 | 1)),
                "{arguments:?}: {:?} {start}",
                said.code
            );
            assert!(
                said.stdout.len() < 64 << 20,
                "{arguments:?}: {} bytes",
                said.stdout.len()
            );
            assert!(
                seconds < Duration::from_secs(20),
                "{arguments:?}: {seconds:?}"
            );
        }
    }
}

#[test]
fn lines_of_a_pickle_are_read_once() {
    let folder = Folder::new();
    let line = [b"V".as_slice(), &[b'a'; 1_000_000], b"\n0"].concat();
    folder.write(
        "lines.pt",
        &[b"\x80\x02".as_slice(), &line.repeat(8), b"N."].concat(),
    );
    let (said, seconds) = bounded(folder.0.path(), 1_000_000, &["inspect", "lines.pt"]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(seconds < Duration::from_secs(10), "{seconds:?}");
}

#[test]
fn a_tokenizer_cannot_turn_a_caption_into_gigabytes() {
    let folder = Folder::new();
    let mut vocabulary = serde_json::Map::new();
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] {
        vocabulary.insert(token.to_owned(), json!(vocabulary.len()));
    }
    // As many tokens as the checkpoint has.
    while vocabulary.len() < 101 {
        vocabulary.insert(format!("w{}", vocabulary.len()), json!(vocabulary.len()));
    }
    let file = |more: serde_json::Value| {
        let mut file = json!({"model": {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]",
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}});
        for (key, value) in more.as_object().expect("an object") {
            file[key] = value.clone();
        }
        file.to_string()
    };
    let ten = json!({"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaaaa"});
    let nine = json!({"normalizer": {"type": "Sequence", "normalizers": vec![ten; 9]}});
    let special = json!({"SpecialToken": {"id": "a", "type_id": 0}});
    let template = json!({"post_processor": {"type": "TemplateProcessing",
        "single": vec![special; 100], "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": vec![5; 100_000], "tokens": vec!["a"; 100_000]}}}});
    // Engines that go back try every way to cut the text.
    let regex = json!({"normalizer": {"type": "Replace", "pattern": {"Regex": "((\\w|\\w\\w)+ ?)+\\1!x"}, "content": ""}});
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let (checkpoint, data) = (root.join("ckpt/all_moe_pretrain.ckpt"), root.join("arrow"));
    for (name, more, words) in [
        ("nine.json", nine, "times as long"),
        ("template.json", template, "tokens around a text"),
        ("regex.json", regex, ""),
    ] {
        folder.write(name, file(more).as_bytes());
        let (said, seconds) = bounded(
            folder.0.path(),
            4_000_000,
            &[
                "evaluate",
                checkpoint.to_str().expect("UTF-8"),
                "--text-table-len",
                "16",
                "--task",
                "retrieval",
                "--data",
                data.to_str().expect("UTF-8"),
                "--split",
                "val",
                "--limit",
                "2",
                "--tokenizer",
                name,
            ],
        );
        assert!(
            matches!(said.code, Some(1 | 2)) || words.is_empty() && said.code == Some(0),
            "{name}: {:?} {}",
            said.code,
            said.stderr
        );
        assert!(said.stderr.contains(words), "{name}: {}", said.stderr);
        assert!(seconds < Duration::from_secs(20), "{name}: {seconds:?}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_planted_where_parts_go_is_not_followed() {
    let folder = Folder::new();
    let arguments = folder.split();
    folder.write("victim", b"precious");
    let victim = folder.path("victim");
    let precious = || std::fs::read(&victim).expect("readable") == b"precious";
    // The names of older versions mean nothing.
    std::os::unix::fs::symlink(
        &victim,
        folder.path(".t-00001-of-00006.safetensors.partial"),
    )
    .expect("linked");
    let said = folder.run(&arguments);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(precious());
    let more = [&arguments[..], &["--force"]].concat();
    std::os::unix::fs::symlink(&victim, folder.path(".t.safetensors.resume")).expect("linked");
    let said = folder.run(&more);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("is in the way"), "{}", said.stderr);
    assert!(precious());
    let ledger = folder.path(".t.safetensors.resume");
    std::fs::remove_file(&ledger).expect("removed");
    // A second name of somebody's file, and a pipe that nobody writes to.
    std::fs::hard_link(&victim, &ledger).expect("linked");
    let said = folder.run(&more);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(said.stderr.contains("is in the way"), "{}", said.stderr);
    assert!(precious());
    std::fs::remove_file(&ledger).expect("removed");
    let made = Command::new("mkfifo").arg(&ledger).status();
    assert!(made.expect("mkfifo is there").success());
    let begun = Instant::now();
    let said = folder.run(&more);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert!(begun.elapsed() < Duration::from_secs(20));
    std::fs::remove_file(&ledger).expect("removed");
    folder.write(
        ".t.safetensors.resume",
        b"vlmerge.resume/1 deadbeef 18446744073709551615\n",
    );
    let begun = Instant::now();
    let said = folder.run(&more);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn names_that_double_are_refused() {
    let folder = Folder::new();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mergekit");
    let rules = "{from: '^(.*)$', to: '$1$1'}, ".repeat(40);
    let yaml = format!(
        "models: [{{model: {0}/a, rename: [{rules}]}}, {{model: {0}/b}}]\nmerge_method: linear\nparameters: {{weight: \
         1}}\non_missing: copy\n",
        models.display()
    );
    folder.write("r.yaml", yaml.as_bytes());
    let said = folder.run(&["merge", "r.yaml", "--dry-run"]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(
        said.stderr.contains("more than 4096 bytes"),
        "{}",
        said.stderr
    );
}

#[test]
fn patterns_take_no_time() {
    let folder = Folder::new();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mergekit");
    let recipe = |case: &str| {
        format!(
            "models: [{0}/a, {0}/b]\nmerge_method: linear\nparameters: {{weight: [{case}, {{value: 0.5}}]}}\n",
            models.display()
        )
    };
    folder.write(
        "glob.yaml",
        recipe(&format!("{{glob: '{}b', value: 1}}", "*".repeat(16_000))).as_bytes(),
    );
    folder.write(
        "regex.yaml",
        recipe(r"{regex: '\pL{1000}{1000}', value: 1}").as_bytes(),
    );
    for (name, code) in [("glob.yaml", 0), ("regex.yaml", 2)] {
        let begun = Instant::now();
        let said = folder.run(&["merge", name, "--dry-run"]);
        assert_eq!(said.code, Some(code), "{}", said.stderr);
        assert!(begun.elapsed() < Duration::from_secs(20), "{name}");
    }
}

#[test]
fn a_long_line_of_a_pickle_is_said_to_be() {
    let folder = Folder::new();
    let pickle = [b"\x80\x02F".as_slice(), &vec![b'9'; 2_000_000], b"\n."].concat();
    folder.write("a.pt", &pickle);
    let said = folder.run(&["inspect", "a.pt"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("a line of the pickle is longer"),
        "{}",
        said.stderr
    );
}

#[test]
fn threads_are_bounded() {
    let folder = Folder::new();
    folder.model("n.safetensors", &[("a", &[1])]);
    let begun = Instant::now();
    let said = folder.run(&["inspect", "n.safetensors", "--threads", "1000000000"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("threads are used"), "{}", said.stderr);
    assert!(begun.elapsed() < Duration::from_secs(20));
}
