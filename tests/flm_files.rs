//! Records in files of FLM, and data and files that do not fit them.

use std::path::Path;

use fixtures::{tensors, write};
use serde_json::Value;
use tempfile::TempDir;

use crate::csv_tables::table;
use crate::program::{Said, ok, run};

/// Sizes of a tiny FLM.
const TINY: &str = "--blocks 2 --width 64 --text-blocks 2 --text-width 64 --cross-blocks 2 --image-size 32 \
                    --patch-size 8 --vocabulary 50265";

/// Heads of the tiny FLMs of the golden set.
const HEADS: &str = "--heads 2 --image-heads 2 --text-heads 2";

/// Their tokenizer.
const TOY: &str = "--tokenizer fixtures/flm/tok/toy";

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

/// The record of a file.
fn record(folder: &TempDir, name: &str) -> Value {
    let path = folder.path().join(name);
    let opened = merge::io::open(&path, &merge::io::OpenOptions::default()).expect("it opens");
    let record = opened.info().metadata.get("vlmerge.model");
    serde_json::from_str(record.expect("a record")).expect("JSON")
}

fn refused(said: &Said, words: &[&str]) {
    assert_ne!(said.code, Some(0), "{}", said.stdout);
    for word in words {
        assert!(said.stderr.contains(word), "no {word}: {}", said.stderr);
    }
}

