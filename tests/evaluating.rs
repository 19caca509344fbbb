//! From pictures and captions to a report: data, grams, merges and tasks.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::program::{Said, vlmerge};

pub(crate) const SPECIFIC: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const WITH_HEADS: &str = "fixtures/ckpt/all_moe.safetensors";
const SEED: &str = "fixtures/ckpt/ufo_pretrain.ckpt";
const VOCABULARY: &str = "fixtures/real/vocab.txt";

/// A folder with the arrow files of the real pictures.
pub(crate) struct Data(TempDir);

impl Data {
    pub(crate) fn build(data_sets: &[&str]) -> Self {
        let folder = TempDir::new().expect("a folder");
        let data = Self(folder);
        for name in data_sets {
            let arrow = data.path("arrow");
            let arguments = [
                "data",
                "build",
                name,
                "--raw",
                "fixtures/real/raw",
                "--out",
                &arrow,
            ];
            ok(&vlmerge(&arguments));
        }
        data
    }

    pub(crate) fn path(&self, name: &str) -> String {
        shown(&self.0.path().join(name))
    }

    /// Flags of a verb that runs a tiny checkpoint on the data.
    pub(crate) fn flags(&self, task: &str, split: &str) -> Vec<String> {
        let arrow = self.path("arrow");
        let flags = [
            "--task",
            task,
            "--data",
            &arrow,
            "--split",
            split,
            "--tokenizer",
            VOCABULARY,
        ];
        // The bias tables of the tiny checkpoints are not of the published length.
        let flags = flags.iter().chain(&["--text-table-len", "16"]);
        flags.map(|&flag| flag.to_owned()).collect()
    }
}

fn shown(path: &Path) -> String {
    path.to_str().expect("the path is UTF-8").to_owned()
}

pub(crate) fn ok(said: &Said) -> &Said {
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    said
}

pub(crate) fn run(arguments: &[&str], flags: &[String]) -> Said {
    let flags = flags.iter().map(String::as_str);
    vlmerge(&arguments.iter().copied().chain(flags).collect::<Vec<_>>())
}

fn json(path: &str) -> Value {
    let text = std::fs::read_to_string(path).expect("the file is there");
    serde_json::from_str(&text).expect("JSON")
}

/// Numbers of every result, by name.
fn numbers(report: &Value) -> Vec<(String, Vec<(String, f64)>)> {
    let results = report["results"].as_array().expect("results");
    let of = |result: &Value| {
        let measurements = result["measurements"].as_array().expect("numbers");
        let number = |m: &Value| {
            let name = m["name"].as_str().expect("a name").to_owned();
            (name, m["value"].as_f64().expect("a value"))
        };
        measurements.iter().map(number).collect()
    };
    let name = |result: &Value| result["name"].as_str().expect("a name").to_owned();
    results
        .iter()
        .map(|result| (name(result), of(result)))
        .collect()
}

#[test]
fn grams_of_real_pictures_merge_a_model_that_is_measured_and_shown() {
    let data = Data::build(&["coco"]);
    let (grams, merged, report) = (
        data.path("coco.gram.safetensors"),
        data.path("merged.safetensors"),
        data.path("report.json"),
    );
    let flags = data.flags("retrieval", "val");
    let said = run(&["gram", "--checkpoint", SPECIFIC, "--out", &grams], &flags);
    // 12 blocks, two experts each, four layers.
    assert!(
        ok(&said).stdout.contains("96 gram matrices of"),
        "{}",
        said.stdout
    );
    let regmean = [
        "regmean",
        SPECIFIC,
        "--grams",
        &grams,
        "--for",
        "retrieval",
        "--out",
        &merged,
    ];
    ok(&vlmerge(&regmean));
    let recipe = data.path("half.yaml");
    let yaml = format!("merge_method: interpolate\nmodels: [{{ model: {SPECIFIC} }}]\n");
    std::fs::write(&recipe, yaml).expect("written");
    let flags = data.flags("retrieval", "test");
    let evaluate = [
        "evaluate", SPECIFIC, &merged, "--merge", &recipe, "--out", &report,
    ];
    let said = run(&evaluate, &flags);
    assert!(
        ok(&said)
            .stdout
            .starts_with("coco test: 41 images, 205 texts"),
        "{}",
        said.stdout
    );
    let written = json(&report);
    let found = numbers(&written);
    assert_eq!(found.len(), 3);
    for (name, numbers) in &found {
        let names: Vec<&str> = numbers.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "tr_r1", "tr_r5", "tr_r10", "ir_r1", "ir_r5", "ir_r10", "rsum",
        ];
        assert_eq!(names, expected, "{name}");
        let sum: f64 = numbers[..6].iter().map(|(_, value)| 100.0 * value).sum();
        assert!((sum - numbers[6].1).abs() < 1e-9, "{name}");
    }
    assert_eq!(written["comparisons"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        written["results"][1]["checkpoint"]["files"][0]["name"],
        "merged.safetensors"
    );
    let page = data.path("report.html");
    ok(&vlmerge(&["report", &report, "--out", &page]));
    let page = std::fs::read_to_string(&page).expect("written");
    assert!(page.contains("merged.safetensors") && page.contains("data:image/png;base64,"));
    // Features are kept for the same flags only.
    let cache = data.path("features");
    let kept = || std::fs::read_dir(&cache).expect("a folder").count();
    let mut cached = data.flags("retrieval", "test");
    cached.extend(["--json".into(), "--cache-features".into(), cache.clone()]);
    let first = numbers(&ok(&run(&["evaluate", &merged], &cached)).json());
    assert_eq!((kept(), &first[0].1), (2, &found[1].1));
    let again = numbers(&ok(&run(&["evaluate", &merged], &cached)).json());
    assert_eq!((kept(), again), (2, first));
    let mut contradicting = cached.clone();
    contradicting.extend(["--fusion-start".into(), "9".into()]);
    let said = run(&["evaluate", &merged], &contradicting);
    assert_ne!(said.code, Some(0));
    let expected = "`fusion_start` is 10 by the file's own record, but 9 was asked for";
    assert!(said.stderr.contains(expected), "{}", said.stderr);
    cached.extend(["--shallow-attention".into(), "joint".into()]);
    ok(&run(&["evaluate", &merged], &cached));
    assert_eq!(kept(), 4);
    // The journal is gone, and the report is not overwritten unasked.
    assert!(!Path::new(&format!("{report}.unfinished")).exists());
    let said = run(&evaluate, &flags);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
}

