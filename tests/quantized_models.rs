//! Models whose file is quantized are run and trained as the numbers that their codes stand for.

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::{Raw, tensors};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::csv_tables::table;
use crate::program::{Said, ok, run};

const MODEL: &str = "fixtures/zerovl/ckpt/model.safetensors";

/// The step from one code to the next.
const SCALE: f32 = 1.0 / 256.0;

fn config(method: &str, format: &str) -> String {
    format!(
        r#"{{ "quantization_config": {{ "quant_method": "{method}", "format": "{format}" }} }}"#
    )
}

/// Writes two folders: the tiny ZeroVL with the linear weights of its text tower as codes of 8 bits, and the
/// numbers that these stand for.
fn write(folder: &TempDir) {
    let mut codes = tensors(Path::new(MODEL));
    let mut numbers = codes.clone();
    let linear = codes.keys().filter(|key| {
        key.starts_with("text_encoder.model.model.encoder.") && key.ends_with("dense.weight")
    });
    let linear: Vec<String> = linear.cloned().collect();
    assert!(!linear.is_empty());
    for key in linear {
        let raw = codes[&key].clone();
        let of_weights: Vec<i8> = (raw.values().into_iter())
            .map(|value| (value as f32 / SCALE).round().clamp(-127.0, 127.0) as i8)
            .collect();
        let rows = raw.shape[0];
        let scales = Raw {
            dtype: Dtype::F32,
            shape: vec![rows, 1],
            bytes: SCALE.to_le_bytes().repeat(rows),
        };
        codes.insert(format!("{key}_scale"), scales);
        let as_codes = Raw {
            dtype: Dtype::I8,
            bytes: of_weights.iter().map(|code| *code as u8).collect(),
            ..raw.clone()
        };
        codes.insert(key.clone(), as_codes);
        let values = of_weights.iter().map(|code| f32::from(*code) * SCALE);
        let bytes = values.flat_map(f32::to_le_bytes).collect();
        numbers.insert(key, Raw { bytes, ..raw });
    }
    put(
        folder,
        "codes",
        &codes,
        &config("compressed-tensors", "int-quantized"),
    );
    put(folder, "numbers", &numbers, "{}");
    put(folder, "unknown", &codes, &config("quanto", "int8"));
}

fn put(folder: &TempDir, name: &str, tensors: &BTreeMap<String, Raw>, config: &str) {
    let place = folder.path().join(name);
    std::fs::create_dir_all(&place).expect("made");
    fixtures::write(&place.join("model.safetensors"), tensors);
    std::fs::write(place.join("config.json"), config).expect("written");
}

/// Runs a line whose `HEADS` stands for the flags of the model.
fn of_model(line: &str, folder: &TempDir) -> Said {
    let config = fixtures::json("zerovl/config.json");
    let heads = |tower: &str| config[tower]["heads"].to_string();
    let flags = format!(
        "--image-heads {} --text-heads {}",
        heads("vision"),
        heads("text")
    );
    run(&line.replace("HEADS", &flags), folder)
}

fn pictures(folder: &TempDir) {
    let captions = ["a dog", "two cats", "a tree", "the sea"];
    let rows = captions.iter().enumerate();
    let rows: Vec<_> = rows
        .map(|(n, caption)| (n, n as i64, *caption, n as i64))
        .collect();
    table(folder, "toy", &rows);
}

#[test]
fn passes_features_grams_and_recall_of_codes_are_those_of_their_numbers() {
    let folder = TempDir::new().expect("a folder");
    write(&folder);
    pictures(&folder);
    let inputs = "fixtures/zerovl/forward/inputs.safetensors";
    let of = |name: &str| {
        let line = format!(
            "-q forward {{}}/{name} HEADS --inputs {inputs} --out {{}}/{name}.out.safetensors"
        );
        ok(of_model(&line, &folder));
        let line = format!(
            "-q encode {{}}/{name} HEADS --data {{}} --dataset toy --split valid --tokenizer \
             fixtures/real/vocab.txt --out {{}}/{name}.features.safetensors"
        );
        ok(of_model(&line, &folder));
        let line = format!(
            "-q evaluate {{}}/{name} HEADS --task retrieval --data {{}} --dataset toy --split valid \
             --tokenizer fixtures/real/vocab.txt --json"
        );
        let said = ok(of_model(&line, &folder)).json();
        let line = format!(
            "-q gram --checkpoint {{}}/{name} HEADS --shared --task retrieval --data {{}} --dataset toy \
             --split valid --tokenizer fixtures/real/vocab.txt --out {{}}/{name}.grams.safetensors"
        );
        ok(of_model(&line, &folder));
        let read = |what: &str| tensors(&folder.path().join(format!("{name}.{what}.safetensors")));
        let measured = said["results"][0]["measurements"].clone();
        (read("out"), read("features"), read("grams"), measured)
    };
    let (codes, numbers) = (of("codes"), of("numbers"));
    assert!(codes.0.contains_key("text.embedding"));
    assert!(!codes.2.is_empty());
    assert_eq!(codes, numbers);
}

#[test]
fn training_goes_on_from_the_numbers_that_codes_stand_for() {
    let folder = TempDir::new().expect("a folder");
    write(&folder);
    pictures(&folder);
    let toy = folder.path().join("toy");
    std::fs::rename(toy.join("valid"), toy.join("train")).expect("renamed");
    std::fs::rename(toy.join("valid_anno.csv"), toy.join("train_anno.csv")).expect("renamed");
    let config = fixtures::json("zerovl/config.json");
    let heads = |tower: &str| config[tower]["heads"].to_string();
    let (image, text) = (heads("vision"), heads("text"));
    let trained = |name: &str| {
        let line = format!(
            "-q pretrain docs/recipes/train/zerovl.yaml --out {{}}/run_{name} \
             --set init={{checkpoint:~{{}}/{name}}} --set data.folder={{}} \
             --set data.train=[{{dataset:~toy,~split:~train}}] --set augmentation=square \
             --set data.tokenizer=fixtures/real/vocab.txt --set data.caption_corruption=false \
             --set model={{image_heads:~{image},~text_heads:~{text}}} --set batch_size=4 \
             --set length={{steps:~2}} --set precision=f32 --set save.every=null"
        );
        ok(run(&line, &folder));
        tensors(&folder.path().join(format!("run_{name}/model.safetensors")))
    };
    assert_eq!(trained("codes"), trained("numbers"));
}

#[test]
fn a_scheme_that_is_not_read_is_named() {
    let folder = TempDir::new().expect("a folder");
    write(&folder);
    let line = "-q forward {}/unknown HEADS --list";
    let said = of_model(line, &folder);
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("quanto"), "{}", said.stderr);
}
