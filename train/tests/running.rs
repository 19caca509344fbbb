//! Whole runs of a tiny model on the fixture's pictures: learning, stopping, going on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Device;
use evaluate::datasets::captions::CaptionSet;
use merge::Progress;
use train::Error;
use train::collective::Alone;
use train::log::{LINES_FILE, read};
use train::recipe::{CheckedRecipe, TrainRecipe};
use train::run::{Ended, Trainer, Where};

use crate::fixture::{path, recipe};

/// Stops after a number of steps.
struct StopAfter(AtomicU64);

impl StopAfter {
    fn steps(n: u64) -> Self {
        Self(AtomicU64::new(n))
    }
}

impl Progress for StopAfter {
    fn advance(&self, amount: u64) {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(amount), Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}

fn run(recipe: &CheckedRecipe, folder: &Path, progress: &dyn Progress) -> train::Result<Ended> {
    let place = Where {
        folder,
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress,
    };
    Trainer::open(recipe.clone(), place)?.run()
}

fn losses(folder: &Path) -> Vec<f64> {
    let records = read(&folder.join(LINES_FILE)).expect("the log reads");
    let losses = records
        .iter()
        .filter_map(|record| record.values.get("loss"));
    losses.copied().collect()
}

/// Every tensor of a file, as bytes.
fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let file = merge::io::open(path, &merge::io::OpenOptions::default()).expect("it opens");
    let read = |(key, _): (&str, _)| (key.to_owned(), file.read_all(key).expect("it reads"));
    file.tensors().map(read).collect()
}

const PRETRAIN: &str = "[{ name: itc }, { name: itm }, { name: mlm, weight: 0.5 }]";

/// Everything that is random or is kept from step to step.
const RESTLESS: [&str; 4] = [
    "drop_path=0.2",
    "dropout=0.1",
    "augmentation={random: {}}",
    "optim.ema=0.9",
];

#[test]
fn a_batch_can_be_learned_by_heart() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: retrieval }]",
        &["length.steps=80", "optim.lr=3e-3", "batch_size=1000"],
    );
    run(&recipe, folder.path(), &merge::progress::Silent).expect("it runs");
    let losses = losses(folder.path());
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert_eq!(losses.len(), 80);
    // The captions of an image are each other's negatives, so the loss cannot fall below the
    // logarithm of their number.
    let set = CaptionSet::open(&path("arrow"), "coco", "train").expect("it opens");
    let floor = (set.n_captions() as f64 / set.n_images() as f64).ln();
    assert!(
        last - floor < 0.3 * (first - floor),
        "the loss went from {first} to {last}, its floor is {floor}"
    );
}

#[test]
fn a_run_that_was_stopped_ends_in_the_same_weights() {
    for (checkpoint, parts) in [
        ("ckpt/ufo_pretrain.ckpt", "per_device_batch=4"),
        ("ckpt/all_moe_pretrain.ckpt", "per_device_batch=2"),
    ] {
        let settings = [&RESTLESS[..], &[parts]].concat();
        let recipe = recipe(checkpoint, PRETRAIN, &settings);
        let (whole, stopped) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let ended = run(&recipe, whole.path(), &merge::progress::Silent).expect("it runs");
        assert_eq!(ended, Ended::Done);
        for steps in [2, 1, 9] {
            let ended = run(&recipe, stopped.path(), &StopAfter::steps(steps));
            let expected = if steps == 9 {
                Ended::Done
            } else {
                Ended::Stopped
            };
            assert_eq!(ended.expect("it runs"), expected);
        }
        for file in [
            "model.safetensors",
            "states/step-00000006/state.safetensors",
        ] {
            let read = |folder: &Path| tensors(&folder.join(file));
            let (whole, stopped) = (read(whole.path()), read(stopped.path()));
            assert_eq!(whole.len(), stopped.len());
            for (key, bytes) in whole {
                assert!(stopped[&key] == bytes, "{checkpoint}: {file}: `{key}`");
            }
        }
        assert_eq!(losses(whole.path()), losses(stopped.path()));
    }
}

