//! Facts that ZeroVL's weights do not hold: given once, they go along with the file.

use fixtures::tensors;
use tempfile::TempDir;

use crate::csv_tables::table;
use crate::program::{Said, ok, run};

const MODEL: &str = "fixtures/zerovl/ckpt/model.safetensors";
const FACTS: &str = "--temperature 0.05 --image-mean 0.5 --image-deviation 0.5,0.25,0.5";

/// The tiny model without its temperature, and a folder of pictures.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let mut model = tensors(std::path::Path::new(MODEL));
    model.remove("loss.temperature").expect("a temperature");
    fixtures::write(&folder.path().join("plain.safetensors"), &model);
    let captions = ["a dog", "two cats", "a tree", "the sea"];
    let rows = captions.iter().enumerate();
    let rows: Vec<_> = rows
        .map(|(n, caption)| (n, n as i64, *caption, n as i64))
        .collect();
    table(&folder, "toy", &rows);
    folder
}

fn heads() -> String {
    let config = fixtures::json("zerovl/config.json");
    let heads = |tower: &str| config[tower]["heads"].to_string();
    format!(
        "--image-heads {} --text-heads {}",
        heads("vision"),
        heads("text")
    )
}

fn converted(folder: &TempDir, name: &str, facts: &str) {
    let line = format!(
        "-q convert {{}}/plain.safetensors {{}}/{name}.safetensors {} {facts}",
        heads()
    );
    ok(run(&line, folder));
}

fn record(folder: &TempDir, name: &str) -> serde_json::Value {
    let path = folder.path().join(name);
    let file = merge::io::open(&path, &Default::default()).expect("it opens");
    serde_json::from_str(&file.info().metadata["vlmerge.model"]).expect("a record")
}

fn encode(folder: &TempDir, name: &str, flags: &str) -> Said {
    let line = format!(
        "-q encode {{}}/{name}.safetensors {flags} --data {{}} --dataset toy --split valid --force \
         --tokenizer fixtures/real/vocab.txt --out {{}}/features.safetensors"
    );
    run(&line, folder)
}

fn features(folder: &TempDir, name: &str, flags: &str) -> Vec<f64> {
    ok(encode(folder, name, flags));
    tensors(&folder.path().join("features.safetensors"))["image_features"].values()
}

#[test]
fn noted_facts_are_used_without_being_said_again_and_others_are_refused() {
    let folder = folder();
    converted(&folder, "noted", FACTS);
    let noted = record(&folder, "noted.safetensors");
    assert_eq!(noted["family"], "zerovl");
    assert_eq!(noted["temperature"], 0.05);
    assert_eq!(noted["image_mean"], serde_json::json!([0.5, 0.5, 0.5]));
    assert_eq!(
        noted["image_deviation"],
        serde_json::json!([0.5, 0.25, 0.5])
    );
    let said = features(&folder, "plain", &format!("{} {FACTS}", heads()));
    assert_eq!(features(&folder, "noted", ""), said);
    assert_ne!(features(&folder, "plain", &heads()), said);
    // The same fact again is no fault.
    assert_eq!(features(&folder, "noted", FACTS), said);
    for (flag, recorded, given) in [
        ("--temperature 0.1", "0.05", "0.1"),
        ("--image-mean 0.4", "[0.5, 0.5, 0.5]", "[0.4, 0.4, 0.4]"),
        (
            "--image-deviation 0.5",
            "[0.5, 0.25, 0.5]",
            "[0.5, 0.5, 0.5]",
        ),
    ] {
        let refused = encode(&folder, "noted", flag);
        assert_ne!(refused.code, Some(0), "{flag}");
        for part in [recorded, given, "noted.safetensors"] {
            assert!(refused.stderr.contains(part), "{flag}: {}", refused.stderr);
        }
    }
    let refused = encode(
        &folder,
        "plain",
        &format!("{} --image-deviation 0", heads()),
    );
    assert!(refused.stderr.contains("above 0"), "{}", refused.stderr);
}

#[test]
fn training_and_merging_take_facts_along_and_contradictions_are_errors() {
    let folder = folder();
    converted(&folder, "noted", FACTS);
    let toy = folder.path().join("toy");
    std::fs::create_dir_all(toy.join("train")).expect("made");
    std::fs::copy(toy.join("valid_anno.csv"), toy.join("train_anno.csv")).expect("copied");
    for entry in std::fs::read_dir(toy.join("valid")).expect("listed") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_owned();
        std::fs::copy(&path, toy.join("train").join(name)).expect("copied");
    }
    let line = "-q pretrain docs/recipes/train/zerovl.yaml --out {}/run \
         --set init={checkpoint:~{}/noted.safetensors} --set data.folder={} \
         --set data.train=[{dataset:~toy,~split:~train}] --set augmentation=square \
         --set data.tokenizer=fixtures/real/vocab.txt --set batch_size=4 \
         --set length={steps:~1} --set precision=f32 --set save.every=null";
    ok(run(line, &folder));
    let noted = record(&folder, "noted.safetensors");
    assert_eq!(record(&folder, "run/model.safetensors"), noted);
    let evaluated = "-q evaluate {}/run/model.safetensors --task retrieval --data {} --dataset toy \
         --split valid --tokenizer fixtures/real/vocab.txt --json";
    ok(run(evaluated, &folder));
    let merge = |second: &str| {
        let [first, second] = ["noted.safetensors", second].map(|name| folder.path().join(name));
        let yaml = format!(
            "merge_method: linear\nmodels:\n- {{ model: {}, parameters: {{ weight: 1 }} }}\n\
             - {{ model: {}, parameters: {{ weight: 1 }} }}\n",
            first.display(),
            second.display()
        );
        std::fs::write(folder.path().join("merge.yaml"), yaml).expect("written");
        run(
            "-q merge {}/merge.yaml --out {}/merged.safetensors",
            &folder,
        )
    };
    ok(merge("run/model.safetensors"));
    assert_eq!(record(&folder, "merged.safetensors"), noted);
    converted(
        &folder,
        "other",
        "--temperature 0.05 --image-mean 0.4 --image-deviation 0.5,0.25,0.5",
    );
    let refused = merge("other.safetensors");
    assert_ne!(refused.code, Some(0));
    for part in ["image_mean", "[0.5, 0.5, 0.5]", "[0.4, 0.4, 0.4]"] {
        assert!(refused.stderr.contains(part), "{}", refused.stderr);
    }
}
