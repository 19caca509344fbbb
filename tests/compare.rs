//! Differences and distances.

use crate::program::vlmerge;

const SPECIFIC: &str = "fixtures/ckpt/all_moe.safetensors";
const LIGHTNING: &str = "fixtures/ckpt/all_moe_pretrain.ckpt";
const SEED: &str = "fixtures/ckpt/ufo.safetensors";

#[test]
fn a_checkpoint_equals_itself_and_exits_with_0() {
    let said = vlmerge(&["diff", SPECIFIC, SPECIFIC]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "equal\n"));
}

#[test]
fn a_container_with_fewer_heads_differs_in_keys_only() {
    let said = vlmerge(&["diff", SPECIFIC, LIGHTNING]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(1), ""));
    insta::assert_snapshot!(said.stdout);
}

#[test]
fn differences_come_as_json_too() {
    let said = vlmerge(&["diff", SPECIFIC, LIGHTNING, "--json"]);
    let value = said.json();
    assert_eq!(
        (said.code, value["equal"].as_bool()),
        (Some(1), Some(false))
    );
    assert_eq!(
        value["report"]["only_left"].as_array().map(Vec::len),
        Some(14)
    );
    assert_eq!(
        value["report"]["reshaped"][0]["key"],
        "token_type_embeddings.weight"
    );
    assert_eq!(value["report"]["values"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_tolerance_forgives_small_differences() {
    let [a, b] = [
        "fixtures/merge/interp_all_r0.5.safetensors",
        "fixtures/merge/interp_all_r0.25.safetensors",
    ];
    assert_eq!(vlmerge(&["diff", a, b, "--tolerance", "0.1"]).code, Some(1));
    let said = vlmerge(&["diff", a, b, "--tolerance", "10"]);
    assert_eq!(said.code, Some(0));
    assert!(
        said.stdout.ends_with("equal within the tolerance\n"),
        "{}",
        said.stdout
    );
    assert_eq!(vlmerge(&["diff", a, b, "--headers-only"]).code, Some(0));
}

#[test]
fn an_error_is_told_from_a_difference_by_its_message() {
    let said = vlmerge(&["diff", SPECIFIC, "no/such.ckpt"]);
    assert_eq!((said.code, said.stdout.as_str()), (Some(1), ""));
    assert!(
        said.stderr.starts_with("error: no/such.ckpt: "),
        "{}",
        said.stderr
    );
    assert_eq!(
        vlmerge(&["diff", SPECIFIC, SEED, "--tolerance", "-1"]).code,
        Some(2)
    );
}

#[test]
fn experts_are_compared_from_the_seed() {
    let said = vlmerge(&[
        "distance",
        LIGHTNING,
        "--seed-checkpoint",
        SEED,
        "--keep",
        "0.2",
        "--per",
        "module,all",
    ]);
    assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""));
    insta::assert_snapshot!(said.stdout);
}

#[test]
fn raw_weights_and_reconstructed_metrics_are_labelled() {
    let value = vlmerge(&["distance", SPECIFIC, "--per", "all", "--json"]).json();
    assert_eq!(value["operands"], "raw_weights");
    let notes: Vec<bool> = value["metrics"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|metric| {
            metric["note"]
                .as_str()
                .is_some_and(|n| n.contains("as reconstructed"))
        })
        .collect();
    // cosine, l2, ssd
    assert_eq!(notes, [false, false, true]);
}

#[test]
fn the_number_of_threads_does_not_change_the_output() {
    let run = |threads| {
        let said = vlmerge(&[
            "distance",
            SPECIFIC,
            "--keep",
            "0.3",
            "--per",
            "tensor,block,all",
            "--json",
            "--threads",
            threads,
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        said.stdout
    };
    assert_eq!(run("1"), run("3"));
}

#[test]
fn two_checkpoints_are_compared_tensor_by_tensor() {
    let value = vlmerge(&[
        "distance", SPECIFIC, SEED, "--per", "tensor", "--metric", "l2", "--json",
    ])
    .json();
    let distances = value["distances"].as_array().expect("a list");
    let of = |key: &str| distances.iter().find(|distance| distance["key"] == key);
    let gamma = of("transformer.blocks.3.gamma_1").expect("gammas are in both");
    assert_eq!(gamma["comparison"], "shared");
    assert!(gamma["values"]["l2"].as_f64().expect("a number") > 0.0);
    let skipped = value["skipped"].as_array().expect("a list");
    let why = |key: &str| {
        skipped
            .iter()
            .find(|s| s["key"] == key)
            .map(|s| s["why"].clone())
    };
    assert_eq!(
        why("transformer.blocks.0.attn.v.qkv.weight"),
        Some("not in the second checkpoint".into())
    );
    assert_eq!(
        why("relative_position_index"),
        Some("rebuilt by loaders".into())
    );
}

#[test]
fn an_agnostic_checkpoint_has_nothing_to_compare() {
    let said = vlmerge(&["distance", SEED]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.contains("nothing to compare"),
        "{}",
        said.stderr
    );
    assert!(said.stderr.contains("\nhint: "), "{}", said.stderr);
}

#[test]
fn truncation_has_no_default() {
    let said = vlmerge(&["distance", SPECIFIC, "--metric", "tssd"]);
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("--keep"), "{}", said.stderr);
    assert_eq!(
        vlmerge(&["distance", SPECIFIC, "--keep", "1.5"]).code,
        Some(2)
    );
}

#[test]
fn a_heat_map_is_drawn_and_never_overwritten_by_accident() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("map.svg");
    let svg = path.to_str().expect("UTF-8");
    let arguments = ["distance", SPECIFIC, "--metric", "ssd", "--svg", svg];
    assert_eq!(vlmerge(&arguments).code, Some(0));
    let picture = std::fs::read_to_string(&path).expect("the map is there");
    assert!(picture.contains("prefers-color-scheme:dark"));
    assert!(picture.contains("as reconstructed; not checked against the paper"));
    assert!(picture.contains("vision vs vision-language"));
    assert!(picture.contains("block 11, mlp.fc2: "));
    assert!(!picture.contains("block 12"));
    let again = vlmerge(&arguments);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("--force"), "{}", again.stderr);
    let forced = [&arguments[..], &["--force"]].concat();
    assert_eq!(vlmerge(&forced).code, Some(0));
    assert_eq!(
        std::fs::read_to_string(&path).expect("still there"),
        picture
    );
}