#[test]
fn checkpointing_changes_no_number() {
    let finals = ["false", "true"].map(|checkpointing| {
        let folder = tempfile::tempdir().expect("a folder");
        let setting = format!("checkpoint_activations={checkpointing}");
        let settings = [&RESTLESS[..], &[setting.as_str()]].concat();
        let recipe = recipe("ckpt/all_moe_pretrain.ckpt", PRETRAIN, &settings);
        run(&recipe, folder.path(), &merge::progress::Silent).expect("it runs");
        losses(folder.path())
    });
    assert!(!finals[0].is_empty());
    assert_eq!(finals[0].len(), finals[1].len());
    for (kept, anew) in finals[0].iter().zip(&finals[1]) {
        assert!((kept - anew).abs() < 1e-5, "{kept} and {anew}");
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_the_part() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        PRETRAIN,
        &["optim.lr=1e15", "optim.warmup=0", "save.every={steps: 1}"],
    );
    let error = run(&recipe, folder.path(), &merge::progress::Silent);
    let Err(Error::Diverged { part, kept, .. }) = error else {
        panic!("{error:?}");
    };
    assert!(part.contains("loss") || part.contains("gradient"), "{part}");
    assert!(kept.is_some());
    assert!(
        folder
            .path()
            .join("states")
            .read_dir()
            .expect("listed")
            .count()
            == 1
    );
}

#[test]
fn best_weights_are_chosen_by_validation_data() {
    let folder = tempfile::tempdir().expect("a folder");
    let validation = "validation={task: retrieval, split: val, every: {steps: 2}}";
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: retrieval }]",
        &[validation, "optim.ema=0.5"],
    );
    run(&recipe, folder.path(), &merge::progress::Silent).expect("it runs");
    let text = std::fs::read_to_string(folder.path().join("best.json")).expect("best.json");
    let best: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert!(best["values"]["rsum"].is_number(), "{best}");
    assert!(folder.path().join("best.safetensors").exists());
}

#[test]
fn another_recipe_does_not_go_on_with_a_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = recipe("ckpt/ufo_pretrain.ckpt", PRETRAIN, &[]);
    run(&first, folder.path(), &StopAfter::steps(1)).expect("it runs");
    let other = recipe("ckpt/ufo_pretrain.ckpt", PRETRAIN, &["optim.lr=2e-3"]);
    let error = run(&other, folder.path(), &merge::progress::Silent);
    assert!(matches!(error, Err(Error::BadState { .. })), "{error:?}");
}

#[test]
fn another_tokenizer_at_the_same_path_does_not_go_on_with_a_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = folder.path().join("vocab.txt");
    let text = std::fs::read_to_string(path("real/vocab.txt")).expect("a vocabulary");
    std::fs::write(&words, &text).expect("written");
    let setting = format!("data.tokenizer={}", words.display());
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", PRETRAIN, &[&setting]);
    let place = folder.path().join("run");
    run(&recipe, &place, &StopAfter::steps(1)).expect("it runs");
    // The last two words change places: as many bytes, other ids.
    let mut lines: Vec<&str> = text.lines().collect();
    let n = lines.len();
    lines.swap(n - 2, n - 1);
    let other = lines.join("\n") + "\n";
    assert_eq!(other.len(), text.len());
    std::fs::write(&words, other).expect("written");
    let error = run(&recipe, &place, &merge::progress::Silent);
    let said = error.expect_err("another tokenizer").to_string();
    assert!(
        said.contains("other data") && said.contains("tokenizer vocab.txt: "),
        "{said}"
    );
    std::fs::write(&words, text).expect("written");
    run(&recipe, &place, &merge::progress::Silent).expect("it goes on");
}

#[test]
fn recipes_that_cannot_be_are_refused_with_the_key() {
    let whole = recipe("ckpt/ufo_pretrain.ckpt", PRETRAIN, &[]);
    let yaml = whole.to_yaml().expect("YAML");
    let parse = |settings: &[&str]| {
        let settings: Vec<String> = settings.iter().map(|&s| s.to_owned()).collect();
        TrainRecipe::parse(&yaml, Path::new("recipe.yaml"), &settings)
    };
    assert_eq!(parse(&[]).expect("it reads its own YAML"), whole);
    for (setting, expected) in [
        ("droppath=0.1", "the nearest is `drop_path`"),
        ("optim.lrr=0.1", "the nearest is `lr`"),
        ("drop_path=1.5", "drop_path"),
        ("objectives=[]", "objectives"),
        (
            "validation={task: retrieval, split: test, every: {steps: 1}}",
            "test data",
        ),
        ("init.recipe=merge.yaml", "init"),
        ("augmentation={random: {magnitude: 11}}", "magnitude"),
        ("augmentation={random: {least_area: 0}}", "least_area"),
    ] {
        let error = parse(&[setting]).expect_err(setting).to_string();
        assert!(error.contains(expected), "{setting}: {error}");
    }
}

