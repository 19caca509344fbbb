//! Merges that were killed go on with the next file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::{Said, vlmerge};

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let is_left = |path: &PathBuf| {
        // A run that was killed while it wrote the card leaves this; nothing else.
        let name = path.file_name().expect("a name").to_string_lossy();
        name.starts_with(".README.md.")
    };
    (entries.map(|entry| entry.expect("readable").path()))
        .filter(|path| !is_left(path))
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("readable"))
        })
        .collect()
}

/// A model of 12 million numbers in 48 MB.
fn model(path: &str) {
    let said = vlmerge(&[
        "synth",
        "--size",
        "custom",
        "--layout",
        "all-specific",
        "--blocks",
        "4",
        "--width",
        "256",
        "--attention-heads",
        "8",
        "--fusion-start",
        "3",
        "--no-sync",
        path,
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn a_merge_that_is_killed_at_any_moment_ends_with_the_bytes_of_one_that_was_not() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("specific.safetensors");
    let input = input.to_str().expect("UTF-8");
    model(input);
    let merge = |out: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vlmerge"));
        command
            .args([
                "interpolate",
                input,
                "--shard-size",
                "2MB",
                "--json",
                "--out",
            ])
            .arg(out)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    // The card has the folder's name for a title.
    let undisturbed = folder.path().join("whole/merged");
    let disturbed = folder.path().join("killed/merged");
    for out in [&undisturbed, &disturbed] {
        std::fs::create_dir(out.parent().expect("a parent")).expect("made");
    }
    let said = Said::new(&merge(&undisturbed).output().expect("runs"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let (mut n_killed, mut n_kept) = (0, 0);
    for round in 0..6u64 {
        let mut wait = 2 + 5 * round;
        loop {
            let mut child = merge(&disturbed).spawn().expect("the program starts");
            std::thread::sleep(Duration::from_millis(wait));
            child.kill().expect("SIGKILL");
            let output = child.wait_with_output().expect("ended");
            let said = Said::new(&output);
            if said.code == Some(0) {
                n_kept += said.json()["n_files_kept"].as_u64().expect("a number");
                break;
            }
            if said.stderr.contains("already exists") {
                // The kill came after the last rename: all is there, and no ledger any more.
                assert!(!disturbed.join(".model.safetensors.resume").exists());
                break;
            }
            assert_eq!(said.code, None, "{}", said.stderr);
            n_killed += 1;
            wait += 3 + wait / 4;
        }
        let (expected, found) = (files(&undisturbed), files(&disturbed));
        assert!(expected.keys().eq(found.keys()), "{:?}", found.keys());
        assert!(expected == found, "round {round}: other bytes");
        std::fs::remove_dir_all(&disturbed).expect("removed");
    }
    assert!(n_killed > 6, "{n_killed} runs were killed");
    assert!(n_kept > 0, "no run went on with what was there");
}

#[test]
fn an_interrupt_keeps_complete_files_and_another_merge_starts_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = folder.path().join("specific.safetensors");
    let input = input.to_str().expect("UTF-8");
    model(input);
    let out = folder.path().join("merged");
    let arguments = |ratio: &'static str| {
        [
            "interpolate",
            input,
            "--ratio",
            ratio,
            "--shard-size",
            "2MB",
            "--threads",
            "1",
            "--json",
            "--out",
        ]
    };
    let ledger = out.join(".model.safetensors.resume");
    let mut kept = 0;
    for _ in 0..20 {
        let child = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .args(arguments("0.5"))
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let lines = || std::fs::read_to_string(&ledger).map_or(0, |text| text.lines().count());
        let mut n_waits = 0;
        while lines() < 3 && n_waits < 2000 {
            std::thread::sleep(Duration::from_millis(1));
            n_waits += 1;
        }
        let pid = child.id().to_string();
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .expect("kill is there");
        let output = child.wait_with_output().expect("ended");
        if output.status.success() {
            // Too quick for the signal.
            std::fs::remove_dir_all(&out).expect("written");
            continue;
        }
        let said = Said::new(&output);
        assert!(
            said.stderr.contains("complete files are kept"),
            "{}",
            said.stderr
        );
        kept = lines() - 1;
        break;
    }
    assert!(kept > 0, "no run was interrupted under way");
    let out = out.to_str().expect("UTF-8");
    let run = |ratio| {
        let mut all = arguments(ratio).to_vec();
        all.extend([out, "--no-sync"]);
        let said = vlmerge(&all);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.json()["n_files_kept"].as_u64()
    };
    assert_eq!(run("0.25"), Some(0), "files of another merge are not taken");
    let names = files(Path::new(out));
    assert!(
        names.keys().all(|name| !name.starts_with('.')),
        "{:?}",
        names.keys()
    );
}
