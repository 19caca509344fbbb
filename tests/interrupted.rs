//! Runs that are stopped, killed, or started twice.
#![cfg(unix)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A short run of the tiny model: retrieval, a state after each step, results by validation.
fn finetune(init: &str, out: &Path, n_steps: usize) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlmerge"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["finetune", "--task", "retrieval", "--init", init])
        .args([
            "--data",
            "fixtures/arrow",
            "--tokenizer",
            "fixtures/real/vocab.txt",
            "--out",
        ])
        .arg(out);
    for setting in [
        "model={text_table_len: 16}",
        "batch_size=4",
        "optim={lr: 1e-3, warmup: 2}",
        "save.every={steps: 1}",
        "validation.every={steps: 3}",
        &format!("length={{steps: {n_steps}}}"),
    ] {
        command.args(["--set", setting]);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits for something of a running program.
fn wait_for(child: &mut Child, what: impl Fn() -> bool) {
    let begun = Instant::now();
    while !what() && child.try_wait().expect("asked").is_none() {
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "it does not come"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn n_states(run: &Path) -> usize {
    let listed = std::fs::read_dir(run.join("states")).into_iter().flatten();
    listed
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().contains("partial"))
        .count()
}

/// The files of a run with their bytes, without logs, which have times in them.
fn kept(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut files, mut open) = (BTreeMap::new(), vec![run.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("readable").path();
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                open.push(path);
            } else if !name.starts_with("events.") && name != "metrics.jsonl" {
                let inside = path.strip_prefix(run).expect("within").to_owned();
                files.insert(inside, std::fs::read(&path).expect("readable"));
            }
        }
    }
    files
}

#[test]
fn a_run_that_was_killed_and_taken_up_ends_in_the_same_bytes() {
    let temporary = tempfile::tempdir().expect("a folder");
    // Weights of one form, and those of experts.
    for init in [
        "fixtures/ckpt/ufo_pretrain.ckpt",
        "fixtures/ckpt/all_moe_pretrain.ckpt",
    ] {
        let stem = Path::new(init)
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        // Metadata may name the folder's own name.
        let runs = ["whole", "killed"].map(|name| temporary.path().join(name).join(&stem));
        let [whole, killed] = &runs;
        let output = finetune(init, whole, 8).output().expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        for n in [2, 5] {
            let mut child = finetune(init, killed, 8)
                .arg("--resume")
                .spawn()
                .expect("it starts");
            wait_for(&mut child, || {
                killed.join(format!("states/step-0000000{n}")).exists()
            });
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
        assert!(
            !killed.join("model.safetensors").exists(),
            "it was killed on its way"
        );
        let output = finetune(init, killed, 8)
            .arg("--resume")
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        let (whole, killed) = (kept(whole), kept(killed));
        let names = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<PathBuf> {
            files.keys().cloned().collect()
        };
        assert_eq!(names(&whole), names(&killed));
        for name in ["model.safetensors", "best.safetensors", "SHA256SUMS"] {
            assert!(whole.contains_key(Path::new(name)), "{name}");
        }
        for (name, bytes) in &whole {
            assert!(
                killed[name] == *bytes,
                "{stem}: other bytes of {}",
                name.display()
            );
        }
        // They name the start of the run, not the state from which it was resumed.
        let header =
            String::from_utf8_lossy(&whole[Path::new("model.safetensors")][..8000]).into_owned();
        assert!(header.contains(&format!("{stem}.ckpt")), "{header}");
    }
}

#[test]
fn a_run_folder_belongs_to_one_process() {
    let temporary = tempfile::tempdir().expect("a folder");
    let run = temporary.path().join("run");
    let init = "fixtures/ckpt/ufo_pretrain.ckpt";
    let mut first = finetune(init, &run, 2000).spawn().expect("it starts");
    wait_for(&mut first, || n_states(&run) > 0);
    for more in [&[][..], &["--resume"]] {
        let second = finetune(init, &run, 2000)
            .args(more)
            .output()
            .expect("it runs");
        assert!(
            matches!(second.status.code(), Some(1 | 2)),
            "{}",
            said(&second)
        );
        let words = if more.is_empty() {
            "holds a run"
        } else {
            "another run works in this folder"
        };
        assert!(said(&second).contains(words), "{}", said(&second));
    }
    assert!(
        first.try_wait().expect("asked").is_none(),
        "the first goes on"
    );
    first.kill().expect("killed");
    first.wait().expect("ended");
    // One line a step, and nobody's lock is left.
    let log = std::fs::read_to_string(run.join("metrics.jsonl")).expect("a log");
    let steps = log.lines().filter(|line| line.contains("\"loss\"")).count();
    let numbers: std::collections::BTreeSet<u64> = (log.lines())
        .filter(|line| line.contains("\"loss\""))
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64())
        .collect();
    assert_eq!(steps, numbers.len(), "each step is there once");
    let mut third = finetune(init, &run, 2000)
        .arg("--resume")
        .spawn()
        .expect("it starts");
    let before = n_states(&run);
    let newest = std::fs::read(run.join("metrics.jsonl"))
        .expect("a log")
        .len();
    wait_for(&mut third, || {
        std::fs::metadata(run.join("metrics.jsonl"))
            .is_ok_and(|found| found.len() as usize > newest)
    });
    assert!(
        third.try_wait().expect("asked").is_none() && before > 0,
        "it is taken up"
    );
    third.kill().expect("killed");
    third.wait().expect("ended");
}

