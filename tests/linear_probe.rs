//! A linear probe of ZeroVL from folders of classes to accuracy.

use std::collections::BTreeMap;
use std::path::Path;

use tempfile::TempDir;

use crate::class_folders::{class_folder, pictures};
use crate::program::{Said, ok, run};

const CHECKPOINT: &str = "fixtures/zerovl/ckpt/model.safetensors";

/// Folders of classes with a picture or two each, the same for training and for validation.
fn folders(folder: &TempDir, classes: &[(&str, &[usize])]) {
    let pictures = pictures();
    for split in ["train", "val"] {
        for (class, numbers) in classes {
            let of_class = class_folder(folder, split, class);
            for number in *numbers {
                let copy = of_class.join(format!("{number}.jpg"));
                std::fs::copy(&pictures[*number], copy).expect("copied");
            }
        }
    }
}

/// The heads of the tiny model.
fn heads() -> [String; 2] {
    let config = fixtures::json("zerovl/config.json");
    ["vision", "text"].map(|tower| config[tower]["heads"].to_string())
}

fn finetune(folder: &TempDir, out: &str, more: &str) -> Said {
    let [image, text] = heads();
    let line = format!(
        "-q finetune --task linear_probe --init {CHECKPOINT} --data {{}} --out {{}}/{out} \
         --set model={{image_heads:~{image},~text_heads:~{text}}} --set augmentation=square \
         --set data.train=[{{dataset:~toy,~split:~train}}] --set batch_size=4 \
         --set per_device_batch=2 --set optim.warmup=2 --set optim.trust=0.05 \
         --set length={{steps:~80}} --set save.every=null \
         --set validation={{task:~linear_probe,~dataset:~toy,~split:~val,~every:~{{steps:~40}}}} {more}"
    );
    run(&line, folder)
}

fn evaluate(folder: &TempDir, checkpoint: &str, more: &str) -> Said {
    let [image, text] = heads();
    let line = format!(
        "-q evaluate {checkpoint} --image-heads {image} --text-heads {text} --task linear_probe \
         --data {{}} --dataset toy --json {more}"
    );
    run(&line, folder)
}

fn tensors(path: &Path) -> BTreeMap<String, fixtures::Raw> {
    fixtures::tensors(path)
}

