//! Starts and data of runs beside checkpoints and captions: BEiT with fresh weights for
//! its missing parts, and texts alone.

use std::path::Path;

use candle_core::Device;
use merge::progress::Silent;
use train::collective::Alone;
use train::log::{LINES_FILE, read};
use train::recipe::CheckedRecipe;
use train::run::{Trainer, Where};

use crate::fixture::{path, recipe};

fn run(recipe: CheckedRecipe, folder: &Path) -> train::Result<Vec<f64>> {
    let place = Where {
        folder,
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    Trainer::open(recipe, place)?.run()?;
    let records = read(&folder.join(LINES_FILE)).expect("the log reads");
    Ok(records.iter().map(|record| record.values["loss"]).collect())
}

/// Sizes of the fixture, for what BEiT lacks.
const FILL: &str = "{size: tiny, blocks: 12, width: 24, attention_heads: 3, image_size: 48, \
                    text_len: 12, text_table_len: 16, fusion_start: 10, vocabulary: 101}";

#[test]
fn beit_becomes_a_seed_with_fresh_weights_for_what_it_lacks() {
    for (file, form) in [
        ("beit_shared", "agnostic"),
        ("beit_perlayer", "all-specific"),
    ] {
        let init = path(&format!("convert/{file}.safetensors"));
        let init = format!(
            "init={{checkpoint: \"{}\", expand: {form}, fill: {FILL}}}",
            init.display()
        );
        let settings = [init.as_str(), "model={}", "length={steps: 2}"];
        let recipe = recipe(
            "ckpt/ufo_pretrain.ckpt",
            "[{ name: itc }, { name: itm }, { name: mlm }]",
            &settings,
        );
        let folder = tempfile::tempdir().expect("a folder");
        let losses = run(recipe, folder.path()).expect("it runs");
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    }
    let other = FILL.replace("width: 24", "width: 48");
    let init = path("convert/beit_shared.safetensors");
    let init = format!(
        "init={{checkpoint: \"{}\", expand: agnostic, fill: {other}}}",
        init.display()
    );
    let recipe = recipe(
        "ckpt/ufo_pretrain.ckpt",
        "[{ name: itc }]",
        &[&init, "model={}"],
    );
    let folder = tempfile::tempdir().expect("a folder");
    let error = run(recipe, folder.path())
        .expect_err("it is wider")
        .to_string();
    assert!(
        error.contains("init.fill") && error.contains("48"),
        "{error}"
    );
}

#[test]
fn texts_alone_are_learned_from_and_longer_positions_are_cut() {
    let data = tempfile::tempdir().expect("a folder");
    // Only the lists of captions are read.
    let captions = path("arrow/coco_caption_karpathy_train.arrow");
    std::fs::copy(captions, data.path().join("wikibk_train_0.arrow")).expect("copied");
    let folder = format!("data.folder=\"{}\"", data.path().display());
    let texts = "data.train=[{dataset: wikibk, split: train}]";
    let settings = [
        folder.as_str(),
        texts,
        "model.text_len=8",
        "optim.trainable=[text_embeddings, mlm_score, transformer.norm]",
    ];
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: text_mlm }]", &settings);
    let run_folder = tempfile::tempdir().expect("a folder");
    let place = Where {
        folder: run_folder.path(),
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    let mut trainer = Trainer::open(recipe, place).expect("it opens");
    assert_eq!(trainer.start().model.input().text.len, 8);
    trainer.run().expect("it runs");
}

#[test]
fn texts_alone_are_built_of_plain_files_and_learned_by_heart() {
    let folder = tempfile::tempdir().expect("a folder");
    let raw = folder.path().join("raw");
    std::fs::create_dir_all(raw.join("train")).expect("made");
    let texts = "a red bird sits on a tree\na blue fish swims\n";
    std::fs::write(raw.join("train/1.txt"), texts).expect("written");
    std::fs::write(raw.join("train/2.txt"), "the dog runs\n").expect("written");
    let options = evaluate::build::BuildOptions {
        raw,
        out: folder.path().join("arrow"),
        splits: Vec::new(),
        seed: 0,
        skip_bad: false,
        force: false,
    };
    let report = evaluate::build::build("wikibk", &options, &Silent, |_, _| ()).expect("built");
    let rows: Vec<usize> = report.files.iter().map(|file| file.n_rows).collect();
    assert_eq!(rows, [2, 1]);
    let data = format!("data.folder=\"{}\"", options.out.display());
    let settings = [
        data.as_str(),
        "data.train=[{dataset: wikibk, split: train}]",
        "length={steps: 60}",
        "batch_size=3",
        "optim={lr: 1e-2, warmup: 2, trainable: [text_embeddings, mlm_score]}",
    ];
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: text_mlm }]", &settings);
    let losses = run(recipe, &folder.path().join("run")).expect("it runs");
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..10]), mean(&losses[losses.len() - 10..]));
    assert!(last < 0.8 * first, "{first} {last}");
}

#[test]
fn a_run_tells_how_fast_data_came() {
    let recipe = recipe("ckpt/ufo_pretrain.ckpt", "[{ name: retrieval }]", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let place = Where {
        folder: folder.path(),
        device: Device::Cpu,
        collective: &Alone,
        experts: None,
        progress: &Silent,
    };
    let mut trainer = Trainer::open(recipe, place).expect("it opens");
    trainer.run().expect("it runs");
    let pace = trainer.pace();
    // Six steps of four examples.
    assert_eq!(pace.examples, 24);
    assert!(pace.input_examples_per_second > 0.0 && pace.waited_seconds <= pace.seconds);
    let records = read(&folder.path().join(LINES_FILE)).expect("the log reads");
    for name in [
        "input_examples_per_second",
        "seconds_waiting_for_data",
        "examples_per_second",
    ] {
        assert!(
            records.iter().all(|record| record.values[name] >= 0.0),
            "{name}"
        );
    }
}
