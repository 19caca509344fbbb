//! Conversions against the listings of the published program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fixtures::{Case, Raw, list, text};
use merge::convert::{Conversion, Expansion, Start};
use merge::execute::{RunOptions, execute};
use merge::io::{OpenOptions, WriteOptions, open};
use merge::layouts::{Form, detect};
use merge::progress::Silent;
use merge::{Checkpoint, MergePlan};
use serde_json::Value;

fixtures::golden_tests! {
    package: "merge", set: "vl_merging",
    conversions_give_every_listed_tensor_of_the_published_program: "convert" => conversion,
    nlvr2_gets_a_third_token_type_like_the_second: "nlvr2_token_type" => third_token_type,
}

fn opened(path: &Path) -> Arc<Checkpoint> {
    Arc::new(open(path, &OpenOptions::default()).expect("opens"))
}

/// The tensors that a plan writes.
pub fn run(plan: &MergePlan) -> BTreeMap<String, Raw> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("out.safetensors");
    let (write, run) = (WriteOptions::new(&target), RunOptions::default());
    execute(plan, &write, &run, &Silent).expect("runs");
    fixtures::tensors(&target)
}

pub fn convert(source: &Arc<Checkpoint>, conversion: &Conversion) -> MergePlan {
    let layout = detect(source).expect("a layout");
    let plan = conversion.plan(Arc::clone(source), layout.as_ref());
    plan.expect("plans")
}

fn form(name: &str) -> Form {
    match name {
        "ufo" => Form::Agnostic,
        "all_moe" => Form::AllSpecific,
        "attn_moe" => Form::AttnSpecific,
        "ffn_moe" => Form::FfnSpecific,
        "ln_moe" => Form::LnSpecific,
        other => panic!("a form that this test does not know: {other}"),
    }
}

/// The plan for the parameters of a listing.
fn plan_of(source: &Arc<Checkpoint>, params: &Value, config: &Value) -> MergePlan {
    let size = |of: &Value, name: &str| of[name].as_u64().map(|value| value as usize);
    let text_table_len = size(config, "max_text_len_of_initckpt");
    let Some(arch) = params["arch"].as_str() else {
        let conversion = Conversion {
            image_size: size(params, "image_size"),
            text_len: size(params, "max_text_len"),
            text_table_len,
            ..Conversion::default()
        };
        return convert(source, &conversion);
    };
    let expansion = Expansion {
        start: match params["copy_experts"].as_bool() {
            Some(false) => Start::VisionOnly,
            _ => Start::Copy,
        },
        image_size: size(params, "image_size"),
        fusion_start: size(config, "vlffn_start_layer_index"),
        text_table_len,
        as_published: true,
        ..Expansion::to(form(arch))
    };
    let layout = detect(source).expect("a layout");
    let plan = expansion.plan(Arc::clone(source), layout.as_ref());
    plan.expect("plans")
}

fn conversion(case: &Case) {
    let listing = case.json("expected_listing");
    let computed = case.tensors("expected_tensors");
    let source = opened(&case.file("input"));
    let found = run(&plan_of(&source, &listing["params"], &case.set().config()));
    let expected = listing["tensors"].as_object().expect("a map");
    let keys: BTreeSet<&String> = found.keys().collect();
    assert_eq!(keys, expected.keys().collect());
    let changed: BTreeSet<&str> = list(&listing["changed"]).iter().map(text).collect();
    for (name, listed) in expected {
        let found = &found[name];
        assert_eq!(listed["dtype"], found.dtype.to_string(), "{name}");
        assert_eq!(listed["shape"], Value::from(found.shape.clone()), "{name}");
        if !changed.contains(name.as_str()) {
            assert_eq!(listed["sha256"], found.sha256(), "{name}");
            continue;
        }
        let (found, expected) = (found.values(), computed[name].values());
        let (rtol, atol) = (case.tolerance("", "rtol"), case.tolerance("", "atol"));
        let difference = fixtures::first_difference(&found, &expected, rtol, atol);
        assert_eq!(difference, None, "{name}");
    }
}

fn third_token_type(case: &Case) {
    let conversion = Conversion {
        third_token_type: true,
        ..Conversion::default()
    };
    let (source, expected) = (opened(&case.file("input")), case.tensors("expected"));
    let key = "token_type_embeddings.weight";
    let before = source.read_all(key).expect("reads");
    assert!(
        before == expected["before"].bytes,
        "the input is the one described"
    );
    assert_eq!(run(&convert(&source, &conversion))[key], expected["after"]);
}