#[test]
fn a_model_of_one_stream_is_read_as_it_was_trained() {
    let folder = folder();
    for (task, streams, other) in [
        ("ar", "causal", "bidirectional"),
        ("mlm", "bidirectional", "causal"),
    ] {
        ok(run(
            &format!("-q synth --family flm --task {task} {TINY} {{}}/{task}.safetensors"),
            &folder,
        ));
        assert_eq!(
            record(&folder, &format!("{task}.safetensors"))["streams"],
            streams
        );
        // A classifier's weights do not tell, so the file does.
        let vqa = format!("{task}_vqa.safetensors");
        ok(run(
            &format!("-q expand {{}}/{task}.safetensors {{}}/{vqa} --to flm-vqa --answers 10"),
            &folder,
        ));
        assert_eq!(record(&folder, &vqa)["streams"], streams);
        // Merges and conversions carry it along.
        ok(run(
            &format!("-q convert {{}}/{vqa} {{}}/{task}.ckpt"),
            &folder,
        ));
        assert_eq!(record(&folder, &format!("{task}.ckpt"))["streams"], streams);
        let said = ok(run(&format!("inspect {{}}/{vqa}"), &folder));
        let how = match streams {
            "causal" => "texts are read from left to right, by the file's metadata",
            _ => "every token sees the whole text, by the file's metadata",
        };
        assert!(said.stdout.contains(how), "{}", said.stdout);
        // Flags that say otherwise are refused, in training, too.
        let flags = format!("--streams {other}");
        let said = evaluate(&folder, &vqa, "vqa", &flags);
        refused(&said, &[&vqa, "`streams`", streams, other]);
        let said = train(&folder, &vqa, other, "out");
        refused(&said, &[&vqa, "`streams`", streams, other]);
        ok(train(&folder, &vqa, streams, &format!("run_{task}")));
        let trained = format!("run_{task}/model.safetensors");
        assert_eq!(record(&folder, &trained)["streams"], streams);
    }
    // Two models that read differently are not merged into one.
    let recipe = format!(
        "merge_method: linear\nmodels:\n- {{ model: {0}/ar_vqa.safetensors, parameters: {{ weight: 1 }} }}\n\
         - {{ model: {0}/mlm_vqa.safetensors, parameters: {{ weight: 1 }} }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    let said = run("merge {}/recipe.yaml --out {}/merged.safetensors", &folder);
    refused(&said, &["streams", "mlm_vqa.safetensors"]);
    // A model of three streams that is fine-tuned in one says so, and one of three does not.
    ok(run(
        &format!("-q synth --family flm --task vqa --answers 10 {TINY} {{}}/three.safetensors"),
        &folder,
    ));
    assert_eq!(record(&folder, "three.safetensors").get("streams"), None);
    ok(train(&folder, "three.safetensors", "causal", "run_one"));
    assert_eq!(
        record(&folder, "run_one/model.safetensors")["streams"],
        "causal"
    );
    ok(evaluate(&folder, "run_one/model.safetensors", "vqa", ""));
    let said = evaluate(
        &folder,
        "run_one/model.safetensors",
        "vqa",
        "--streams three",
    );
    refused(&said, &["`streams`", "causal", "three"]);
}

#[test]
fn a_run_records_no_way_of_reading_that_no_objective_trains() {
    let folder = folder();
    ok(run(
        &format!("-q synth --family flm --task pretrain {TINY} {{}}/pretrain.safetensors"),
        &folder,
    ));
    let train = |objectives: &str, streams: &str, out: &str| {
        run(
            &format!(
                "-q pretrain docs/recipes/train/flm_pretrain.yaml --out {{}}/{out} \
                 --set init.checkpoint={{}}/pretrain.safetensors --set data.folder=fixtures/arrow \
                 --set data.tokenizer=fixtures/text/roberta --set data.train=[{{dataset:~coco,~split:~train}}] \
                 --set model={{streams:~{streams}}} --set objectives={objectives} --set batch_size=2 \
                 --set per_device_batch=2 --set length={{steps:~1}} --set precision=f32"
            ),
            &folder,
        )
    };
    for (number, (objectives, refused_ways, taken)) in [
        ("[{name:~flm}]", &["causal", "bidirectional"][..], "three"),
        (
            "[{name:~ar,~language:~{as_published:~true}}]",
            &["causal"][..],
            "three",
        ),
        (
            "[{name:~flm},~{name:~random_itm}]",
            &["causal"][..],
            "three",
        ),
        ("[{name:~mlm}]", &["causal", "three"][..], "bidirectional"),
    ]
    .into_iter()
    .enumerate()
    {
        for way in refused_ways {
            let said = train(objectives, way, "refused");
            refused(
                &said,
                &[
                    "model.streams",
                    &format!("`{way}`"),
                    "no objective trains",
                    taken,
                ],
            );
        }
        ok(train(objectives, taken, &format!("run{number}")));
    }
}

fn evaluate(folder: &TempDir, model: &str, task: &str, more: &str) -> Said {
    let line = format!(
        "-q evaluate {{}}/{model} --task {task} --data fixtures/arrow --split train --limit 2 \
         --allow-other-answers --tokenizer fixtures/text/roberta {more}"
    );
    let line = match task {
        "vqa" => line,
        _ => line.replace("--allow-other-answers", ""),
    };
    run(&line, folder)
}

/// A step of training.
fn train(folder: &TempDir, model: &str, streams: &str, out: &str) -> Said {
    run(
        &format!(
            "-q pretrain docs/recipes/train/flm_vqa.yaml --out {{}}/{out} \
             --set init.checkpoint={{}}/{model} --set data.folder=fixtures/arrow \
             --set data.tokenizer=fixtures/text/roberta --set data.train=[{{dataset:~vqa,~split:~train}}] \
             --set augmentation=square --set model.image_size=32 --set model.streams={streams} --set batch_size=2 \
             --set per_device_batch=2 --set length={{steps:~1}} --set precision=f32 --set validation=null"
        ),
        folder,
    )
}

#[test]
fn heads_and_colors_that_contradict_a_files_record_are_refused_in_every_family() {
    let folder = folder();
    ok(run(
        &format!("-q synth --family flm --task irtr {TINY} {{}}/flm.safetensors"),
        &folder,
    ));
    ok(run(
        "-q synth --family zerovl --temperature learned --blocks 2 --width 32 --attention-heads 2 \
         --text-attention-heads 2 --image-size 32 --patch-size 8 --text-len 12 --vocabulary 101 {}/zerovl.safetensors",
        &folder,
    ));
    ok(run(
        "-q synth --size custom --layout agnostic --blocks 2 --width 24 --attention-heads 2 --image-size 32 --text-len 12 \
         --text-table-len 20 --vocabulary 101 --fusion-start 1 {}/multiway.safetensors",
        &folder,
    ));
    let words = "fixtures/real/vocab.txt";
    let roberta = "fixtures/text/roberta";
    let measure = |model: &str, tokenizer: &str, flags: &str| {
        run(
            &format!(
                "-q evaluate {{}}/{model}.safetensors --task retrieval --data fixtures/arrow --dataset coco \
                 --split train --limit 2 --tokenizer {tokenizer} {flags}"
            ),
            &folder,
        )
    };
    for (model, tokenizer, flags, what, recorded, given) in [
        ("flm", roberta, "--heads 4", "`heads`", "1", "4"),
        ("flm", roberta, "--image-heads 2", "`image_heads`", "1", "2"),
        ("flm", roberta, "--text-heads 4", "`text_heads`", "1", "4"),
        ("zerovl", words, "--heads 4", "`image_heads`", "2", "4"),
        (
            "zerovl",
            words,
            "--image-heads 4",
            "`image_heads`",
            "2",
            "4",
        ),
        ("zerovl", words, "--text-heads 1", "`text_heads`", "2", "1"),
        ("multiway", words, "--heads 4", "`heads`", "2", "4"),
    ] {
        let said = measure(model, tokenizer, flags);
        let file = format!("{model}.safetensors");
        let words = [
            what,
            &format!("is {recorded} by"),
            &format!("but {given} was asked"),
            &file,
        ];
        refused(&said, &words);
    }
    // Facts that agree are taken, and so are facts that a file does not say.
    let plain = ok(measure("flm", roberta, "--heads 1 --json")).json();
    let other = ok(measure(
        "flm",
        roberta,
        "--image-mean 0.2 --image-deviation 0.9 --json",
    ))
    .json();
    assert_ne!(plain["results"][0]["measurements"], Value::Null);
    ok(run(
        "-q convert {}/flm.safetensors {}/said.safetensors --image-mean 0.2 --image-deviation 0.9",
        &folder,
    ));
    let said = record(&folder, "said.safetensors");
    assert_eq!(
        (said["family"].as_str(), said["heads"].as_u64()),
        (Some("flm"), Some(1))
    );
    assert_eq!(said["image_mean"][2].as_f64().map(|x| x as f32), Some(0.2));
    let own = ok(measure("said", roberta, "--json")).json();
    assert_eq!(
        own["results"][0]["measurements"],
        other["results"][0]["measurements"]
    );
    let said = measure("said", roberta, "--image-mean 0.5");
    refused(&said, &["`image_mean`", "0.2", "0.5"]);
    let said = measure("flm", roberta, "--image-deviation 0");
    refused(&said, &["deviation", "above 0"]);
    let said = run(
        "-q convert {}/flm.safetensors {}/no.safetensors --temperature 0.1",
        &folder,
    );
    refused(&said, &["flm", "temperature"]);
}

#[test]
fn names_of_one_tensor_that_differ_are_told_by_every_verb_that_reads_them() {
    let folder = folder();
    let base = "fixtures/flm/ckpt/flm_pretrain_all_names.safetensors";
    let mut weights = tensors(Path::new(base));
    let name = "text_transformer2.encoder.layer.0.output.dense.weight";
    let raw = weights.get_mut(name).expect("there");
    raw.bytes[..4].copy_from_slice(&7.5_f32.to_le_bytes());
    write(&folder.path().join("torn.safetensors"), &weights);
    let words = [
        "torn.safetensors",
        "names of one tensor hold different values",
        name,
    ];
    let has = |text: &str| {
        for word in words {
            assert!(text.contains(word), "no {word}: {text}");
        }
    };
    let said = ok(run("verify {}/torn.safetensors", &folder));
    has(&said.stdout);
    assert!(
        !ok(run(&format!("verify {base}"), &folder))
            .stdout
            .contains("different values")
    );
    let line = format!("extract-lora {base} {{}}/torn.safetensors --rank 1 --out {{}}/lora");
    has(&ok(run(&line, &folder)).stderr);
    table(&folder, "toy", &[(0, 0, "a man", 1), (1, 1, "on it", 2)]);
    let line = format!(
        "gram --checkpoint {{}}/torn.safetensors --shared --out {{}}/gram.safetensors --task captions --data {{}} \
         --dataset toy --split valid {TOY} {HEADS}"
    );
    has(&ok(run(&line, &folder)).stderr);
    let recipe = format!(
        "init: {{ checkpoint: {}/torn.safetensors }}\nmodel: {{ heads: 2, image_heads: 2, text_heads: 2 }}\n\
         data: {{ folder: fixtures/arrow, tokenizer: fixtures/flm/tok/toy, train: [{{ dataset: coco, split: train }}] }}\n\
         augmentation: square\nobjectives: [{{ name: flm }}]\nlength: {{ steps: 1 }}\nbatch_size: 2\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    has(&ok(run(
        "pretrain {}/recipe.yaml --out {}/run --dry-run",
        &folder,
    ))
    .stderr);
}