#[test]
fn questions_and_statements_are_judged_and_their_predictions_are_official() {
    let data = Data::build(&["vqa", "nlvr2"]);
    let predictions = data.path("predictions");
    let evaluate = [
        "evaluate",
        WITH_HEADS,
        "--json",
        "--predictions",
        &predictions,
    ];
    let said = run(&evaluate, &data.flags("vqa", "val"));
    let found = numbers(&ok(&said).json());
    let [(name, value)] = &found[0].1[..] else {
        panic!("one number: {found:?}");
    };
    assert_eq!(name, "vqa_score");
    assert!((0.0..=1.0).contains(value));
    let answers = json(&format!("{predictions}/all_moe.val.json"));
    let answers = answers.as_array().expect("a list");
    assert_eq!(
        answers.len() as u64,
        said.json()["results"][0]["counts"]["questions"]
    );
    assert!(
        answers
            .iter()
            .all(|a| a["question_id"].is_i64() && a["answer"].is_string())
    );

    // A split without answers is answered, not measured.
    let said = run(&["evaluate", WITH_HEADS], &data.flags("vqa", "test-dev"));
    assert!(
        ok(&said).stdout.ends_with("nothing to measure\n"),
        "{}",
        said.stdout
    );

    let said = run(&evaluate, &data.flags("nlvr2", "dev"));
    let found = numbers(&ok(&said).json());
    let names: Vec<&str> = found[0].1.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["accuracy", "consistency"]);
    let csv = format!("{predictions}/all_moe.dev.csv");
    let csv = std::fs::read_to_string(csv).expect("written");
    // The official judge agrees, whose file has every sentence's own identifier.
    let labels = "fixtures/real/raw/nlvr2/data/dev.json";
    assert_eq!(
        csv.lines().count() as u64,
        said.json()["results"][0]["counts"]["statements"]
    );
    let judged = data.path("predictions/all_moe.dev.csv");
    let judged = vlmerge(&[
        "score",
        "nlvr2",
        "--predictions",
        &judged,
        "--labels",
        labels,
        "--json",
    ]);
    let judged = numbers(&ok(&judged).json());
    assert_eq!(judged[0].1[0], found[0].1[0]);
}

