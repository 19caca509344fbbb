//! Training as a user starts, stops and kills it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The program, in the folder of the repository.
fn vlmerge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vlmerge"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// A file of the fixtures.
fn fixture(name: &str) -> String {
    format!("fixtures/{name}")
}

/// A short run of the tiny model: retrieval, a state after each step.
fn finetune(out: &str, settings: &[&str]) -> Vec<String> {
    let mut arguments: Vec<String> = ["finetune", "--task", "retrieval", "--init"]
        .map(str::to_owned)
        .into();
    arguments.push(fixture("ckpt/ufo_pretrain.ckpt"));
    arguments.extend(["--data".to_owned(), fixture("arrow")]);
    arguments.extend(["--tokenizer".to_owned(), fixture("real/vocab.txt")]);
    arguments.extend(["--out", out].map(str::to_owned));
    let usual = [
        "model={text_table_len: 16}",
        "batch_size=4",
        "length={steps: 12}",
        "optim={lr: 1e-3, warmup: 2}",
        "save.every={steps: 1}",
        "validation.every={steps: 6}",
    ];
    for setting in usual.iter().chain(settings) {
        arguments.extend(["--set", setting].map(str::to_owned));
    }
    arguments
}

/// Every tensor of a file, as bytes.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = merge::io::open(path, &merge::io::OpenOptions::default()).expect("it opens");
    let read = |(key, _): (&str, _)| (key.to_owned(), file.read_all(key).expect("it reads"));
    file.tensors().map(read).collect()
}

/// Every file of a folder and of the folders in it, with its bytes.
fn bytes_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).expect("listed") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(bytes_below(&path));
        } else {
            let bytes = std::fs::read(&path).expect("it reads");
            found.insert(path, bytes);
        }
    }
    found
}

#[test]
fn a_dry_run_writes_nothing_and_tells_of_resized_images() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("run").display().to_string();
    // The checkpoint's images are 48 px.
    let dry = |settings: &[&str]| {
        let output = vlmerge()
            .args(finetune(&out, settings))
            .arg("--dry-run")
            .output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(shown.starts_with("12 steps\n"), "{shown}");
        said
    };
    let resized = dry(&["model={text_table_len: 16, image_size: 64}"]);
    assert!(resized.contains("images of 64 x 64 px"), "{resized}");
    assert!(resized.contains("--set model.image_size=48"), "{resized}");
    let kept = dry(&["model={text_table_len: 16, image_size: 48}"]);
    assert!(!kept.contains(" px"), "{kept}");
    let left = std::fs::read_dir(temporary.path()).expect("listed").count();
    assert_eq!(left, 0, "a dry run leaves no folder");
}

#[test]
fn a_run_that_is_killed_ten_times_ends_in_the_same_weights() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| temporary.path().join(name).display().to_string();
    let (whole, killed) = (folder("whole"), folder("killed"));
    let output = vlmerge().args(finetune(&whole, &[])).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    for kill in 0..10_u64 {
        let child = vlmerge()
            .args(finetune(&killed, &[]))
            .arg("--resume")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let mut child = child.expect("it starts");
        std::thread::sleep(Duration::from_millis(40 + 53 * kill % 290));
        // SIGKILL: no handler runs.
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    let output = vlmerge()
        .args(finetune(&killed, &[]))
        .arg("--resume")
        .output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let file = |folder: &str| Path::new(folder).join("model.safetensors");
    assert!(tensors(&file(&whole)) == tensors(&file(&killed)));
}

