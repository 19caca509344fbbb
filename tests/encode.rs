//! `vlmerge encode`: embeddings of real pictures and texts.

use std::path::Path;

use merge::io::OpenOptions;
use tempfile::TempDir;

use crate::program::{ok, run};

const CHECKPOINT: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const VOCABULARY: &str = "fixtures/real/vocab.txt";
const PICTURES: &str = "fixtures/real/raw/val2014";

fn encode(more: &str) -> String {
    format!("encode {CHECKPOINT} --text-table-len 16 --tokenizer {VOCABULARY} {more}")
}

/// A tensor of f32 with its shape.
fn tensor(path: &Path, name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = merge::io::open(path, &OpenOptions::default()).expect("a file");
    let shape = file.require(name).expect("the tensor").shape.clone();
    let bytes = file.read_all(name).expect("read");
    let (values, _) = bytes.as_chunks::<4>();
    (
        shape,
        values.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    )
}

#[test]
fn features_of_a_data_set_are_those_that_retrieval_compares() {
    let folder = TempDir::new().expect("a folder");
    ok(run(
        "data build coco --raw fixtures/real/raw --out {}/arrow --split test",
        &folder,
    ));
    let out = "--data {}/arrow --dataset coco --split test --out {}/coco.safetensors";
    ok(run(&encode(out), &folder));
    let evaluate = format!(
        "-q evaluate {CHECKPOINT} --text-table-len 16 --tokenizer {VOCABULARY} --task retrieval \
         --data {{}}/arrow --split test --predictions {{}}/pred"
    );
    ok(run(&evaluate, &folder));
    let file = folder.path().join("coco.safetensors");
    let (images, image_values) = tensor(&file, "image_features");
    let (texts, text_values) = tensor(&file, "text_features");
    let scores = folder.path().join("pred/all_moe_pretrain.test.safetensors");
    let (shape, scores) = tensor(&scores, "scores");
    assert_eq!(shape, [images[0], texts[0]]);
    let width = images[1];
    for (image, row) in image_values.chunks_exact(width).enumerate() {
        let length: f32 = row.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "{length}");
        for (text, column) in text_values.chunks_exact(width).enumerate() {
            let product: f32 = row.iter().zip(column).map(|(a, b)| a * b).sum();
            // Texts are padded by batch here, by length there.
            let expected = scores[image * texts[0] + text];
            assert!(
                (product - expected).abs() < 1e-5,
                "{product} and {expected}"
            );
        }
    }
    let info = merge::io::open(&file, &OpenOptions::default()).expect("a file");
    let ids = &info.info().metadata["image_features.ids"];
    assert!(ids.contains(".jpg"), "{ids}");
    assert!(
        !folder
            .path()
            .join(".coco.safetensors.images.unfinished")
            .exists()
    );
}

#[test]
fn pictures_of_a_folder_and_lines_of_a_file_come_in_order_with_ids() {
    let folder = TempDir::new().expect("a folder");
    let lines = "a red square\n\na red square\n";
    std::fs::write(folder.path().join("texts.txt"), lines).expect("written");
    let out =
        format!("--images {PICTURES} --texts {{}}/texts.txt --out {{}}/both.safetensors --json");
    let said = ok(run(&encode(&out), &folder)).json();
    assert_eq!(said["shapes"]["text_features"][0], 3);
    let file = folder.path().join("both.safetensors");
    let (shape, texts) = tensor(&file, "text_features");
    let row = |n: usize| &texts[n * shape[1]..(n + 1) * shape[1]];
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        let parts = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        parts.fold(0.0, f32::max)
    };
    assert!(distance(row(0), row(2)) < 1e-6 && distance(row(0), row(1)) > 1e-3);
    let metadata = merge::io::open(&file, &OpenOptions::default()).expect("a file");
    let metadata = &metadata.info().metadata;
    assert_eq!(metadata["text_features.ids"], r#"["1","2","3"]"#);
    let ids: Vec<String> =
        serde_json::from_str(&metadata["image_features.ids"]).expect("a JSON list");
    assert!(ids.is_sorted() && ids.len() as u64 == said["shapes"]["image_features"][0]);

    // The same as an array; a file that is there stays without --force.
    let npy = format!("--images {PICTURES} --out {{}}/images.npy");
    ok(run(&encode(&npy), &folder));
    let bytes = std::fs::read(folder.path().join("images.npy")).expect("an array");
    let head = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let (_, images) = tensor(&file, "image_features");
    let (values, _) = bytes[head..].as_chunks::<4>();
    assert!(values.iter().map(|b| f32::from_le_bytes(*b)).eq(images));
    assert!(folder.path().join("images.npy.ids.json").exists());
    let said = run(&encode(&npy), &folder);
    assert_eq!(said.code, Some(1), "{}", said.stdout);
}

#[test]
fn a_damaged_picture_is_named_and_nothing_to_encode_is_refused() {
    let folder = TempDir::new().expect("a folder");
    std::fs::create_dir(folder.path().join("p")).expect("made");
    std::fs::write(folder.path().join("p/bad.jpg"), b"no picture").expect("written");
    let said = run(&encode("--images {}/p --out {}/o.safetensors"), &folder);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("bad.jpg"), "{}", said.stderr);
    let said = run(&encode("--out {}/o.safetensors"), &folder);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
}
