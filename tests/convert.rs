//! Converting, expanding and synthesizing, on the binary.

use std::path::Path;

use crate::program::{Said, vlmerge};

const SEED: &str = "fixtures/ckpt/ufo_pretrain.ckpt";

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A run that must succeed.
fn fine(arguments: &[&str]) -> Said {
    let said = vlmerge(arguments);
    assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
    said
}

/// Path, dtype, shape and hash of every tensor.
fn hashes(path: &Path) -> Vec<serde_json::Value> {
    let value = fine(&["inspect", "--json", "--hash", text(path)]).json();
    let tensors = value["tensors"].as_array().expect("a list").iter();
    let mut list: Vec<_> = tensors
        .map(|tensor| {
            let mut kept = serde_json::json!({});
            for field in ["name", "dtype", "shape", "sha256"] {
                kept[field] = tensor[field].clone();
            }
            kept
        })
        .collect();
    list.sort_by_key(|tensor| tensor["name"].to_string());
    assert!(!list.is_empty());
    assert!(list[0]["sha256"].is_string(), "{}", list[0]);
    list
}

#[test]
fn safetensors_to_torch_and_back_keeps_every_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (first, torch, last) = (at("a.safetensors"), at("b.ckpt"), at("c.safetensors"));
    fine(&["convert", SEED, text(&first)]);
    fine(&["convert", text(&first), text(&torch)]);
    fine(&["convert", text(&torch), text(&last)]);
    assert_eq!(hashes(&first), hashes(&last));
    assert_eq!(hashes(&first), hashes(&torch));
}

#[test]
fn an_expanded_seed_merges_back_to_the_seed_at_any_ratio() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let specific = folder.path().join("specific.safetensors");
    fine(&["expand", SEED, text(&specific), "--to", "all-specific"]);
    for ratio in ["0", "0.3", "1"] {
        let merged = folder.path().join(format!("merged_{ratio}.safetensors"));
        let arguments = ["interpolate", text(&specific), "--ratio", ratio, "--out"];
        fine(&[&arguments[..], &[text(&merged)]].concat());
        let (seed, merged) = (tensors(Path::new(SEED)), tensors(&merged));
        let mut n_blocks = 0;
        for (name, values) in &merged {
            n_blocks += usize::from(name.contains(".blocks."));
            let expected = &seed[name];
            assert_eq!(values.len(), expected.len(), "{name}");
            for (found, expected) in values.iter().zip(expected) {
                // Three products and two sums in f32.
                let close = (found - expected).abs() <= 4.0 * f32::EPSILON * expected.abs();
                assert!(close, "{name} at {ratio}: {found} is not {expected}");
            }
        }
        assert_eq!(n_blocks, 12 * 15, "every parameter of every block");
    }
}

/// The floats of every `F32` tensor.
fn tensors(path: &Path) -> std::collections::BTreeMap<String, Vec<f32>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let checkpoint = merge::io::open(&path, &merge::io::OpenOptions::default()).expect("opens");
    checkpoint
        .tensors()
        .filter(|(_, info)| info.dtype == merge::DType::F32)
        .map(|(name, info)| {
            let bytes = checkpoint.read_all(name).expect("reads");
            let mut values = vec![0.0; info.n_elements()];
            merge::decode_f32(name, info.dtype, &bytes, &mut values).expect("a float");
            (name.to_owned(), values)
        })
        .collect()
}

/// Sizes small enough for a test, large enough to have every kind of block.
const SMALL: [&str; 16] = [
    "--size",
    "custom",
    "--blocks",
    "3",
    "--width",
    "16",
    "--attention-heads",
    "2",
    "--fusion-start",
    "2",
    "--image-size",
    "64",
    "--vocabulary",
    "50",
    "--seed",
    "3",
];

fn synth(path: &Path, more: &[&str]) -> Said {
    let arguments = [&["synth", text(path)], &SMALL[..], more].concat();
    fine(&arguments)
}

#[test]
fn vlmo_to_vl_merging_to_vlmo_is_the_identity() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (vlmo, there, back) = (at("vlmo.pt"), at("there.safetensors"), at("back.pt"));
    synth(&vlmo, &["--family", "vlmo"]);
    fine(&["convert", text(&vlmo), text(&there), "--to", "vl-merging"]);
    fine(&["convert", text(&there), text(&back), "--to", "vlmo"]);
    assert_eq!(hashes(&vlmo), hashes(&back));
    assert_ne!(hashes(&vlmo), hashes(&there));
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (one, many) = (folder.path().join("1"), folder.path().join("2"));
    let container = ["--container", "safetensors", "--threads"];
    synth(&one, &[&container[..], &["1"]].concat());
    synth(&many, &[&container[..], &["3"]].concat());
    assert_eq!(
        std::fs::read(&one).expect("written"),
        std::fs::read(&many).expect("written")
    );
}