#[test]
fn a_probe_learns_classes_of_folders_and_its_tower_stays_as_it_is() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder, &[("cat", &[0]), ("dog", &[1, 2]), ("ape", &[3])]);
    let dry = ok(finetune(&folder, "run", "--dry-run"));
    assert!(!folder.path().join("run").exists());
    assert!(dry.stdout.starts_with("80 steps\n"), "{}", dry.stdout);
    // Three classes on the tower's width: nothing else has gradients or moments.
    let width = fixtures::json("zerovl/config.json")["vision"]["hidden_size"].clone();
    let n = 4 * 3 * (width.as_u64().expect("a width") + 1);
    let gradients = format!("gradients: {:.1} MB\n", n as f64 / 1e6);
    assert!(dry.stdout.contains(&gradients), "{}", dry.stdout);

    ok(finetune(&folder, "run", ""));
    let trained = folder.path().join("run/model.safetensors");
    let (before, after) = (tensors(Path::new(CHECKPOINT)), tensors(&trained));
    let added: Vec<&String> = after
        .keys()
        .filter(|key| !before.contains_key(*key))
        .collect();
    assert_eq!(added, ["linear_probe.bias", "linear_probe.weight"]);
    for (key, tensor) in &before {
        assert_eq!(after[key].values(), tensor.values(), "{key}");
    }
    let metadata = merge::io::open(&trained, &Default::default()).expect("it opens");
    let classes = &metadata.info().metadata["vlmerge.classes"];
    assert_eq!(classes, r#"["ape","cat","dog"]"#);

    let checkpoint = trained.display().to_string();
    let said = ok(evaluate(&folder, &checkpoint, "--predictions {}/said")).json();
    let result = &said["results"][0];
    assert_eq!(result["counts"]["images"], 4);
    let numbers = result["measurements"].as_array().expect("numbers");
    let named = |name: &str| {
        let found = numbers.iter().find(|number| number["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    // It was measured on what it has learned.
    assert_eq!(named("top1")["value"], 1.0);
    assert_eq!(named("top5")["value"], 1.0);
    assert!(named("top1")["interval"].is_object() || named("top1")["interval"].is_array());
    let csv = std::fs::read_to_string(folder.path().join("said/model.val.csv"));
    let csv = csv.expect("predictions");
    assert!(
        csv.contains("\"ape/3.jpg\",0\n") && csv.contains("\"dog/2.jpg\",2\n"),
        "{csv}"
    );
}

#[test]
fn classes_that_the_probe_does_not_know_are_errors_and_fewer_are_found_by_name() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder, &[("cat", &[0]), ("dog", &[1, 2]), ("ape", &[3])]);
    let short = "--set length={steps:~1} --set validation=null";
    ok(finetune(&folder, "run", short));
    let checkpoint = folder
        .path()
        .join("run/model.safetensors")
        .display()
        .to_string();
    let val = folder.path().join("toy/val");
    std::fs::remove_dir_all(val.join("ape")).expect("removed");
    // The numbers of cat and dog are those of the model, not those among the folders.
    ok(evaluate(&folder, &checkpoint, ""));
    std::fs::rename(val.join("cat"), val.join("cow")).expect("renamed");
    let said = evaluate(&folder, &checkpoint, "");
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("\"cow\" is none of the 3 classes"),
        "{}",
        said.stderr
    );
    // A checkpoint without a probe.
    let said = evaluate(&folder, CHECKPOINT, "");
    assert!(
        said.stderr.contains("no image classification head"),
        "{}",
        said.stderr
    );
    // Training goes on from a probe on the classes that it has, by the same numbers.
    let again = |more: &str| {
        let init = format!("--set init={{checkpoint:~{checkpoint}}} {short} {more}");
        finetune(&folder, "again", &init).stderr
    };
    let said = again("--set data.train=[{dataset:~toy,~split:~val}]");
    assert!(
        said.contains("it has 2 classes, but the checkpoint's head tells 3 apart"),
        "{said}"
    );
    let train = folder.path().join("toy/train");
    std::fs::rename(train.join("ape"), train.join("ant")).expect("renamed");
    let said = again("");
    assert!(
        said.contains("class 0 is \"ant\", but the checkpoint's head calls it \"ape\""),
        "{said}"
    );
    let said = again("--set objectives=[{name:~nce}]");
    assert!(said.contains("`nce` learns from texts"), "{said}");
}

#[test]
fn a_probe_on_a_multiway_model_leaves_its_tower_as_it_is() {
    let folder = TempDir::new().expect("a folder");
    folders(&folder, &[("cat", &[0]), ("dog", &[1]), ("ape", &[2])]);
    ok(run(
        "-q convert fixtures/ckpt/ufo_pretrain.ckpt {}/start.safetensors",
        &folder,
    ));
    let start = folder.path().join("start.safetensors");
    let line = "-q finetune --task linear_probe --init {}/start.safetensors --data {} --out {}/run \
         --set model={text_table_len:~16} --set augmentation=square \
         --set data.train=[{dataset:~toy,~split:~train}] --set batch_size=3 --set optim.warmup=2 \
         --set optim.trust=0.05 --set length={steps:~80} --set save.every=null --set validation=null";
    ok(run(line, &folder));
    let trained = folder.path().join("run/model.safetensors");
    let (before, after) = (tensors(&start), tensors(&trained));
    let width = after["img_cls_classifier.weight"].shape[1];
    assert_eq!(after["img_cls_classifier.weight"].shape, [3, width]);
    let kept: Vec<&String> = before
        .keys()
        .filter(|key| after.contains_key(*key))
        .collect();
    assert_eq!(kept.len() + 2, after.len());
    for key in kept {
        assert_eq!(after[key].values(), before[key].values(), "{key}");
    }
    let line = format!(
        "-q evaluate {} --text-table-len 16 --task linear_probe --data {{}} --dataset toy --json",
        trained.display()
    );
    let said = ok(run(&line, &folder)).json();
    let numbers = said["results"][0]["measurements"].as_array();
    let mut numbers = numbers.expect("numbers").iter();
    let top1 = numbers.find(|number| number["name"] == "top1");
    assert_eq!(top1.expect("top1")["value"], 1.0);
}