#[test]
fn a_dual_encoder_chooses_the_pairs_that_an_flm_scores() {
    let folder = folder();
    let captions: Vec<String> = (0..8).map(|n| format!("a man on {n} trees")).collect();
    let rows = captions.iter().enumerate();
    let rows: Vec<_> = rows
        .map(|(n, caption)| (n / 2, n as i64 / 2, caption.as_str(), n as i64))
        .collect();
    table(&folder, "toy", &rows);
    let measure = |model: &str, more: &str| {
        run(
            &format!(
                "-q evaluate {model} --task retrieval --data {{}} --dataset toy --split valid {more}"
            ),
            &folder,
        )
    };
    let zerovl = "fixtures/zerovl/ckpt/model.safetensors";
    let config = fixtures::json("zerovl/config.json");
    let heads = format!(
        "--image-heads {} --text-heads {} --tokenizer fixtures/real/vocab.txt",
        config["vision"]["heads"], config["text"]["heads"]
    );
    ok(measure(zerovl, &format!("{heads} --predictions {{}}/dual")));
    let scores = std::fs::read_dir(folder.path().join("dual")).expect("predictions");
    let scores = scores.flatten().next().expect("a file of scores").path();
    let from = format!("--candidates-from {}", scores.display());
    let flm = "fixtures/flm/ckpt/irtr.safetensors";
    let of_flm = |more: &str| measure(flm, &format!("{HEADS} {TOY} {more}"));
    let all = ok(of_flm("--json")).json();
    let numbers = |report: &Value| report["results"][0]["measurements"].clone();
    // Among all pairs nothing is left to choose.
    let same = ok(of_flm(&format!("--json --candidates 8 {from}"))).json();
    assert_eq!(numbers(&same), numbers(&all));
    let said = ok(of_flm(&format!(
        "--json --candidates 1 {from} --out {{}}/one.json --predictions {{}}/one"
    )))
    .json();
    assert_eq!(said["results"][0]["counts"]["texts"], 8);
    let settings = said["settings"].to_string() + &said["results"][0]["settings"].to_string();
    assert!(settings.contains("\"candidates\":1"), "{said}");
    // The page says by whose scores they were chosen.
    ok(run("-q report {}/one.json --out {}/one.md", &folder));
    let page = std::fs::read_to_string(folder.path().join("one.md")).expect("a page");
    assert!(page.contains("candidates"), "{page}");
    // Of each image the best text and of each text the best image were asked; the others stand behind them.
    let open = |folder_name: &str| {
        let files = std::fs::read_dir(folder.path().join(folder_name)).expect("predictions");
        let file = files.flatten().next().expect("a file").path();
        tensors(&file)
    };
    let (dual, chosen) = (open("dual"), open("one"));
    let scores = chosen.get("scores").map(fixtures::Raw::values);
    let scores = scores.unwrap_or_else(|| panic!("no scores: {:?}", chosen.keys()));
    assert_eq!(scores.len(), 4 * 8);
    assert!(!dual.is_empty());
    // Scores of other data are refused.
    table(&folder, "other", &rows[..4]);
    let said = run(
        &format!(
            "-q evaluate {flm} --task retrieval --data {{}} --dataset other --split valid {HEADS} {TOY} --candidates 1 {from}"
        ),
        &folder,
    );
    refused(&said, &["images of the scores and of the split", "4", "2"]);
    // A dual encoder has no pairs to choose, and a flag without its file says so.
    let said = measure(zerovl, &format!("{heads} --candidates 1 {from}"));
    refused(&said, &["zerovl", "chosen pairs"]);
    refused(&of_flm("--candidates 1"), &["--candidates-from"]);
}