#[test]
fn a_full_disk_keeps_the_state_before_and_says_so() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = |name: &str| temporary.path().join(name).display().to_string();
    let (whole, full) = (folder("whole"), folder("full"));
    let settings = [
        "length={steps: 400}",
        "save.every={steps: 100}",
        "validation=null",
    ];
    // Another signal than SIGKILL would stop it in good order.
    let mut child = vlmerge()
        .args(finetune(&full, &settings))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let states = || -> Vec<String> {
        let listed = std::fs::read_dir(Path::new(&full).join("states")).into_iter();
        let entries = listed.flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    while !states().iter().any(|name| name == "step-00000100") {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    let before: Vec<String> = (states().into_iter())
        .filter(|name| !name.ends_with(".partial"))
        .collect();
    // No file may grow beyond 100 KiB or, by other shells, 200 KiB: less than the weights take.
    let limited = "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["-c", limited, env!("CARGO_BIN_EXE_vlmerge")])
        .args(finetune(&full, &settings))
        .arg("--resume")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let newest = before.last().expect("a state");
    assert!(
        said.contains("could not be kept") && said.contains("File too large"),
        "{said}"
    );
    assert!(said.contains(&format!("states/{newest} is kept")), "{said}");
    assert_eq!(states(), before);
    for folder in [&whole, &full] {
        let arguments = finetune(folder, &settings);
        let output = vlmerge().args(arguments).arg("--resume").output();
        assert!(output.expect("it runs").status.success());
    }
    let file = |folder: &str| Path::new(folder).join("model.safetensors");
    assert!(tensors(&file(&whole)) == tensors(&file(&full)));
}

#[test]
fn a_run_folder_becomes_a_page_of_curves() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("run").display().to_string();
    let trained = vlmerge()
        .args(finetune(&out, &["length={steps: 4}"]))
        .output();
    let trained = trained.expect("it runs");
    let said = String::from_utf8_lossy(&trained.stderr).into_owned();
    assert!(trained.status.success(), "{said}");
    assert!(
        said.contains("examples/s could be loaded") && said.contains("waited for data"),
        "{said}"
    );
    let page = temporary.path().join("run.html");
    let report = |arguments: &[&str]| {
        let output = vlmerge().arg("report").args(arguments).output();
        output.expect("it runs")
    };
    let made = report(&[&out, "--out", &page.display().to_string()]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let page = std::fs::read_to_string(page).expect("the page");
    for what in [
        "Losses",
        "Validation",
        "Rates",
        "Speed",
        "validation: rsum",
        "batch_size: 4",
    ] {
        assert!(page.contains(what), "{what}");
    }
    let refused = report(&[&out, "--format", "markdown"]);
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn trained_weights_are_measured_without_a_word_about_their_model() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("run");
    let trained = vlmerge()
        .args(finetune(&out.display().to_string(), &["length={steps: 1}"]))
        .output();
    assert!(trained.expect("it runs").status.success());
    let measure = |weights: &str, flags: &[&str]| {
        let data = [
            "--task",
            "retrieval",
            "--data",
            "fixtures/arrow",
            "--split",
            "val",
        ];
        let tokenizer = ["--tokenizer", "fixtures/real/vocab.txt"];
        let output = vlmerge()
            .args(["evaluate", weights, "--json"])
            .args(data)
            .args(tokenizer)
            .args(flags)
            .output();
        output.expect("it runs")
    };
    let file = out.join("model.safetensors").display().to_string();
    let numbers = |flags: &[&str]| {
        let output = measure(&file, flags);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let numbers = report["results"][0]["measurements"].clone();
        let n = numbers.as_array().map_or(0, Vec::len);
        assert!(n > 0, "the report has numbers: {report}");
        numbers
    };
    assert_eq!(numbers(&[]), numbers(&["--text-table-len", "16"]));
}

#[test]
fn a_run_is_not_written_over_and_a_wrong_key_names_the_nearest() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("run").display().to_string();
    let run = |settings: &[&str]| {
        let output = vlmerge().args(finetune(&out, settings)).output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run(&["objectivs=[]"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the nearest is `objectives`"), "{said}");
    assert_eq!(run(&["length={steps: 1}"]).0, Some(0));
    let (code, said) = run(&["length={steps: 1}"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--resume"), "{said}");
    // A dry run leaves a folder with a run as it is, whether it looks at the state or not.
    let before = bytes_below(Path::new(&out));
    assert!(before.len() > 3, "{:?}", before.keys());
    for flags in [&["--dry-run"][..], &["--dry-run", "--resume"]] {
        let output = vlmerge()
            .args(finetune(&out, &["length={steps: 1}"]))
            .args(flags)
            .output();
        let output = output.expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(bytes_below(Path::new(&out)) == before, "{flags:?}");
    }
}

/// The most threads of candle's own pool that a run with this many threads has at once.
#[cfg(target_os = "linux")]
fn threads_of_candle(threads: &str) -> usize {
    let temporary = tempfile::tempdir().expect("a folder");
    let recipe = temporary.path().join("recipe.yaml");
    let text = "init: { synth: { size: tiny, blocks: 1, fusion_start: 1, width: 192, patch_size: 16, image_size: 64, text_len: 16, text_table_len: 16, vocabulary: 101 } }
model: { text_table_len: 16 }
data: { folder: fixtures/arrow, tokenizer: fixtures/real/vocab.txt, train: [{ dataset: coco, split: train }] }
objectives: [{ name: itc }]
optim: { lr: 1e-3 }
length: { steps: 8 }
batch_size: 16
";
    std::fs::write(&recipe, text).expect("written");
    let mut child = vlmerge()
        .env_remove("RAYON_NUM_THREADS")
        .arg("pretrain")
        .arg(&recipe)
        .arg("--out")
        .arg(temporary.path().join("run"))
        .args(["--threads", threads])
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let tasks = PathBuf::from(format!("/proc/{}/task", child.id()));
    let mut most = 0;
    while child.try_wait().expect("asked").is_none() {
        let listed = std::fs::read_dir(&tasks).into_iter().flatten().flatten();
        let names =
            listed.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
        most = most.max(names.filter(|name| name.starts_with("candle")).count());
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    most
}

#[cfg(target_os = "linux")]
#[test]
fn no_library_has_threads_beside_those_of_the_flag() {
    assert_eq!(threads_of_candle("1"), 0);
    // The one that calls works, too.
    assert_eq!(threads_of_candle("3"), 2);
}