#[test]
fn settings_that_nothing_reads_are_refused_and_defaults_are_not() {
    let whole = |objectives: &str| recipe("ckpt/ufo_pretrain.ckpt", objectives, &[]);
    let parse = |objectives: &str, setting: &str| {
        let yaml = whole("[{ name: retrieval }]").to_yaml().expect("YAML");
        let settings = [format!("objectives={objectives}"), setting.to_owned()];
        TrainRecipe::parse(&yaml, Path::new("recipe.yaml"), &settings)
    };
    for (objectives, setting, key) in [
        (
            "[{name: itc}]",
            "masking.probability=0.3",
            "masking.probability",
        ),
        (
            "[{name: ar}]",
            "masking.every_place=true",
            "masking.every_place",
        ),
        ("[{name: random_itm}]", "other_texts=3", "other_texts"),
        (
            "[{name: mlm}]",
            "image_masking={tokenizer: x}",
            "image_masking",
        ),
        (
            "[{name: itc}]",
            "model.decoder_depth=2",
            "model.decoder_depth",
        ),
        (
            "[{name: itc}]",
            "model.tied_words=false",
            "model.tied_words",
        ),
        ("[{name: itc}]", "optim.trust=0.1", "optim.trust"),
        (
            "[{name: itc}]",
            "optim={rule: lars, beta2: 0.9}",
            "optim.beta2",
        ),
        (
            "[{name: itc}]",
            "optim.loss_scale.initial=8",
            "optim.loss_scale",
        ),
    ] {
        let error = parse(objectives, setting).expect_err(setting).to_string();
        let expected = format!("`{key}`: ");
        assert!(
            error.contains(&expected) && error.contains("leave it out"),
            "{setting}: {error}"
        );
    }
    for (name, group, setting) in [
        ("ar", "language", "forward_weight: 0.5"),
        ("ar", "language", "reverse_weight: 0.5"),
        ("captioning", "language", "span_corruption: 0.5"),
        ("ar", "language", "suffix: 0.3"),
        ("prefix_lm", "language", "forward_weight: 0.5"),
        ("prefix_lm", "language", "as_published: true"),
        ("flm", "language", "suffix: 0.3"),
        ("flm", "language", "as_published: true"),
        ("nce", "contrast", "beta: 0.5"),
        ("nce", "contrast", "block: 2"),
        ("itc", "contrast", "smoothing: 0.1"),
        ("nce", "pairs", "by_image: true"),
        ("mlm", "signal", "image_ratio: 0.5"),
    ] {
        let objectives = format!("[{{name: {name}, {group}: {{{setting}}}}}]");
        let error = parse(&objectives, "seed=1").expect_err(setting).to_string();
        let expected = format!("`{name}` does not read it: only ");
        assert!(
            error.contains(&expected) && error.contains(group),
            "{objectives}: {error}"
        );
    }
    // Who reads a setting may have it, and a recipe may say what holds anyway.
    for (objectives, setting) in [
        ("[{name: itc}, {name: mlm}]", "masking.probability=0.3"),
        ("[{name: ranking}]", "other_texts=3"),
        (
            "[{name: itc}]",
            "masking={probability: 0.15, whole_word: true}",
        ),
        ("[{name: itc}]", "optim={rule: lars, trust: 0.1}"),
        (
            "[{name: flm, language: {suffix: 0.5, reverse_weight: 0.5}}]",
            "seed=1",
        ),
        (
            "[{name: nce, contrast: {beta: 0.1, smoothing: 0.1}}]",
            "seed=1",
        ),
        ("[{name: itc}]", "other_texts=15"),
    ] {
        let parsed = parse(objectives, setting);
        assert!(parsed.is_ok(), "{objectives} {setting}: {:?}", parsed.err());
    }
    let yaml = whole(PRETRAIN).to_yaml().expect("YAML");
    TrainRecipe::parse(&yaml, Path::new("recipe.yaml"), &[])
        .expect("all settings at their defaults");
}

#[test]
fn settings_that_only_a_model_or_a_measurement_could_read_are_refused_before_the_run() {
    for (setting, key) in [
        ("optim.lr_mult=10", "optim.lr_mult"),
        ("optim.head_weight_decay=0.5", "optim.head_weight_decay"),
        ("model.routing=capacity", "model.routing"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let recipe = recipe(
            "ckpt/ufo_pretrain.ckpt",
            "[{ name: retrieval }]",
            &[setting],
        );
        let error = run(&recipe, folder.path(), &merge::progress::Silent);
        let said = error.expect_err(setting).to_string();
        assert!(
            said.contains(key) && said.contains("leave it out"),
            "{setting}: {said}"
        );
    }
    // Named variables are a head.
    let folder = tempfile::tempdir().expect("a folder");
    let settings = [
        "optim.lr_mult=10",
        "optim.heads=[text_embeddings]",
        "length={steps: 1}",
    ];
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: retrieval }]", &settings);
    run(&recipe, folder.path(), &merge::progress::Silent).expect("it runs");
}
