//! `inspect --json --hash` on every file of the corpus, as its manifest says.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::Said;

/// Address space of the program, in KiB as the shell wants it. Resident memory cannot be larger.
/// The program's own code and its threads' reserves take about a third of it.
const MAX_MEMORY_KIB: u32 = 448 * 1024;
const MAX_TIME: Duration = Duration::from_secs(1);

fn inspect(file: &str) -> (Said, Duration) {
    let start = Instant::now();
    let output = Command::new("sh")
        .args(["-c", "ulimit -v \"$0\" && exec \"$@\""])
        .arg(MAX_MEMORY_KIB.to_string())
        // Each thread reserves address space that it never uses.
        .args([
            env!("CARGO_BIN_EXE_vlmerge"),
            "inspect",
            "--json",
            "--hash",
            "--threads",
            "2",
        ])
        .arg(file)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the shell starts");
    (Said::new(&output), start.elapsed())
}

/// The identity of a tensor: dtype, shape and hash, by path.
fn tensors(list: &Value) -> BTreeMap<String, [Value; 3]> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|tensor| {
            let fields = ["dtype", "shape", "sha256"].map(|field| tensor[field].clone());
            (tensor["path"].to_string(), fields)
        })
        .collect()
}

fn check(entry: &Value) -> Result<(), String> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default();
    let file = format!("fixtures/corpus/{}", text("file"));
    let (mut said, mut time) = inspect(&file);
    if time > MAX_TIME {
        // The machine may have been busy.
        (said, time) = inspect(&file);
    }
    if time > MAX_TIME {
        return Err(format!("took {time:?}"));
    }
    match (said.code, text("expect")) {
        (Some(0), "load" | "safe") => {
            let found = tensors(&said.json()["tensors"]);
            let wanted = tensors(&entry["tensors"]);
            match found == wanted {
                true => Ok(()),
                false => Err(format!("found {found:?}, wanted {wanted:?}")),
            }
        }
        (Some(1), "refuse" | "safe") => {
            let names_the_file = said.stderr.contains(&file);
            match said.stderr.starts_with("error: ") && names_the_file && said.stdout.is_empty() {
                true => Ok(()),
                false => Err(format!("said {}{}", said.stdout, said.stderr)),
            }
        }
        (code, expected) => Err(format!(
            "{expected}, but exit code {code:?}: {}",
            said.stderr
        )),
    }
}

#[test]
fn every_file_of_the_corpus_behaves_as_its_manifest_says() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/corpus"));
    let manifest = std::fs::read(folder.join("manifest.json")).expect("the manifest is there");
    let manifest: Value = serde_json::from_slice(&manifest).expect("the manifest is JSON");
    let entries = manifest["entries"].as_array().expect("a list of entries");
    let faults: Vec<String> = entries
        .iter()
        .filter_map(|entry| Some(format!("{}: {}", entry["file"], check(entry).err()?)))
        .collect();
    assert!(entries.len() > 100, "the manifest is complete");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let left_behind = std::fs::read_dir("/tmp")
        .expect("there is a /tmp")
        .flatten();
    for file in left_behind {
        let name = file.file_name().to_string_lossy().into_owned();
        assert!(
            !name.starts_with("VLMERGE_PWNED"),
            "{name}: code of a file was run"
        );
    }
}

#[test]
fn a_hostile_file_is_refused_by_what_it_tried_to_call() {
    let (said, _) = inspect("fixtures/corpus/torch/hostile/exec_os_system.pt");
    assert!(said.stderr.contains("`posix.system`"), "{}", said.stderr);
}
