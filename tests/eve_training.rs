//! EVE from fresh weights to its tasks: pre-trained by masked signals on the fixture's pictures, then fine-tuned by the
//! shipped recipes, each for a few steps of a tiny model.

use std::path::Path;

use tempfile::TempDir;

use crate::program::{ok, run};

/// The sizes of the model, and what all runs have in common.
const SIZES: &str = "{family:~eve,~blocks:~3,~width:~32,~attention_heads:~2,~mixtures:~1,~experts:~4,\
                     ~patch_size:~8,~image_size:~32,~text_len:~24,~pair_len:~16,~vocabulary:~101}";
const USUAL: &str = "--set data.folder=fixtures/arrow --set data.tokenizer=fixtures/real/vocab.txt \
                     --set batch_size=4 --set validation=null";

/// Pre-trains into `{}/pre`, with `settings` on top.
fn pretrain(folder: &TempDir, settings: &str) {
    ok(run(
        &format!(
            "-q pretrain docs/recipes/train/eve_pretrain_base.yaml --out {{}}/pre --set init={{synth:~{SIZES}}} \
             {USUAL} --set data.train=[{{dataset:~coco,~split:~train}}] --set length={{steps:~4}} \
             --set optim={{lr:~1e-3,~warmup:~1}} --set save={{keep:~1}} {settings}"
        ),
        folder,
    ));
}

/// The numbers of each step of a run.
fn steps(folder: &TempDir, run: &str) -> Vec<serde_json::Value> {
    let path = folder.path().join(run).join("metrics.jsonl");
    let text = std::fs::read_to_string(path).expect("a log");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line"));
    lines.collect()
}

fn number(step: &serde_json::Value, name: &str) -> f64 {
    let found = step.get(name).or_else(|| step["values"].get(name));
    found
        .and_then(serde_json::Value::as_f64)
        .unwrap_or_else(|| panic!("no {name} in {step}"))
}

fn weights(path: &Path) -> Vec<(String, Vec<u8>)> {
    let file = merge::io::open(path, &merge::io::OpenOptions::default()).expect("it opens");
    let read = |(key, _): (&str, _)| (key.to_owned(), file.read_all(key).expect("it reads"));
    file.tensors().map(read).collect()
}

#[test]
fn eve_is_pretrained_by_masked_signals_and_fine_tuned_for_each_task() {
    let folder = tempfile::tempdir().expect("a folder");
    pretrain(&folder, "");
    for step in steps(&folder, "pre") {
        let parts = ["masked_signal_pixel_loss", "masked_signal_word_loss"];
        let sum: f64 = parts.iter().map(|part| number(&step, part)).sum();
        let loss = number(&step, "loss/masked_signal");
        assert!((sum - loss).abs() < 1e-4 * loss, "{step}");
        // Experts are nearly evenly chosen: at most all tokens go to one of four.
        let balance = number(&step, "loss/balance");
        assert!((1.0 - 1e-3..=4.0).contains(&balance), "{step}");
        let total = number(&step, "loss");
        assert!(
            (total - loss - 0.001 * balance).abs() < 1e-4 * total,
            "{step}"
        );
    }
    for (recipe, data, losses) in [
        ("eve_coco_base", "coco", &["loss/itc", "loss/itm"][..]),
        ("eve_f30k_base", "f30k", &["loss/itc", "loss/itm"]),
        ("eve_vqa_base", "vqa", &["loss/vqa"]),
        ("eve_nlvr2_base", "nlvr2", &["loss/nlvr2"]),
    ] {
        let tuned = |out: &str, more: &str| {
            let command = format!(
                "-q finetune --recipe docs/recipes/train/{recipe}.yaml --init {{}}/pre/model.safetensors --out {{}}/{out} \
                 {USUAL} --set model.image_size=48 --set data.train=[{{dataset:~{data},~split:~train}}] \
                 --set length={{steps:~4}} --set save={{every:~{{steps:~2}},~keep:~4}} {more}"
            );
            run(&command, &folder)
        };
        ok(tuned(recipe, ""));
        for step in steps(&folder, recipe) {
            for loss in losses {
                assert!(number(&step, loss) > 0.0, "{recipe}: {step}");
            }
            assert!(
                number(&step, "loss/balance") >= 1.0 - 1e-3,
                "{recipe}: {step}"
            );
        }
        // Variables that the checkpoint lacked learn at their own rate after the run is resumed, too.
        let place = folder.path().join(recipe);
        let whole = weights(&place.join("model.safetensors"));
        std::fs::remove_dir_all(place.join("states/step-00000004")).expect("removed");
        for name in ["model.safetensors", "SHA256SUMS"] {
            std::fs::remove_file(place.join(name)).expect("removed");
        }
        ok(tuned(recipe, "--resume"));
        assert!(
            whole == weights(&place.join("model.safetensors")),
            "{recipe}"
        );
    }
}