#[test]
fn a_damaged_state_is_not_gone_on_with() {
    let temporary = tempfile::tempdir().expect("a folder");
    let run = temporary.path().join("run");
    let init = "fixtures/ckpt/ufo_pretrain.ckpt";
    let output = finetune(init, &run, 3).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    for name in [
        "states/step-00000003/state.safetensors",
        "states/step-00000003/model.safetensors",
        "model.safetensors",
    ] {
        let path = run.join(name);
        let good = std::fs::read(&path).expect("readable");
        let mut bad = good.clone();
        let last = bad.len() - 1;
        bad[last] ^= 1;
        std::fs::write(&path, bad).expect("written");
        let output = finetune(init, &run, 3)
            .arg("--resume")
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{name}: {}", said(&output));
        assert!(
            said(&output).contains("checksum"),
            "{name}: {}",
            said(&output)
        );
        std::fs::write(&path, good).expect("written");
    }
}

/// A checkpoint of 12 million numbers in 48 MB.
fn model(path: &Path, seed: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .args([
            "synth",
            "--size",
            "custom",
            "--layout",
            "all-specific",
            "--blocks",
            "4",
            "--width",
            "256",
        ])
        .args([
            "--attention-heads",
            "8",
            "--fusion-start",
            "3",
            "--no-sync",
            "--seed",
            seed,
        ])
        .arg(path)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
}

/// Starts a command again and again, interrupts it at one time after another of the time that it takes, and returns how
/// often that stopped it. Whatever it was at, it ends soon and leaves nothing behind.
fn interrupted(folder: &Path, words: &[&str]) -> usize {
    let names = || -> Vec<String> {
        let listed = std::fs::read_dir(folder).expect("a folder").flatten();
        let mut names: Vec<String> = listed
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name != "out" && !name.starts_with("out."))
            .collect();
        names.sort();
        names
    };
    let clear = || {
        for out in ["out", "out.safetensors"] {
            let _ = std::fs::remove_dir_all(folder.join(out));
            let _ = std::fs::remove_file(folder.join(out));
        }
    };
    let started = || {
        Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .current_dir(folder)
            .args(["--threads", "1"])
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts")
    };
    let before = names();
    let begun = Instant::now();
    let whole = started().wait_with_output().expect("ended");
    assert!(
        matches!(whole.status.code(), Some(0 | 1)),
        "{words:?}: {}",
        said(&whole)
    );
    // On a busy machine the next run may take a fraction of this one's time, or a multiple.
    let usual = begun.elapsed();
    clear();
    let mut n_stopped = 0;
    for round in 1..=8_u32 {
        let mut child = started();
        std::thread::sleep(usual * round / 9);
        let pid = Pid::from_child(&child);
        // It may have ended by then.
        let _ = kill_process(pid, Signal::INT);
        let begun = Instant::now();
        while child.try_wait().expect("asked").is_none() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "{words:?} does not stop"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        let output = child.wait_with_output().expect("ended");
        // By the signal itself, or in good order.
        let is_stopped = output.status.code().is_none() || said(&output).contains("stopped");
        if !is_stopped {
            assert!(
                matches!(output.status.code(), Some(0 | 1)),
                "{words:?}: {}",
                said(&output)
            );
            clear();
            continue;
        }
        n_stopped += 1;
        for out in ["out", "out.safetensors"] {
            assert!(
                !folder.join(out).exists(),
                "{words:?} left {out}: {}",
                said(&output)
            );
        }
        assert_eq!(names(), before, "{words:?}: {}", said(&output));
    }
    n_stopped
}

#[test]
fn every_verb_that_takes_long_is_stopped_by_one_interrupt() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path();
    model(&folder.join("one.safetensors"), "1");
    model(&folder.join("two.safetensors"), "2");
    let recipe = "merge_method: ties\nbase_model: one.safetensors\nmodels: [two.safetensors]\nparameters: {weight: 1, \
                  density: 0.5}\n";
    std::fs::write(folder.join("r.yaml"), recipe).expect("written");
    let (one, two) = ("one.safetensors", "two.safetensors");
    for words in [
        &["merge", "r.yaml", "--out", "out.safetensors"][..],
        &["merge", "r.yaml", "--out", "out/"],
        &["interpolate", one, "--out", "out.safetensors"],
        &["convert", one, "out.safetensors", "--dtype", "bf16"],
        &["extract-lora", one, two, "--rank", "8", "--out", "out"],
        &[
            "synth",
            "--size",
            "custom",
            "--layout",
            "all-specific",
            "--blocks",
            "8",
            "--width",
            "256",
            "--attention-heads",
            "8",
            "--fusion-start",
            "3",
            "out.safetensors",
        ],
        &["distance", one, two],
        &["diff", one, two],
        &["verify", one],
    ] {
        assert!(
            interrupted(folder, words) > 0,
            "{words:?} was never interrupted on its way"
        );
    }
}
