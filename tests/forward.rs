//! `vlmerge forward` from the command line against what the published program recorded.

use std::collections::BTreeMap;
use std::path::Path;

use fixtures::{Raw, first_difference, path, tensors};

use crate::evaluating::ok;
use crate::program::{Said, vlmerge};

fn forward(arguments: &[&str]) -> Said {
    let checkpoint = path("ckpt/ufo.safetensors");
    let of = ["forward", shown(&checkpoint), "--text-table-len", "16"];
    vlmerge(&[&of, arguments].concat())
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// The error of a run on changed inputs; nothing is written.
fn refused(change: impl FnOnce(&mut BTreeMap<String, Raw>), arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let [file, out] = ["in", "out"].map(|n| folder.path().join(format!("{n}.safetensors")));
    let mut inputs = tensors(&path("forward/inputs.safetensors"));
    change(&mut inputs);
    fixtures::write(&file, &inputs);
    let mut all = vec!["--inputs", shown(&file), "--out", shown(&out)];
    all.extend(arguments);
    let said = forward(&all);
    assert_ne!(said.code, Some(0));
    assert!(!out.exists());
    said.stderr
}

#[test]
fn inputs_of_another_name_shape_type_or_range_are_refused_with_what_is_expected() {
    let rename = |inputs: &mut BTreeMap<String, Raw>| {
        let image = inputs.remove("image").expect("there");
        inputs.insert("picture".into(), image);
    };
    let message = refused(rename, &[]);
    assert!(message.contains("no tensor `picture`"), "{message}");
    assert!(
        message.contains("image: (b, 3, 48, 48), floating-point numbers"),
        "{message}"
    );

    let cut = |inputs: &mut BTreeMap<String, Raw>| {
        let image = inputs.get_mut("image").expect("there");
        image.shape = vec![2, 3, 24, 96];
    };
    let message = refused(cut, &[]);
    assert!(
        message.contains("`image` has shape [2, 3, 24, 96]"),
        "{message}"
    );

    let retype = |inputs: &mut BTreeMap<String, Raw>| {
        let image = inputs["image"].clone();
        let ids = inputs.get_mut("text_ids").expect("there");
        ids.bytes = image.bytes[..ids.shape.iter().product::<usize>() * 4].to_vec();
        ids.dtype = image.dtype;
    };
    let message = refused(retype, &[]);
    assert!(message.contains("`text_ids` holds F32"), "{message}");

    let beyond = |inputs: &mut BTreeMap<String, Raw>| {
        let ids = inputs.get_mut("text_ids").expect("there");
        ids.bytes[..8].copy_from_slice(&101i64.to_le_bytes());
    };
    let message = refused(beyond, &[]);
    assert!(message.contains("element 0 is 101"), "{message}");
    assert!(message.contains("integers below 101"), "{message}");

    let halve = |inputs: &mut BTreeMap<String, Raw>| {
        let image = inputs.get_mut("image").expect("there");
        image.shape[0] = 1;
        image.bytes.truncate(image.bytes.len() / 2);
    };
    let message = refused(halve, &["--pass", "vl"]);
    assert!(message.contains("b = 1"), "{message}");
}

#[test]
fn a_named_pass_needs_its_inputs_and_others_are_skipped_with_a_note() {
    let drop = |inputs: &mut BTreeMap<String, Raw>| {
        inputs.remove("image_1").expect("there");
    };
    let message = refused(drop, &["--pass", "nlvr2"]);
    assert!(
        message.contains("has no `image_1`, which nlvr2 needs"),
        "{message}"
    );
    let message = refused(|_| (), &["--pass", "nlvr3"]);
    assert!(
        message.contains("no pass `nlvr3`") && message.contains("nlvr2"),
        "{message}"
    );
    let message = refused(|_| (), &["--loss", "contrast"]);
    assert!(message.contains("no loss `contrast`"), "{message}");

    let folder = tempfile::tempdir().expect("a folder");
    let [file, out] = ["in", "out"].map(|n| folder.path().join(format!("{n}.safetensors")));
    let mut inputs = tensors(&path("forward/inputs.safetensors"));
    inputs.retain(|name, _| name.starts_with("text_"));
    fixtures::write(&file, &inputs);
    let said = forward(&["--inputs", shown(&file), "--out", shown(&out)]);
    let skipped = "pass image: skipped, for `image` is not given";
    assert!(ok(&said).stderr.contains(skipped));
    let names: Vec<String> = tensors(&out).into_keys().collect();
    assert!(
        names.contains(&"text_ft.text_feats".to_owned()),
        "{names:?}"
    );
    assert!(
        !names.iter().any(|name| name.contains("block")),
        "{names:?}"
    );
}

/// The output of `vlmerge forward` for a tiny FLM and a batch of the golden inputs.
fn flm(checkpoint: &str, batch: &str, arguments: &[&str]) -> Said {
    let config = fixtures::json("flm/config.json");
    let [heads, image_heads, text_heads] =
        ["num_heads", "vit_heads", "text_num_heads"].map(|name| config[name].to_string());
    let [checkpoint, inputs] =
        [checkpoint, "forward/inputs"].map(|name| path(&format!("flm/{name}.safetensors")));
    let of = [
        &["forward", shown(&checkpoint), "--heads", &heads][..],
        &["--image-heads", &image_heads],
        &["--text-heads", &text_heads],
        &["--inputs", shown(&inputs), "--batch", batch, "--json"],
    ];
    vlmerge(&[&of.concat(), arguments].concat())
}

#[test]
fn golden_files_of_flm_come_out_under_the_same_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let [out, gradients] =
        ["out", "gradients"].map(|n| folder.path().join(format!("{n}.safetensors")));
    let of_one_stream: &[&str] = &["--streams", "causal"];
    for (model, batch, expected, more) in [
        ("flm_pretrain", "cap", "flm_three_stream", &[][..]),
        (
            "flm_pretrain",
            "cap",
            "flm_one_stream_causal",
            of_one_stream,
        ),
        ("ar", "cap", "ar", &[]),
        ("mlm", "cap", "mlm", &["--pass", "mlm"]),
        ("nlvr2", "nlvr2", "nlvr2", &[]),
    ] {
        let arguments = [&["--out", shown(&out), "--hidden", "--force"][..], more];
        ok(&flm(&format!("ckpt/{model}"), batch, &arguments.concat()));
        let found = tensors(&out);
        for (name, expected) in tensors(&path(&format!("flm/forward/{expected}.safetensors"))) {
            let found = found.get(&name).unwrap_or_else(|| panic!("no {name}"));
            assert_eq!(found.shape, expected.shape, "{model} {name}");
            // The tolerance of the set's manifest.
            let difference = first_difference(&found.values(), &expected.values(), 5e-5, 5e-5);
            assert_eq!(difference, None, "{model} {name}");
        }
    }
    let arguments = ["--loss", "flm", "--gradients", shown(&gradients)];
    let said = flm("ckpt/flm_pretrain", "cap", &arguments);
    ok(&said);
    let expected = fixtures::json("flm/losses/flm.json");
    let (found, expected) = (
        said.json()["loss"]["value"].as_f64(),
        expected["loss"].as_f64(),
    );
    let (found, expected) = (found.expect("a loss"), expected.expect("a loss"));
    assert!((found - expected).abs() <= 2e-5 * expected, "{found}");
    let found = tensors(&gradients);
    for (name, expected) in tensors(&path("flm/losses/flm_grads.safetensors")) {
        let found = found.get(&name);
        let found = found.unwrap_or_else(|| panic!("no gradient of {name}"));
        assert_eq!(found.shape, expected.shape, "{name}");
    }
}