#[test]
fn eve_is_pretrained_by_every_choice_of_masked_signals() {
    for (model, signal) in [
        ("{decoder_depth:~1}", "{style:~drop,~patches:~blockwise}"),
        (
            "{tied_words:~false}",
            "{passes:~separate,~words:~mask_only}",
        ),
        (
            "{decoder_depth:~2}",
            "{norm_target:~false,~image_weight:~0.5}",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let start = "{}/start.safetensors";
        ok(run(
            &format!(
                "-q synth --family eve --blocks 2 --width 32 --mixtures 1 --experts 4 --patch-size 8 --image-size 32 \
                 --text-len 24 --pair-len 16 --vocabulary 101 {start}"
            ),
            &folder,
        ));
        pretrain(
            &folder,
            &format!(
                "--set init={{checkpoint:~{start}}} --set model={model} \
                 --set objectives=[{{name:~masked_signal,~signal:~{signal}}}]"
            ),
        );
        assert_eq!(steps(&folder, "pre").len(), 4);
        // The model says itself what it has: the run goes on from its file.
        let said = run(
            &format!(
                "-q pretrain {{}}/pre/recipe.yaml --out {{}}/again --set init.checkpoint={{}}/pre/model.safetensors \
                 --set model={{}} {USUAL}"
            )
            .replace("--set model={}", "--set model={image_size:~32}"),
            &folder,
        );
        assert_eq!(said.code, Some(0), "{model} {signal}: {}", said.stderr);
    }
}

#[test]
fn settings_that_an_eve_cannot_have_are_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |settings: &str, key: &str| {
        let said = run(
            &format!(
                "-q pretrain docs/recipes/train/eve_pretrain_base.yaml --out {{}}/pre --set init={{synth:~{SIZES}}} \
                 {USUAL} --set data.train=[{{dataset:~coco,~split:~train}}] --set length={{steps:~1}} \
                 --set optim={{lr:~1e-3,~warmup:~0}} --set save={{keep:~1}} {settings}"
            ),
            &folder,
        );
        assert_ne!(said.code, Some(0), "{settings}");
        assert!(said.stderr.contains(key), "{settings}: {}", said.stderr);
        assert!(!folder.path().join("pre").join("model.safetensors").exists());
    };
    refused("--set objectives.0.signal.image_ratio=1.5", "image_ratio");
    refused(
        "--set objectives.0.signal.style=gone",
        "`inplace` or `drop`",
    );
    refused(
        "--set objectives.0.signal.style=drop",
        "model.decoder_depth",
    );
    refused("--set balance=-1", "balance");
    refused(
        "--set objectives=[{name:~vqa,~pairs:~{by_image:~true}}]",
        "pairs",
    );
    refused(
        "--set init={synth:~{family:~eve,~fusion_start:~1}}",
        "synth.fusion_start",
    );
    refused("--set init={synth:~{experts:~4}}", "synth.experts");
}
