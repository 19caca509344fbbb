//! A study as a user starts, changes, kills and continues it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::program::{Said, start, vlmerge};

/// The study of the README, cut down to a few steps of training.
const SHORT: [&str; 6] = [
    "budget_steps=4",
    "seed_steps=[0, 2]",
    "main_seed_steps=2",
    "pretrain.batch_size=8",
    "tasks.0.finetune.batch_size=8",
    "tasks.0.finetune.length={steps: 2}",
];

fn arguments<'a>(out: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["study", "docs/recipes/study-smallest.yaml", "--out", out];
    for setting in SHORT.iter().chain(settings) {
        arguments.extend(["--set", setting]);
    }
    arguments
}

fn study(out: &str, settings: &[&str], flags: &[&str]) -> Said {
    vlmerge(&[&arguments(out, settings), flags].concat())
}

/// Names of steps with the work that is left.
fn standing(out: &str, settings: &[&str]) -> BTreeMap<String, String> {
    let said = study(out, settings, &["--dry-run", "--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let steps = said.json();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let steps = steps.as_array().expect("a list");
    steps
        .iter()
        .map(|step| (text(&step["name"]), text(&step["standing"])))
        .collect()
}

/// The files of every training step of a study, as bytes.
fn weights(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut weights = BTreeMap::new();
    for step in std::fs::read_dir(out.join("steps")).expect("steps") {
        let step = step.expect("an entry").path();
        if let Ok(file) = merge::io::open(
            &step.join("run/model.safetensors"),
            &merge::io::OpenOptions::default(),
        ) {
            let mut bytes = Vec::new();
            for (key, _) in file.tensors() {
                bytes.extend(file.read_all(key).expect("it reads"));
            }
            let name = step
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            weights.insert(name, bytes);
        }
    }
    weights
}

#[test]
fn a_study_does_what_is_not_done_and_what_a_change_concerns() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    let out = out.to_str().expect("UTF-8");

    let said = study(out, &[], &["--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    let n_steps = found["steps"]["run"].as_u64().expect("a number");
    assert_eq!(found["steps"]["kept"], 0);
    let results = found["test"][0]["results"].as_array().expect("results");
    let names: Vec<_> = results
        .iter()
        .map(|result| result["name"].as_str())
        .collect();
    let expected = [
        "agnostic",
        "modality-specific",
        "interpolate",
        "arithmetic",
        "regmean",
    ];
    assert_eq!(names, expected.map(Some));
    let page = std::fs::read_to_string(Path::new(out).join("report.html")).expect("a page");
    for shown in [
        "regmean",
        "seed steps",
        "ratio",
        "was chosen on the split val",
    ] {
        assert!(page.contains(shown), "{shown}");
    }

    let again = study(out, &[], &["--json"]).json();
    assert_eq!(again["steps"]["run"], 0);
    assert_eq!(again["steps"]["kept"], n_steps);
    assert_eq!(again["test"], found["test"]);

    // A rate of fine-tuning concerns neither pre-training nor merges.
    let changed = standing(out, &["tasks.0.finetune.optim.lr=1e-4"]);
    for (name, standing) in &changed {
        let concerned = name.starts_with("finetune") || name.starts_with("evaluate");
        let expected = if concerned { "to do" } else { "finished" };
        assert_eq!(standing, expected, "{name}");
    }
    // A point more needs a merge, its training, and the tables.
    let changed = standing(out, &["merges.0.ratio=[0.25, 0.5, 0.6, 0.75]"]);
    let to_do: Vec<&str> = changed
        .iter()
        .filter(|(_, standing)| *standing == "to do")
        .map(|(name, _)| name.as_str())
        .collect();
    let expected = [
        "evaluate-coco-test",
        "evaluate-coco-validation",
        "finetune-coco-2-interpolate-ratio-0.6",
        "merge-coco-2-interpolate-ratio-0.6",
    ];
    assert_eq!(to_do, expected);

    // A lost output is made again, and so are the steps after it.
    let lost = Path::new(out).join("steps/seed-2/run/model.safetensors");
    std::fs::remove_file(lost).expect("removed");
    let mended = study(out, &[], &["--json"]).json();
    assert!(mended["steps"]["run"].as_u64() > Some(0));
    assert!(mended["steps"]["kept"].as_u64() > Some(0));
    assert_eq!(
        mended["test"][0]["results"][2]["measurements"],
        found["test"][0]["results"][2]["measurements"]
    );
}

#[test]
fn a_study_that_is_killed_goes_on_and_ends_in_the_same_weights() {
    let temporary = tempfile::tempdir().expect("a folder");
    let (whole, killed) = (
        temporary.path().join("whole"),
        temporary.path().join("killed"),
    );
    let of = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (whole_name, killed_name) = (of(&whole), of(&killed));
    let begun = Instant::now();
    let said = study(&whole_name, &[], &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let share = begun.elapsed() / 6;
    for kill in 0..5_u32 {
        let mut child = start(&arguments(&killed_name, &[]));
        std::thread::sleep(share + Duration::from_millis(u64::from(kill) * 37));
        // SIGKILL: nothing is tidied up, and the process of the step dies with it.
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
    let said = study(&killed_name, &[], &[]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(weights(&whole).len() > 5);
    assert!(weights(&whole) == weights(&killed));
}

#[test]
fn a_folder_of_others_is_left_alone() {
    let temporary = tempfile::tempdir().expect("a folder");
    let file = temporary.path().join("steps/data/mine.txt");
    std::fs::create_dir_all(file.parent().expect("a folder")).expect("made");
    std::fs::write(&file, "mine").expect("written");
    let said = study(temporary.path().to_str().expect("UTF-8"), &[], &[]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    assert!(said.stderr.contains("is no study's"), "{}", said.stderr);
    assert!(file.exists());
}

#[test]
fn a_step_that_fails_is_named_with_its_command() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    let said = study(out.to_str().expect("UTF-8"), &["tasks.0.test=nowhere"], &[]);
    assert_ne!(said.code, Some(0));
    for shown in [
        "step evaluate-coco-test",
        "nowhere",
        "its command: vlmerge evaluate",
    ] {
        assert!(said.stderr.contains(shown), "{}", said.stderr);
    }
}

#[test]
fn recipes_that_cannot_be_are_refused_before_any_work() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    for (setting, expected) in [
        ("budget_stepz=1", "the nearest is `budget_steps`"),
        ("main_seed_steps=3", "3 is not in `seed_steps`"),
        ("budget_steps=2", "nothing is left for the experts"),
        (
            "tasks.0.validation=test",
            "would be chosen on the test split",
        ),
        ("pretrain.optim.lrr=1", "the nearest is `lr`"),
        ("pretrain.length={steps: 3}", "the study says that itself"),
        ("merges.0.method=interpolat", "interpolat"),
        (
            "init.expand=all-specific",
            "starts from a modality-agnostic model",
        ),
        ("specific=ln-specific", "only norms have copies"),
        ("specific=[]", "there is no form in the list"),
        (
            "specific=[all-specific, agnostic]",
            "it is every study's baseline",
        ),
        (
            "specific=[ffn-specific, ffn-specific]",
            "a form comes twice",
        ),
        (
            "merges_of_forms=[{ method: arithmetic, lambda: 0.5 }]",
            "`specific` lists no second form",
        ),
        (
            "tasks.0.also=[{ name: far, data: {}, test: test }]",
            "give a `folder`",
        ),
        (
            "tasks.0.also=[{ name: far, data: { folder: a }, test: test }, { name: far, data: { folder: a }, test: val }]",
            "or comes twice",
        ),
    ] {
        let said = study(out.to_str().expect("UTF-8"), &[setting], &[]);
        assert_eq!(said.code, Some(2), "{setting}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{setting}: {}", said.stderr);
        assert!(!out.exists(), "{setting}");
    }
}

#[test]
fn forms_of_experts_and_further_data_have_tables_and_sentences_of_their_own() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    let out = out.to_str().expect("UTF-8");
    let settings = [
        "specific=[all-specific, ffn-specific, ln-specific]",
        "merges_of_forms=[{ method: interpolate, ratio: 0.5 }, { method: regmean, shrink: 0.9 }]",
        "tasks.0.also=[{ name: far away, data: { build: { raw: fixtures/real/raw, sets: [coco] } }, test: val }]",
    ];
    let said = study(out, &settings, &["--json"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let found = said.json();
    let names = |results: &serde_json::Value| -> Vec<String> {
        let results = results.as_array().expect("results").iter();
        results
            .map(|result| result["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    // The same rows on further data; nothing of it is on the split that parameters are chosen on.
    let [near, far] = [0, 1].map(|at| &found["test"][at]["results"]);
    assert_eq!(names(near), names(far));
    assert_eq!(near[0]["dataset"], "coco");
    assert_eq!(far[0]["dataset"], "coco, far away");
    assert_eq!(far[0]["split"], "val");

    let forms = Path::new(out).join("steps/evaluate-coco-forms/report.json");
    let forms = std::fs::read_to_string(forms).expect("a report");
    let forms: serde_json::Value = serde_json::from_str(&forms).expect("JSON");
    let expected = [
        "agnostic",
        "all-specific",
        "all-specific, interpolate ratio 0.5",
        "all-specific, regmean shrink 0.9",
        "ffn-specific",
        "ffn-specific, interpolate ratio 0.5",
        "ffn-specific, regmean shrink 0.9",
        "ln-specific",
        "ln-specific, interpolate ratio 0.5",
    ];
    assert_eq!(names(&forms["results"]), expected);

    let statements = found["statements"].as_array().expect("sentences");
    let said = |words: &str| {
        let mut texts = statements.iter().filter_map(|text| text.as_str());
        texts.any(|text| text.contains(words))
    };
    for words in [
        "RSUM of regmean against that of agnostic",
        "COCO, far away val",
        "RSUM of the baseline against that of interpolate ratio 0.5 without a seed",
        // Two seeds and two more forms.
        "over 4 pairs of experts, the distance by l2 of vision vs language",
    ] {
        assert!(said(words), "{words}: {statements:#?}");
    }
    let page = std::fs::read_to_string(Path::new(out).join("report.html")).expect("a page");
    assert!(page.contains("only norms have copies"));
}

const OF_TOWERS: &str = "docs/recipes/study-zerovl.yaml";

#[test]
fn a_study_of_two_towers_merges_experts_that_have_data_of_their_own() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    let mut arguments = vec!["study", OF_TOWERS, "--json", "--out"];
    arguments.push(out.to_str().expect("UTF-8"));
    for setting in ["budget_steps=4", "seed_steps=[0, 2]", "main_seed_steps=2"] {
        arguments.extend(["--set", setting]);
    }
    arguments.extend(["--set", "pretrain.batch_size=8"]);
    let said = vlmerge(&arguments);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let results = said.json()["test"][0]["results"].clone();
    let results = results.as_array().expect("results").iter();
    let names: Vec<_> = results.map(|result| result["name"].as_str()).collect();
    let merges = ["linear", "task_arithmetic", "ties", "regmean"];
    let expected = ["agnostic", "first", "second"].into_iter().chain(merges);
    assert_eq!(names, expected.map(Some).collect::<Vec<_>>());
    // Seed and experts together have the budget: two of four steps, and one each.
    let steps = |step: &str| {
        let recipe = out.join("steps").join(step).join("recipe.yaml");
        let recipe = std::fs::read_to_string(recipe).expect("a recipe");
        let length = recipe.split("length:").nth(1).expect("a length");
        let digits = length.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits
            .split(|c: char| !c.is_ascii_digit())
            .next()
            .map(str::to_owned)
    };
    for (step, n) in [
        ("agnostic", "4"),
        ("seed-2", "2"),
        ("expert-first-2", "1"),
        ("expert-first-0", "2"),
    ] {
        assert_eq!(steps(step).as_deref(), Some(n), "{step}");
    }
    let page = std::fs::read_to_string(out.join("report.html")).expect("a page");
    for shown in [
        "first after 2 seed steps against second after 2 seed steps",
        "2 experts sharing",
    ] {
        assert!(page.contains(shown), "{shown}");
    }
}

#[test]
fn studies_of_towers_that_cannot_be_are_refused() {
    let temporary = tempfile::tempdir().expect("a folder");
    let out = temporary.path().join("study");
    let train = "data: { train: [{ dataset: coco, split: train }] }";
    for (setting, expected) in [
        ("experts=[]".to_owned(), "no copies per modality"),
        ("specific=all-specific".into(), "take the place of copies"),
        (
            format!("experts=[{{ name: a, {train} }}]"),
            "has nothing to be merged with",
        ),
        (
            format!("experts=[{{ name: a, {train} }}, {{ name: a, {train} }}]"),
            "a comes twice",
        ),
        (
            format!("experts=[{{ name: a/b, {train} }}, {{ name: c, {train} }}]"),
            "names no expert",
        ),
        (
            "experts=[{ name: a, length: { steps: 3 } }, { name: c }]".into(),
            "`experts.length`: the study says that itself",
        ),
        (
            "experts=[{ name: a, optim: { lrr: 1 } }, { name: c }]".into(),
            "the nearest is `lr`",
        ),
        ("budget_steps=301".into(), "cannot be shared by 2 experts"),
    ] {
        let said = vlmerge(&[
            "study",
            OF_TOWERS,
            "--out",
            out.to_str().expect("UTF-8"),
            "--set",
            &setting,
        ]);
        assert_eq!(said.code, Some(2), "{setting}: {}", said.stderr);
        assert!(said.stderr.contains(expected), "{setting}: {}", said.stderr);
        assert!(!out.exists(), "{setting}");
    }
}

#[test]
fn every_shipped_study_resolves() {
    for (name, least) in [
        ("smallest", 20),
        ("mini", 20),
        ("base", 20),
        ("zerovl", 20),
        ("flm", 50),
        ("flm-pictures", 50),
        ("clip", 100),
        ("experts", 30),
        ("emoji", 150),
    ] {
        let recipe = format!("docs/recipes/study-{name}.yaml");
        let said = vlmerge(&["study", &recipe, "--out", "nowhere", "--dry-run", "--json"]);
        assert_eq!(said.code, Some(0), "{name}: {}", said.stderr);
        let n_steps = said.json().as_array().expect("steps").len();
        assert!(n_steps > least, "{name}: {n_steps}");
    }
}
