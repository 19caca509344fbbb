//! Features and predictions that are kept: of which settings and data they are, and under which names.

use std::collections::BTreeSet;
use std::path::Path;

use tempfile::TempDir;

use crate::class_folders::one_picture_each;
use crate::csv_tables::table;
use crate::program::{Said, ok, run};

const VIT: &str = "fixtures/vit/token";
const TOWERS: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";

/// Names of the files of a folder.
fn files(folder: &TempDir, name: &str) -> BTreeSet<String> {
    let files = std::fs::read_dir(folder.path().join(name)).expect("a folder");
    files
        .map(|file| {
            file.expect("a file")
                .file_name()
                .into_string()
                .expect("UTF-8")
        })
        .collect()
}

/// A classifier in a folder of its own, with its configuration.
fn classifier(folder: &TempDir, name: &str) {
    let target = folder.path().join(name);
    std::fs::create_dir(&target).expect("made");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(Path::new(VIT).join(file), target.join(file)).expect("copied");
    }
}

fn classify(folder: &TempDir, models: &str, more: &str) -> Said {
    let line = format!(
        "-q evaluate {models} --task image_classification --data {{}} --dataset toy --split val --json {more}"
    );
    run(&line, folder)
}

fn retrieve(folder: &TempDir, more: &str) -> Said {
    let line = format!(
        "-q evaluate {TOWERS} --text-table-len 16 --tokenizer fixtures/real/vocab.txt --task retrieval --data {{}} \
         --dataset toy --split valid --cache-features {{}}/kept --json {more}"
    );
    run(&line, folder)
}

#[test]
fn features_are_those_of_the_configuration_beside_the_weights() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["val"]);
    classifier(&folder, "model");
    let measure = || {
        ok(classify(&folder, "{}/model", "--cache-features {}/kept"));
        files(&folder, "kept").len()
    };
    assert_eq!(measure(), 1);
    assert_eq!(measure(), 1, "nothing has changed");
    let config = folder.path().join("model/config.json");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    for (n, (from, to)) in [
        ("\"mean\": [0.5, 0.5, 0.5]", "\"mean\": [0.4, 0.5, 0.5]"),
        ("\"num_heads\": 3", "\"num_heads\": 4"),
        ("\"bicubic\"", "\"bilinear\""),
    ]
    .into_iter()
    .enumerate()
    {
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let spelled = respelled(&value);
        assert!(spelled.contains(from), "{spelled}");
        std::fs::write(&config, spelled.replace(from, to)).expect("written");
        assert_eq!(measure(), n + 2, "{to}");
    }
}

/// A value in one line, with a blank after commas and colons.
fn respelled(value: &serde_json::Value) -> String {
    value.to_string().replace(':', ": ").replace(',', ", ")
}

#[test]
fn features_are_those_of_the_captions_and_pictures_of_a_table() {
    let folder = TempDir::new().expect("a folder");
    let rows = [(0, 0, "a dog", 1), (1, 1, "a tree", 2)];
    table(&folder, "toy", &rows);
    let measure = || {
        ok(retrieve(&folder, ""));
        // Images and texts.
        files(&folder, "kept").len() / 2
    };
    assert_eq!((measure(), measure()), (1, 1));
    // As many bytes as before.
    let csv = folder.path().join("toy/valid_anno.csv");
    let text = std::fs::read_to_string(&csv).expect("a table");
    std::fs::write(&csv, text.replace("a dog", "a cat")).expect("written");
    assert_eq!(measure(), 2);
    let pictures = folder.path().join("toy/valid");
    std::fs::copy(pictures.join("0.jpg"), pictures.join("1.jpg")).expect("copied");
    assert_eq!(measure(), 3);
}