#[test]
fn a_dry_run_says_what_happens_to_every_key_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.safetensors");
    let beit = "fixtures/convert/beit_shared.safetensors";
    let said = fine(&[
        "expand",
        beit,
        text(&out),
        "--to",
        "all-specific",
        "--image-size",
        "96",
        "--dry-run",
        "--json",
    ]);
    assert!(!out.exists());
    let plan = said.json();
    let entries = plan["entries"].as_array().expect("a list");
    let table = entries
        .iter()
        .find(|entry| entry["name"] == "relative_position_bias_table")
        .expect("the table is planned");
    assert_eq!(
        table["why"],
        "one table for each of 12 blocks; window 4x4 to 6x6, bicubic; 394 zero rows for text"
    );
    assert_eq!(table["shape"], serde_json::json!([121 + 3 + 394, 36]));
    let dropped = plan["dropped"].as_array().expect("a list");
    assert_eq!(dropped.len(), 3, "an index and a head: {dropped:?}");
}

#[test]
fn what_cannot_be_converted_fails_with_a_reason_and_wrong_arguments_exit_with_2() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let vlmo = folder.path().join("vlmo.pt");
    let out = folder.path().join("out.pt");
    synth(&vlmo, &["--family", "vlmo"]);
    let said = vlmerge(&["convert", text(&vlmo), text(&out), "--image-size", "32"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("cannot shrink"), "{}", said.stderr);
    assert!(said.stderr.contains("hint: pass --resize bicubic"));

    let said = vlmerge(&["convert", SEED, text(&out), "--to", "vlmo"]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("no counterpart in VLMo"),
        "{}",
        said.stderr
    );

    for arguments in [
        &["convert", SEED][..],
        &["convert", SEED, text(&out), "--text-len", "0"],
        &["expand", SEED, text(&out)],
        &[
            "expand",
            SEED,
            text(&out),
            "--to",
            "agnostic",
            "--from",
            "x",
        ],
        &[
            "synth",
            text(&out),
            "--family",
            "vlmo",
            "--layout",
            "agnostic",
        ],
        &["synth", text(&out), "--size", "custom"],
        &["synth", text(&out), "--width", "0"],
    ] {
        let said = vlmerge(arguments);
        assert_eq!(said.code, Some(2), "{arguments:?}: {}", said.stderr);
    }
    assert!(!out.exists());
}

/// A tiny FLM for a task.
fn synth_flm(task: &str, path: &Path) {
    let sizes = [
        ("--task", task),
        ("--blocks", "1"),
        ("--width", "8"),
        ("--text-blocks", "2"),
        ("--text-width", "8"),
        ("--cross-blocks", "1"),
        ("--patch-size", "4"),
        ("--image-size", "8"),
        ("--vocabulary", "20"),
        ("--text-len", "6"),
    ];
    let mut words = vec!["synth", "--family", "flm"];
    for (flag, value) in sizes {
        words.extend([flag, value]);
    }
    words.push(text(path));
    fine(&words);
}

#[test]
fn an_flm_goes_from_pre_training_to_a_task_with_its_ties() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (model, vqa, back) = (at("flm.safetensors"), at("vqa.ckpt"), at("vqa.safetensors"));
    synth_flm("pretrain", &model);
    let found = fine(&["inspect", "--json", text(&model)]).json();
    assert_eq!(found["layout"]["name"], "flm/pretrain");
    assert_eq!(
        found["aliases"]["fusion_token_embedding.word_embeddings.weight"],
        "text_transformer.embeddings.word_embeddings.weight"
    );
    let said = fine(&[
        "expand",
        text(&model),
        text(&vqa),
        "--to",
        "flm-vqa",
        "--image-size",
        "16",
        "--answers",
        "7",
    ]);
    for wanted in [
        "so drawn: vqa_classifier.0.weight",
        "so left out: lm_score.bias",
    ] {
        assert!(said.stderr.contains(wanted), "{}", said.stderr);
    }
    let found = fine(&["inspect", "--json", text(&vqa)]).json();
    assert_eq!(found["layout"]["name"], "flm/vqa");
    assert_eq!(found["layout"]["dimensions"]["image_size"], 16);
    fine(&["convert", text(&vqa), text(&back)]);
    fine(&["diff", text(&vqa), text(&back)]);
    assert_eq!(
        fine(&["inspect", "--json", text(&back)]).json()["aliases"],
        found["aliases"]
    );
    // Flags of other families are errors that name them.
    let said = vlmerge(&[
        "expand",
        text(&model),
        text(&at("x.safetensors")),
        "--to",
        "flm-vqa",
        "--experts",
        "copy",
    ]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("an FLM has no use for --experts"),
        "{}",
        said.stderr
    );
}

