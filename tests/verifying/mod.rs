//! `vlmerge verify`: passes what a merge wrote, and finds each kind of damage.

mod loaders;
mod merges;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use merge::io::OpenOptions;
use serde_json::{Value, json};

use crate::program::{Said, vlmerge_in};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// A folder to work in, with copies of models of the fixtures.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// With copies of folders of the fixtures.
    fn with(models: &[&str]) -> Self {
        let folder = Self::new();
        for model in models {
            let from = Path::new(FIXTURES).join(model);
            let to = folder.path(
                from.file_name()
                    .and_then(|name| name.to_str())
                    .expect("a name"),
            );
            std::fs::create_dir(&to).expect("made");
            for entry in std::fs::read_dir(&from).expect("a folder") {
                let path = entry.expect("readable").path();
                std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
            }
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn run(&self, arguments: &[&str]) -> Said {
        vlmerge_in(self.0.path(), arguments)
    }

    fn merge(&self, arguments: &[&str]) {
        let said = self.run(&[&["merge"], arguments].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    }

    /// The output of `verify` with these arguments: the exit code, and of each check its outcome and its findings.
    fn verify(&self, arguments: &[&str]) -> Verdict {
        let said = self.run(&[&["verify", "--json"], arguments].concat());
        assert!(matches!(said.code, Some(0 | 1)), "{}", said.stderr);
        Verdict::of(&said)
    }

    /// Changes a file of settings.
    fn set(&self, name: &str, key: &str, value: Option<Value>) {
        let text = std::fs::read_to_string(self.path(name)).expect("readable");
        let mut settings: Value = serde_json::from_str(&text).expect("JSON");
        let object = settings.as_object_mut().expect("an object");
        match value {
            Some(value) => object.insert(key.to_owned(), value),
            None => object.remove(key),
        };
        self.write(name, settings.to_string());
    }
}

struct Verdict {
    code: i32,
    checks: BTreeMap<String, (String, String)>,
}

impl Verdict {
    fn of(said: &Said) -> Self {
        let document = said.json();
        assert_eq!(document["schema"], "vlmerge.verify/1");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let checks = document["checks"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|check| {
                let findings = check["findings"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(text);
                let outcome = (
                    text(&check["outcome"]),
                    findings.collect::<Vec<_>>().join("\n"),
                );
                (text(&check["name"]), outcome)
            });
        let checks: BTreeMap<_, _> = checks.collect();
        let code = said.code.expect("it ended by itself");
        let any_failed = checks.values().any(|(outcome, _)| outcome == "failed");
        assert_eq!(document["passed"], !any_failed);
        assert_eq!(code, i32::from(any_failed));
        Self { code, checks }
    }

    fn outcome(&self, check: &str) -> &str {
        self.checks
            .get(check)
            .map_or("not made", |(outcome, _)| outcome)
    }

    /// Asserts that this check alone failed, with these words.
    fn assert_failed(&self, check: &str, words: &str) {
        assert_eq!(self.code, 1, "{:#?}", self.checks);
        for (name, (outcome, findings)) in &self.checks {
            assert_eq!(
                outcome == "failed",
                name == check,
                "{name}: {findings}\n{:#?}",
                self.checks
            );
        }
        let (_, findings) = &self.checks[check];
        assert!(findings.contains(words), "{findings}");
    }

    fn assert_said(&self, check: &str, outcome: &str, words: &str) {
        let (found, findings) = self
            .checks
            .get(check)
            .unwrap_or_else(|| panic!("no {check}: {:#?}", self.checks));
        assert_eq!(found, outcome, "{check}: {findings}");
        assert!(findings.contains(words), "{check}: {findings}");
    }

    fn assert_passed(&self) {
        assert_eq!(self.code, 0, "{:#?}", self.checks);
    }
}

/// Where each tensor of a safetensors file begins, and its bytes.
fn places(path: &Path) -> Vec<(String, usize, usize, usize)> {
    let file = merge::io::open(path, &OpenOptions::default()).expect("it opens");
    let bytes = std::fs::read(path).expect("readable");
    let n_header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + n_header]).expect("JSON");
    let tensors = file.tensors().map(|(name, info)| {
        let begin = header[name]["data_offsets"][0].as_u64().expect("a number") as usize;
        (
            name.to_owned(),
            8 + n_header + begin,
            info.n_elements(),
            info.dtype.size_bytes(),
        )
    });
    tensors.collect()
}

/// Flips the lowest bit of one element of each tensor in turn, and asks whether `verify` names it.
fn assert_each_damage_is_found(folder: &Folder, weights: &str, arguments: &[&str]) {
    let path = folder.path(weights);
    let good = std::fs::read(&path).expect("readable");
    for (index, (name, begin, n_elements, size)) in places(&path).into_iter().enumerate() {
        let element = [0, n_elements / 2, n_elements - 1][index % 3];
        let mut bad = good.clone();
        bad[begin + element * size] ^= 1;
        std::fs::write(&path, bad).expect("written");
        let verdict = folder.verify(&[arguments, &["--full"]].concat());
        verdict.assert_failed(
            "values",
            &format!("`{name}`: 1 elements differ from what the recipe gives, the first is element {element}"),
        );
    }
    std::fs::write(&path, good).expect("written");
}

/// A model of one tensor per name, filled with a value.
fn model(path: &Path, tensors: &[(&str, &[usize], f32)]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for &(name, shape, value) in tensors {
        let first = data.len();
        data.extend(value.to_le_bytes().repeat(shape.iter().product()));
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [first, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    std::fs::write(path, bytes).expect("written");
}
