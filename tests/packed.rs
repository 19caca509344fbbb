//! Packed data sets from end to end: measured and learned from like folders of classes, here and from other machines,
//! and made into arrow files.

use std::path::{Path, PathBuf};

use fixtures::tar::tar;
use tempfile::TempDir;

use crate::program::{Said, ok, run};

const TOKENIZER: &str = "fixtures/clip/tokenizer/bpe_simple_vocab_16e6.txt.gz";

/// The same pictures in folders of classes, `folders`, and in shards, `shards`, a picture each.
fn sets(folder: &Path) {
    let pictures = std::fs::read_dir("fixtures/real/raw/val2014").expect("pictures");
    let mut pictures: Vec<PathBuf> = pictures
        .map(|entry| entry.expect("an entry").path())
        .collect();
    pictures.sort();
    let mut pictures = pictures.iter();
    for split in ["train", "val"] {
        let shards = folder.join("shards").join(split);
        std::fs::create_dir_all(&shards).expect("made");
        for (number, class) in ["cat", "dog", "red_fox"].into_iter().enumerate() {
            let of_class = folder.join("folders").join(split).join(class);
            std::fs::create_dir_all(&of_class).expect("made");
            let picture = std::fs::read(pictures.next().expect("a picture")).expect("read");
            std::fs::write(of_class.join("1.jpg"), &picture).expect("written");
            let label = number.to_string();
            let shard = tar(&[("a.jpg", &picture), ("a.cls", label.as_bytes())]);
            std::fs::write(shards.join(format!("{number}.tar")), shard).expect("written");
        }
        std::fs::write(shards.join("nshards.txt"), "3").expect("written");
    }
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write(
        "folders/templates.txt",
        "a photo of a {}.\na drawing of the {}\n",
    );
    write(
        "shards/zeroshot_classification_templates.txt",
        "a photo of a {c}.\na drawing of the {c}\n",
    );
    write("shards/classnames.txt", "cat\ndog\nred fox\n");
}

fn synth(folder: &TempDir) {
    ok(run(
        "-q synth --family clip --blocks 1 --width 16 --attention-heads 2 --text-blocks 1 --text-width 16 \
         --text-attention-heads 2 --joint-width 8 --image-size 32 --patch-size 8 --text-len 16 --deviation 0.2 \
         {}/clip.safetensors",
        folder,
    ));
}

fn evaluate(folder: &TempDir, data: &str, dataset: &str, task: &str, more: &str) -> Said {
    let line = format!(
        "-q evaluate {{}}/clip.safetensors --task {task} --data {data} --dataset {dataset} \
         --tokenizer {TOKENIZER} --json {more}"
    );
    run(&line, folder)
}

fn measured(said: Said) -> serde_json::Value {
    ok(said).json()["results"][0]["measurements"].clone()
}