#[test]
fn a_batch_that_is_not_in_the_file_is_an_error_by_name() {
    let said = flm("ckpt/flm_pretrain", "captions", &["--loss", "flm"]);
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("`captions.`"), "{}", said.stderr);
    let said = flm("ckpt/ar", "cap", &["--streams", "three", "--loss", "ar"]);
    assert_ne!(said.code, Some(0));
    assert!(said.stderr.contains("reconstructor"), "{}", said.stderr);
}

#[test]
fn golden_files_of_eve_come_out_under_the_same_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.safetensors");
    let config = fixtures::json("eve/config.json");
    let [heads, pair_len] = ["num_heads", "pairs_max_tokens"].map(|name| config[name].to_string());
    let [checkpoint, inputs] =
        ["ckpt/retrieval", "forward/inputs"].map(|name| path(&format!("eve/{name}.safetensors")));
    let run = |arguments: &[&str]| {
        let of = [
            &["forward", shown(&checkpoint), "--heads", &heads][..],
            &["--inputs", shown(&inputs), "--out", shown(&out), "--force"],
            arguments,
        ];
        vlmerge(&of.concat())
    };
    ok(&run(&["--pair-len", &pair_len, "--hidden"]));
    let found = tensors(&out);
    let mut expected = tensors(&path("eve/forward/plain.safetensors"));
    // Nothing is added where there is no noise.
    expected.retain(|name, _| !name.ends_with(".noise"));
    for (name, expected) in &expected {
        let found = found.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(found.shape, expected.shape, "{name}");
        // The tolerance of the set's manifest.
        let difference = first_difference(&found.values(), &expected.values(), 3e-5, 3e-5);
        assert_eq!(difference, None, "{name}");
    }
    // Texts of another length are an error that names both.
    let said = run(&["--pair-len", "10", "--pass", "vl"]);
    assert_ne!(said.code, Some(0));
    assert!(
        said.stderr.contains("12 tokens") && said.stderr.contains("exactly 10"),
        "{}",
        said.stderr
    );
}