#[test]
fn data_and_vocabularies_that_do_not_fit_an_flm_are_refused_by_name() {
    let folder = folder();
    table(&folder, "toy", &[(0, 0, "a man", 1), (1, 1, "on it", 2)]);
    let measure = |model: &str, task: &str, more: &str| {
        run(
            &format!(
                "-q evaluate fixtures/flm/ckpt/{model}.safetensors --task {task} --data {{}} --dataset toy \
                 --split valid {HEADS} {more}"
            ),
            &folder,
        )
    };
    // A vocabulary of another model, and no tokenizer at all.
    let said = measure("irtr", "retrieval", "--tokenizer fixtures/real/vocab.txt");
    refused(&said, &["vocab.txt", "100"]);
    let said = measure("irtr", "retrieval", "--tokenizer {}/toy");
    refused(
        &said,
        &["tokenizer.json", "merges.txt", "FacebookAI/roberta-base"],
    );
    // A model without the tokens that captions stand between.
    let said = measure("flm_pretrain", "captions", TOY);
    refused(
        &said,
        &[
            "`<bos>` and `<eos>`",
            "100 tokens",
            "expand --to flm-caption",
        ],
    );
    // Checkpoints of other modes.
    let said = measure("vqa", "captions", TOY);
    refused(&said, &["vqa.safetensors"]);
    let said = measure("caption", "retrieval", TOY);
    refused(&said, &["caption"]);
    let said = run(
        &format!(
            "-q evaluate fixtures/flm/ckpt/nlvr2.safetensors --task vqa --data fixtures/arrow --split train \
             --allow-other-answers {HEADS} {TOY}"
        ),
        &folder,
    );
    refused(&said, &["nlvr2.safetensors", "vqa_classifier"]);
    let said = run(
        &format!(
            "-q evaluate fixtures/flm/ckpt/ar.safetensors --task retrieval --streams three --data {{}} --dataset toy --split valid {HEADS} {TOY}"
        ),
        &folder,
    );
    refused(&said, &["ar.safetensors", "reconstructor"]);
    let said = run(
        &format!(
            "-q evaluate fixtures/flm/ckpt/vqa.safetensors --task nlvr2 --data fixtures/arrow --split train {HEADS} {TOY}"
        ),
        &folder,
    );
    refused(&said, &["vqa.safetensors", "nlvr2_classifier"]);
    // A caption without words.
    for (n, words) in ["", " . ", "..."].into_iter().enumerate() {
        table(&folder, "toy", &[(0, 0, "a man", 1), (1, 1, words, 2)]);
        let said = measure("irtr", "retrieval", TOY);
        refused(&said, &["caption", "has no words"]);
        let recipe = format!(
            "init: {{ checkpoint: fixtures/flm/ckpt/caption.safetensors }}\n\
             model: {{ heads: 2, image_heads: 2, text_heads: 2 }}\n\
             data: {{ format: csv, folder: {}, tokenizer: fixtures/flm/tok/toy, train: [{{ dataset: toy, split: valid }}] }}\n\
             augmentation: square\nobjectives: [{{ name: captioning }}]\nlength: {{ steps: 1 }}\nbatch_size: 2\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
        let said = run(
            &format!("-q pretrain {{}}/recipe.yaml --out {{}}/run{n}"),
            &folder,
        );
        refused(&said, &["caption", "has no words"]);
    }
    // A picture without a caption, and a caption without a picture.
    std::fs::write(
        folder.path().join("toy/valid_anno.csv"),
        "caption_id,image,image_id\n1,0.jpg,1\n",
    )
    .expect("written");
    let said = measure("irtr", "retrieval", TOY);
    refused(&said, &["valid_anno.csv", "`caption`"]);
    let rows = "caption_id,caption,image,image_id\n1,a man,lost.jpg,1\n";
    std::fs::write(folder.path().join("toy/valid_anno.csv"), rows).expect("written");
    let said = measure("irtr", "retrieval", TOY);
    refused(&said, &["valid_anno.csv", "line 2", "lost.jpg"]);
}

#[test]
fn captions_that_an_flm_reads_alike_count_once_where_repeats_do() {
    let folder = folder();
    let rows = [
        (0, 0, "a man", 1),
        (0, 0, "a man.", 2),
        (0, 0, "a man . ", 3),
        (0, 0, "on it", 4),
        (1, 1, "a man", 5),
        (1, 1, "it", 6),
    ];
    table(&folder, "toy", &rows);
    let measure = |model: &str, more: &str| {
        let line = format!(
            "-q evaluate {model} --task retrieval --data {{}} --dataset toy --split valid --json {more}"
        );
        let said = ok(run(&line, &folder)).json();
        said["results"][0]["counts"]["texts"].as_u64()
    };
    let flm = "fixtures/flm/ckpt/irtr.safetensors";
    let own = format!("{HEADS} {TOY}");
    assert_eq!(measure(flm, &own), Some(6));
    // The published program compares captions after it has brought their ends into one form.
    assert_eq!(measure(flm, &format!("{own} --without-repeats")), Some(4));
    // A family that reads captions as they are tells them apart.
    let config = fixtures::json("zerovl/config.json");
    let zerovl = format!(
        "--image-heads {} --text-heads {} --tokenizer fixtures/real/vocab.txt --without-repeats --predictions {{}}/dual",
        config["vision"]["heads"], config["text"]["heads"]
    );
    assert_eq!(
        measure("fixtures/zerovl/ckpt/model.safetensors", &zerovl),
        Some(6)
    );
    // Its scores still choose candidates.
    let files = std::fs::read_dir(folder.path().join("dual")).expect("predictions");
    let scores = files.flatten().next().expect("a file").path();
    let more = format!(
        "{own} --without-repeats --candidates 1 --candidates-from {}",
        scores.display()
    );
    assert_eq!(measure(flm, &more), Some(4));
}