#[test]
fn shards_are_measured_and_learned_from_as_folders_of_classes_are() {
    let folder = TempDir::new().expect("a folder");
    sets(folder.path());
    synth(&folder);
    let of = |name: &str| {
        let more = format!("--split val --predictions {{}}/{name}-said");
        measured(evaluate(&folder, "{}", name, "zero_shot_classes", &more))
    };
    assert_eq!(of("folders"), of("shards"));
    let read = |name: &str| {
        let csv = folder.path().join(format!("{name}-said/clip.val.csv"));
        let csv = std::fs::read_to_string(csv).expect("predictions");
        let classes = csv
            .lines()
            .map(|line| line.rsplit(',').next().unwrap_or("").to_owned());
        classes.collect::<Vec<_>>()
    };
    assert_eq!(read("folders"), read("shards"));
    // Names that nothing tells are no texts.
    std::fs::rename(
        folder.path().join("shards/classnames.txt"),
        folder.path().join("names"),
    )
    .expect("moved");
    let said = evaluate(&folder, "{}", "shards", "zero_shot_classes", "--split val");
    assert!(
        said.stderr.contains("nothing names them"),
        "{}",
        said.stderr
    );
    std::fs::rename(
        folder.path().join("names"),
        folder.path().join("shards/classnames.txt"),
    )
    .expect("moved");
    let trained = |format: &str, name: &str| {
        // A head knows its classes by the names that the set gives them.
        ok(run(
            &format!(
                "-q classifier {{}}/clip.safetensors {{}}/start.safetensors --data {{}} --dataset {name} --split train \
                 --tokenizer {TOKENIZER} --force"
            ),
            &folder,
        ));
        let recipe = format!(
            "init: {{ checkpoint: {0}/start.safetensors }}\n\
             data: {{ format: {format}, folder: {0}, train: [{{ dataset: {name}, split: train }}] }}\n\
             augmentation: square\nobjectives: [{{ name: image_classification }}]\n\
             optim: {{ flavor: torch, lr: 1e-2, trainable: [vision_model, visual_projection] }}\n\
             length: {{ steps: 5 }}\nbatch_size: 2\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
        ok(run(
            &format!("-q pretrain {{}}/recipe.yaml --out {{}}/{name}-run"),
            &folder,
        ));
        fixtures::tensors(&folder.path().join(format!("{name}-run/model.safetensors")))
    };
    let (folders, shards) = (trained("folders", "folders"), trained("packed", "shards"));
    for (key, tensor) in &folders {
        assert_eq!(tensor.values(), shards[key].values(), "{key}");
    }
}

#[test]
fn shards_of_captions_are_learned_from_by_contrast_and_measured() {
    let folder = TempDir::new().expect("a folder");
    synth(&folder);
    let retrieval = |more: &str| {
        evaluate(
            &folder,
            "fixtures/packed",
            "wds_captions",
            "retrieval",
            more,
        )
    };
    let result = ok(retrieval("--split test")).json()["results"][0].clone();
    assert_eq!(result["counts"]["images"], 4);
    // One, two, three and one.
    assert_eq!(result["counts"]["texts"], 7);
    let recipe = format!(
        "init: {{ checkpoint: {0}/clip.safetensors }}\n\
         data: {{ format: packed, folder: fixtures/packed, tokenizer: {TOKENIZER}, train: \
         [{{ dataset: wds_captions/test, split: '{{0..1}}.tar' }}, {{ dataset: flickr, split: val }}] }}\n\
         augmentation: square\nobjectives: [{{ name: itc }}]\n\
         optim: {{ flavor: torch, lr: 1e-3 }}\nlength: {{ steps: 3 }}\nbatch_size: 4\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    ok(run("-q pretrain {}/recipe.yaml --out {}/run", &folder));
    let before = fixtures::tensors(&folder.path().join("clip.safetensors"));
    let after = fixtures::tensors(&folder.path().join("run/model.safetensors"));
    assert!(
        before
            .iter()
            .any(|(key, tensor)| after[key].values() != tensor.values())
    );
    let said = retrieval("--split train");
    assert!(said.stderr.contains("wds_captions"), "{}", said.stderr);
}

#[test]
fn packed_captions_become_arrow_files_that_are_measured_alike() {
    let folder = TempDir::new().expect("a folder");
    synth(&folder);
    ok(run(
        "data build f30k --raw fixtures/packed/flickr --out {}/arrow --split test",
        &folder,
    ));
    let packed = measured(evaluate(
        &folder,
        "fixtures/packed",
        "flickr",
        "retrieval",
        "--split test",
    ));
    let arrow = measured(evaluate(
        &folder,
        "{}/arrow",
        "f30k",
        "retrieval",
        "--split test",
    ));
    assert_eq!(packed, arrow);
    let again = ok(run(
        "data build f30k --raw fixtures/packed/flickr --out {}/arrow",
        &folder,
    ));
    // The splits that the files have, of which one was there.
    let lines: Vec<&str> = again.stdout.lines().collect();
    assert!(
        lines.len() == 2 && again.stdout.contains("karpathy_val.arrow: 2 rows\n"),
        "{lines:?}"
    );
    assert!(
        again
            .stdout
            .contains("karpathy_test.arrow: 6 rows, was there"),
        "{lines:?}"
    );
    ok(run(
        "data build cc3m --raw fixtures/packed/flat --out {}/arrow",
        &folder,
    ));
}

#[test]
fn plain_texts_become_the_files_of_the_stage_of_texts_alone() {
    let folder = TempDir::new().expect("a folder");
    let raw = folder.path().join("raw");
    std::fs::create_dir_all(raw.join("val")).expect("made");
    let write = |name: &str, text: &[u8]| std::fs::write(raw.join(name), text).expect("written");
    write("wikibk.0.txt", b"a red bird\n\n  the blue fish\r\n");
    write("wikibk.1.txt", b"one more");
    write("val/any.txt", b"a text to validate with\n");
    let line = "data build wikibk --raw {}/raw --out {}/arrow";
    let said = ok(run(line, &folder));
    let expected = [
        "wikibk_train_0.arrow: 2 rows\n",
        "1 of 3 lines left out: blank\n",
        "wikibk_train_1.arrow: 1 rows\n",
        "wikibk_val_0.arrow: 1 rows\n",
    ];
    for words in expected {
        assert!(said.stdout.contains(words), "{}", said.stdout);
    }
    let stats = ok(run("data stats {}/arrow --json", &folder)).json();
    let columns = stats["files"][0]["columns"]
        .as_array()
        .expect("columns")
        .iter();
    let columns: Vec<_> = columns
        .map(|column| (column[0].clone(), column[1].clone()))
        .collect();
    let vlmo = [
        ("image", "string"),
        ("caption", "list<string>"),
        ("source", "string"),
        ("split", "string"),
    ];
    assert_eq!(columns, vlmo.map(|(name, kind)| (name.into(), kind.into())));
    let set =
        evaluate::datasets::texts::TextSet::open(&folder.path().join("arrow"), "wikibk", "train");
    assert_eq!(
        set.expect("opened").texts(),
        ["a red bird", "  the blue fish", "one more"]
    );
    let again = ok(run(line, &folder));
    assert!(
        again
            .stdout
            .contains("wikibk_train_1.arrow: 1 rows, was there"),
        "{}",
        again.stdout
    );
    write("wikibk.1.txt", b"another");
    let said = run(line, &folder);
    assert!(
        said.stderr.contains("built of other texts"),
        "{}",
        said.stderr
    );
    write("wikibk.0.txt", b"fine\n\xff\n");
    let said = run(&format!("{line} --force"), &folder);
    assert!(
        said.stderr.contains("wikibk.0.txt: line 2: is not UTF-8"),
        "{}",
        said.stderr
    );
    std::fs::remove_file(raw.join("wikibk.0.txt")).expect("removed");
    let said = run(line, &folder);
    assert!(said.stderr.contains("wikibk.0.txt"), "{}", said.stderr);
}

#[cfg(feature = "remote")]
mod remote {
    use std::path::Path;
    use std::process::Command;

    use super::{TOKENIZER, evaluate, measured, sets, synth};
    use crate::range_server::Server;
    use tempfile::TempDir;

    fn evaluated(
        folder: &TempDir,
        hub: &Server,
        data: &str,
        set: &str,
        more: &[&str],
    ) -> serde_json::Value {
        let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
            .env("HF_ENDPOINT", hub.address(""))
            .env_remove("HF_HUB_OFFLINE")
            .args(["-q", "--cache-dir"])
            .arg(folder.path().join("cache"))
            .args(more)
            .arg("evaluate")
            .arg(folder.path().join("clip.safetensors"))
            .args([
                "--task",
                "zero_shot_classes",
                "--data",
                data,
                "--dataset",
                set,
            ])
            .args(["--tokenizer", TOKENIZER, "--json"])
            .output()
            .expect("the program runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        value["results"][0]["measurements"].clone()
    }

    #[test]
    fn shards_of_a_web_server_and_parquet_files_of_the_hub_are_read_by_ranges_and_again_offline() {
        let (folder, server) = (TempDir::new().expect("a folder"), Server::start());
        sets(folder.path());
        synth(&folder);
        let put = |from: &Path, to: String| {
            server.put(&to, std::fs::read(from).expect("a file"), "\"1\"");
        };
        let shards = folder.path().join("shards");
        for name in [
            "classnames.txt",
            "zeroshot_classification_templates.txt",
            "val/nshards.txt",
            "val/0.tar",
            "val/1.tar",
            "val/2.tar",
        ] {
            put(&shards.join(name), format!("/sets/shards/{name}"));
        }
        let here = measured(evaluate(
            &folder,
            "{}",
            "shards",
            "zero_shot_classes",
            "--split val",
        ));
        let data = server.address("/sets");
        assert_eq!(evaluated(&folder, &server, &data, "shards", &[]), here);
        server.asked();
        assert_eq!(
            evaluated(&folder, &server, &data, "shards", &["--offline"]),
            here
        );
        assert!(server.asked().is_empty());

        let commit = "0123456789abcdef0123456789abcdef01234567";
        let names = [
            "data/val-00000-of-00002.parquet",
            "data/val-00001-of-00002.parquet",
        ];
        let siblings = names
            .map(|name| format!(r#"{{"rfilename":"{name}"}}"#))
            .join(",");
        let info = format!(r#"{{"sha":"{commit}","siblings":[{siblings}]}}"#);
        server.put(
            "/api/datasets/org/cifar/revision/main",
            info.into_bytes(),
            "\"i\"",
        );
        let local = folder.path().join("cifar/data");
        std::fs::create_dir_all(&local).expect("made");
        for (part, name) in names.into_iter().enumerate() {
            let from = format!("fixtures/packed/cifar/data/test-0000{part}-of-00002.parquet");
            put(
                Path::new(&from),
                format!("/datasets/org/cifar/resolve/{commit}/{name}"),
            );
            std::fs::copy(from, folder.path().join("cifar").join(name)).expect("copied");
        }
        let here = measured(evaluate(
            &folder,
            "{}",
            "cifar",
            "zero_shot_classes",
            "--split val",
        ));
        assert_eq!(
            evaluated(&folder, &server, "hf://datasets/org", "cifar", &[]),
            here
        );
        assert_eq!(
            evaluated(
                &folder,
                &server,
                "hf://datasets/org",
                "cifar",
                &["--offline"]
            ),
            here
        );
    }
}
