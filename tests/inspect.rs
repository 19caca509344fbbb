//! Looking at a checkpoint.

use crate::program::vlmerge;

const LIGHTNING: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";

#[test]
fn a_lightning_checkpoint_is_explained() {
    let said = vlmerge(&["inspect", LIGHTNING]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(said.stdout);
}

#[test]
fn statistics_are_those_of_the_chosen_keys() {
    let said = vlmerge(&[
        "inspect",
        "fixtures/ckpt/ufo.safetensors",
        "--stats",
        "--hash",
        "--keys",
        "transformer.blocks.1?.norm?.bias",
    ]);
    insta::assert_snapshot!(said.stdout);
}

#[test]
fn the_same_model_has_the_same_hashes_in_every_container() {
    let hashes = |file: &str| {
        let value = vlmerge(&["inspect", file, "--json", "--hash", "--keys", "*norm1*"]).json();
        let tensors = value["tensors"].as_array().expect("a list").clone();
        let mut hashes: Vec<(String, String)> = tensors
            .iter()
            .map(|tensor| (tensor["name"].to_string(), tensor["sha256"].to_string()))
            .collect();
        hashes.sort();
        hashes
    };
    let lightning = hashes(LIGHTNING);
    assert_eq!(lightning, hashes("fixtures/ckpt/all_moe.safetensors"));
    assert_eq!(lightning.len(), 52);
}

#[test]
fn tensors_outside_the_weights_are_listed_without_a_name() {
    let value = vlmerge(&[
        "inspect",
        "fixtures/corpus/torch/valid/zip_lightning.ckpt",
        "--json",
    ])
    .json();
    assert_eq!(value["root"], "state_dict");
    let tensors = value["tensors"].as_array().expect("a list");
    let outside: Vec<_> = tensors
        .iter()
        .filter(|tensor| tensor["name"].is_null())
        .collect();
    assert_eq!((tensors.len(), outside.len()), (23, 15));
    assert_eq!(outside[0]["path"][0], "optimizer_states");
    assert_eq!(
        value["opaque"][0]["callable"],
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    );
    assert_eq!(value["layout"]["name"], "generic");
}

#[test]
fn a_missing_file_is_an_error_that_names_it() {
    let said = vlmerge(&["inspect", "no/such.ckpt"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
    assert!(
        said.stderr.starts_with("error: no/such.ckpt: "),
        "{}",
        said.stderr
    );
}

/// Headers of a file of 64 MiB are read through the page cache only as far as they reach.
#[cfg(target_os = "linux")]
#[test]
fn only_headers_are_read() {
    use std::io::{Seek, SeekFrom, Write};

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("large.safetensors");
    let n_bytes: u64 = 64 << 20;
    let header = format!(
        "{{\"x\":{{\"dtype\":\"U8\",\"shape\":[{n_bytes}],\"data_offsets\":[0,{n_bytes}]}}}}"
    );
    let mut file = std::fs::File::create(&path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes())
        .expect("room");
    file.write_all(header.as_bytes()).expect("room");
    file.seek(SeekFrom::Current(n_bytes as i64 - 1))
        .expect("room");
    file.write_all(&[1]).expect("room");
    drop(file);
    // The shell's own counter after a child is waited for includes the child's reads.
    let script = "\"$0\" inspect \"$1\" > /dev/null && grep rchar /proc/$$/io";
    let output = std::process::Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_vlmerge")])
        .arg(&path)
        .output()
        .expect("the shell starts");
    let text = String::from_utf8(output.stdout).expect("text");
    let n_read: u64 = text
        .trim()
        .trim_start_matches("rchar: ")
        .parse()
        .unwrap_or_else(|_| panic!("a count of bytes, not {text:?}"));
    assert!(n_read < 1 << 20, "{n_read} bytes were read");
}