#[test]
fn features_are_those_of_a_batch_size_where_routers_look_at_the_batch() {
    let folder = TempDir::new().expect("a folder");
    ok(run(
        "-q synth --family eve --heads retrieval --blocks 3 --width 8 --attention-heads 2 --ffn-width 12 --mixtures 1 \
         --experts 4 --patch-size 4 --image-size 8 --vocabulary 101 --text-len 16 --pair-len 12 {}/eve.safetensors",
        &folder,
    ));
    table(&folder, "toy", &[(0, 0, "a dog", 1), (1, 1, "a tree", 2)]);
    let measure = |more: &str| {
        let line = format!(
            "-q evaluate {{}}/eve.safetensors --heads 2 --pair-len 12 --task retrieval --data {{}} --dataset toy \
             --split valid --tokenizer fixtures/real/vocab.txt --cache-features {{}}/kept --json {more}"
        );
        let said = ok(run(&line, &folder)).json();
        let settings = said["results"][0]["settings"].clone();
        (settings, files(&folder, "kept").len() / 2)
    };
    let (settings, n) = measure("--batch-size 1");
    assert_eq!((settings.get("batch_size"), n), (None, 1));
    assert_eq!(
        (&settings["heads"], &settings["pair_len"]),
        (&2.into(), &12.into())
    );
    assert_eq!(
        measure("--batch-size 2").1,
        1,
        "each example is computed alone"
    );
    let (settings, n) = measure("--routing capacity --batch-size 1");
    assert_eq!(settings["routing"], "capacity");
    assert_eq!((&settings["batch_size"], n), (&1.into(), 2));
    assert_eq!(measure("--routing capacity --batch-size 2").1, 3);
    let (settings, n) = measure("--model-as-published --batch-size 2");
    assert_eq!(settings["model_as_published"], true);
    assert_eq!((&settings["batch_size"], n), (&2.into(), 4));
}

#[test]
fn models_whose_files_have_one_name_have_results_and_predictions_of_their_own() {
    let folder = TempDir::new().expect("a folder");
    one_picture_each(&folder, "vit", &["val"]);
    classifier(&folder, "one");
    classifier(&folder, "two");
    let models = "{}/one/model.safetensors {}/two/model.safetensors";
    let said = ok(classify(&folder, models, "--predictions {}/said")).json();
    let names = [0, 1].map(|at: usize| said["results"][at]["name"].clone());
    assert_eq!(names, ["one/model.safetensors", "two/model.safetensors"]);
    let expected = ["one-model.val.csv", "two-model.val.csv"];
    assert!(files(&folder, "said").iter().eq(&expected));

    // Predictions are replaced with --force alone.
    let first = folder.path().join("said/one-model.val.csv");
    std::fs::write(&first, "mine").expect("written");
    let said = classify(&folder, models, "--predictions {}/said");
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("one-model.val.csv"), "{}", said.stderr);
    assert!(said.stderr.contains("--force"), "{}", said.stderr);
    assert_eq!(std::fs::read_to_string(&first).expect("kept"), "mine");
    ok(classify(&folder, models, "--predictions {}/said --force"));
    assert_ne!(std::fs::read_to_string(&first).expect("replaced"), "mine");

    for (models, more, fault) in [
        (models, "--name x --name x", "\"x\""),
        ("{}/one {}/one", "", "is given twice"),
    ] {
        let said = classify(&folder, models, more);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(said.stderr.contains(fault), "{}", said.stderr);
    }
    // Numbers in names are no endings.
    let named = "--name v1.5 --name v1.0 --predictions {}/versions";
    ok(classify(&folder, models, named));
    let expected = ["v1.0.val.csv", "v1.5.val.csv"];
    assert!(files(&folder, "versions").iter().eq(&expected));
}

#[test]
fn verbs_that_do_not_rank_or_write_refuse_the_flags_for_it() {
    let folder = TempDir::new().expect("a folder");
    for verb in ["gram", "activations"] {
        for flag in [
            "--rerank 2",
            "--candidates 2 --candidates-from x",
            "--beams 2",
            "--max-tokens 2",
        ] {
            let line = format!(
                "-q {verb} --checkpoint {TOWERS} --task retrieval --data {{}} --out {{}}/out.safetensors {flag}"
            );
            let said = run(&line, &folder);
            assert_eq!(said.code, Some(2), "{line}: {}", said.stderr);
            assert!(
                said.stderr.contains("unexpected argument"),
                "{}",
                said.stderr
            );
        }
    }
}

#[test]
fn captions_refuse_a_way_of_reading_that_they_cannot_use() {
    let folder = TempDir::new().expect("a folder");
    for how in ["three", "bidirectional"] {
        let line = format!(
            "-q evaluate fixtures/flm/ckpt/caption.ckpt --heads 2 --image-heads 2 --task captions --data {{}} \
             --tokenizer fixtures/flm/tok/toy --streams {how}"
        );
        let said = run(&line, &folder);
        assert_eq!(said.code, Some(2), "{}", said.stderr);
        assert!(
            said.stderr.contains(&format!("--streams {how}")),
            "{}",
            said.stderr
        );
    }
}