#[test]
fn a_sweep_marks_its_best_point() {
    let data = Data::build(&["coco"]);
    let out = data.path("sweep.json");
    let sweep = [
        "sweep",
        SPECIFIC,
        "--ratio",
        "0:1:0.5",
        "--for",
        "retrieval",
        "--out",
        &out,
    ];
    let said = run(&sweep, &data.flags("retrieval", "val"));
    ok(&said);
    let report = json(&out);
    let results = report["results"].as_array().expect("results");
    let points = results
        .iter()
        .map(|result| result["point"]["value"].as_f64());
    assert_eq!(
        points.collect::<Vec<_>>(),
        [Some(0.0), Some(0.5), Some(1.0)]
    );
    let rsum = |index: usize| numbers(&report)[index].1[6].1;
    let is_best = |index: usize| results[index]["point"]["is_best"] == true;
    let best: Vec<usize> = (0..3).filter(|&index| is_best(index)).collect();
    assert_eq!(best.len(), 1);
    assert!((0..3).all(|index| rsum(index) <= rsum(best[0])));
    let said = vlmerge(&[
        "sweep", SPECIFIC, "--lambda", "0:1:0.5", "--task", "vqa", "--data", ".",
    ]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    let lambda = [
        "sweep",
        SPECIFIC,
        "--lambda",
        "1",
        "--seed-checkpoint",
        SEED,
        "--json",
    ];
    let said = run(&lambda, &data.flags("retrieval", "val"));
    assert_eq!(ok(&said).json()["results"][0]["point"]["is_best"], true);
}

/// Starts the program.
pub(crate) fn start(arguments: &[&str], flags: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .args(arguments)
        .args(flags)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Kills a run as soon as `is_kept` holds; false if it ended before.
pub(crate) fn kill_once(mut child: Child, is_kept: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !is_kept() {
        if child.try_wait().expect("a process").is_some() {
            return false;
        }
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "nothing is kept"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    // SIGKILL: no handler runs.
    child.kill().expect("killed");
    child.wait().expect("ended");
    true
}

/// Runs a command with `--out` whole, and again killed after its first result: what it goes on to
/// write must be the same, and nothing may be measured twice.
fn goes_on_after_a_kill(command: &[&str]) {
    let data = Data::build(&["coco"]);
    let flags = data.flags("retrieval", "val");
    let (whole, out) = (data.path("whole.json"), data.path("killed.json"));
    ok(&run(&[command, &["--out", &whole]].concat(), &flags));
    let arguments = [command, &["--out", &out]].concat();
    let journal = format!("{out}.unfinished");
    let has_result = || {
        let files = std::fs::read_dir(&journal).into_iter().flatten().flatten();
        files
            .into_iter()
            .any(|file| file.path().extension().is_some_and(|e| e == "json"))
    };
    assert!(
        kill_once(start(&arguments, &flags), has_result),
        "it was too fast to be killed"
    );
    let said = run(&arguments, &flags);
    assert!(
        ok(&said).stderr.contains("was measured before"),
        "{}",
        said.stderr
    );
    assert_eq!(numbers(&json(&out)), numbers(&json(&whole)));
    assert!(!Path::new(&journal).exists());
}

#[test]
fn a_sweep_goes_on_after_a_kill_without_measuring_again() {
    goes_on_after_a_kill(&["sweep", SPECIFIC, "--ratio", "0:1:0.25"]);
}

#[test]
fn an_evaluation_goes_on_after_a_kill_without_measuring_again() {
    goes_on_after_a_kill(&["evaluate", SPECIFIC, SEED, WITH_HEADS]);
}

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let data = Data::build(&["coco", "vqa"]);
    let refused = |arguments: &[&str], flags: &[String], fault: &str| {
        let said = run(arguments, flags);
        assert!(matches!(said.code, Some(1 | 2)), "{}", said.stderr);
        assert!(said.stderr.contains(fault), "{}", said.stderr);
        assert_eq!(said.stdout, "");
    };
    let flags = data.flags("vqa", "val");
    refused(
        &["evaluate", SPECIFIC],
        &flags,
        "has no question answering head",
    );
    let flags = data.flags("retrieval", "test");
    let mut other = flags.clone();
    let at = other
        .iter()
        .position(|flag| flag == VOCABULARY)
        .expect("the flag");
    other[at] = "fixtures/text/vocab.txt".into();
    refused(
        &["evaluate", SPECIFIC],
        &other,
        "tokens, but the model knows 101",
    );
    let beit = "fixtures/convert/beit_perlayer.safetensors";
    refused(&["evaluate", beit], &flags, "cannot be run");
    refused(&["evaluate"], &flags, "name a checkpoint");
    let bf16 = ["evaluate", SPECIFIC, "--precision", "bf16"];
    refused(&bf16, &flags, "cpu does not compute in bf16");
    let split = data.flags("retrieval", "tset");
    refused(&["evaluate", SPECIFIC], &split, "tset");
    let agnostic = [
        "gram",
        "--checkpoint",
        SEED,
        "--out",
        "target/none.safetensors",
    ];
    refused(&agnostic, &flags, "it has no experts");
    let huge = ["evaluate", SPECIFIC, "--image-size", "1000000"];
    refused(&huge, &flags, "62500 patches a side; at most 96");
    refused(
        &["evaluate", SPECIFIC, "--limit", "0"],
        &flags,
        "at least 1",
    );
    let mut nowhere = flags.clone();
    let at = nowhere.iter().position(|flag| *flag == data.path("arrow"));
    nowhere[at.expect("the flag")] = "no/such/folder".into();
    let fault = "error: no/such/folder: cannot list: No such file";
    refused(&["evaluate", SPECIFIC], &nowhere, fault);
    let arrow = data.path("arrow");
    let over = ["evaluate", SPECIFIC, "--force", "--out", &arrow];
    refused(&over, &flags, "is a folder, not a file to write");
    assert!(!Path::new(&format!("{arrow}.unfinished")).exists());
    // The file is named once.
    refused(
        &["evaluate", "no/such.ckpt"],
        &flags,
        "error: no/such.ckpt: ",
    );
    // A truncated table.
    let table = data.0.path().join("arrow/coco_caption_karpathy_test.arrow");
    let bytes = std::fs::read(&table).expect("the table");
    std::fs::write(&table, &bytes[..bytes.len() / 2]).expect("written");
    refused(
        &["evaluate", SPECIFIC],
        &flags,
        "coco_caption_karpathy_test.arrow",
    );
}
