//! Hostile files and circumstances: bounded memory and time, nothing planted is followed, nothing panics.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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
            let place = serde_json::json!({
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
    std::fs::remove_file(folder.path(".t.safetensors.resume")).expect("removed");
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