#[test]
fn retrieval_is_still_known_as_irtr() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (one, same, model) = (
        at("one.safetensors"),
        at("same.safetensors"),
        at("flm.safetensors"),
    );
    synth_flm("retrieval", &one);
    synth_flm("irtr", &same);
    assert_eq!(hashes(&one), hashes(&same));
    let found = fine(&["inspect", "--json", text(&one)]).json();
    assert_eq!(found["layout"]["name"], "flm/retrieval");
    synth_flm("pretrain", &model);
    for to in ["flm-retrieval", "flm-irtr"] {
        let out = at(&format!("{to}.safetensors"));
        fine(&["expand", text(&model), text(&out), "--to", to]);
        let found = fine(&["inspect", "--json", text(&out)]).json();
        assert_eq!(found["layout"]["name"], "flm/retrieval", "{to}");
    }
    for heads in ["retrieval", "irtr"] {
        fine(&["synth", "--heads", heads, "--dry-run"]);
    }
}

#[test]
fn an_eve_goes_from_pre_training_to_a_task_in_its_programs_container() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = |name: &str| folder.path().join(name);
    let (model, task, back) = (at("eve.pth"), at("retrieval.th"), at("back.safetensors"));
    let sizes = "--blocks 3 --width 8 --attention-heads 2 --ffn-width 12 --mixtures 1 --experts 4 \
                 --patch-size 4 --image-size 8 --vocabulary 20 --text-len 9 --pair-len 6";
    let mut words = vec![
        "synth",
        "--family",
        "eve",
        "--heads",
        "pretrain",
        "--with-buffers",
    ];
    words.extend(sizes.split_whitespace());
    words.push(text(&model));
    fine(&words);
    let said = fine(&["inspect", text(&model)]);
    for wanted in [
        "eve/pretrain",
        "block 2: a router to 4 experts",
        "routed, 4 of them",
        "routers",
        "experts.experts.{0..3}.fc1.weight",
    ] {
        assert!(said.stdout.contains(wanted), "{wanted}: {}", said.stdout);
    }
    let counts = &fine(&["inspect", "--json", text(&model)]).json()["layout"]["counts"];
    assert_eq!(
        counts["by_expert"]["routed_3"]["n_elements"],
        2 * 8 * 12 + 12 + 8
    );
    assert_eq!(counts["routers"]["n_elements"], 4 * 8);
    let said = fine(&[
        "expand",
        text(&model),
        text(&task),
        "--to",
        "eve-retrieval",
        "--image-size",
        "16",
    ]);
    assert!(
        said.stderr.contains("so drawn: itc_temp"),
        "{}",
        said.stderr
    );
    let found = fine(&["inspect", "--json", text(&task)]).json();
    assert_eq!(found["layout"]["name"], "eve/retrieval");
    assert_eq!(found["layout"]["dimensions"]["image_size"], 16);
    assert_eq!(found["root"], "model");
    fine(&["convert", text(&task), text(&back)]);
    fine(&["diff", text(&task), text(&back)]);
    // One network of both modalities; the block with a router stays.
    let merged = at("merged.th");
    fine(&[
        "interpolate",
        text(&task),
        "--ratio",
        "0.5",
        "--out",
        text(&merged),
    ]);
    let found = fine(&["inspect", "--json", text(&merged)]).json();
    let experts = &found["layout"]["counts"]["by_expert"];
    assert_eq!(experts.as_object().map(serde_json::Map::len), Some(4));
    let said = vlmerge(&[
        "expand",
        text(&model),
        text(&at("x.th")),
        "--to",
        "eve-vqa",
        "--text",
        text(&model),
    ]);
    assert_eq!(said.code, Some(2));
    assert!(
        said.stderr.contains("an EVE has no use for --text"),
        "{}",
        said.stderr
    );
}
