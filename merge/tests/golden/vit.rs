//! Models that timm builds for the names of its architectures, and position tables as it resizes them.

use std::sync::Arc;

use fixtures::{Case, number};
use merge::convert::Conversion;
use merge::execute::{RunOptions, in_memory};
use merge::layouts::{self, ClipActivation, VitConfig, VitPool};
use merge::progress::Silent;
use serde_json::json;

use crate::clip::{opened, values};

fixtures::golden_tests! {
    package: "merge", set: "vit",
    names_of_architectures_say_what_timm_builds: "architectures" => architectures,
    position_tables_are_resized_as_timm_does: "pos_embed" => resize,
}

fn architectures(case: &Case) {
    let names = case.json("expected");
    for (name, built) in names.as_object().expect("names") {
        let config = VitConfig::of_timm(&json!({ "architecture": format!("{name}.tag") }));
        let facts = config.facts;
        let activation = match built["activation"].as_str().expect("a name") {
            "gelu" => ClipActivation::Gelu,
            "gelu_tanh" => ClipActivation::GeluTanh,
            "quick_gelu" => ClipActivation::QuickGelu,
            other => panic!("{other}"),
        };
        let pool = match built["global_pool"].as_str().expect("a name") {
            "token" => VitPool::Token,
            "avg" => VitPool::Mean,
            other => panic!("{other}"),
        };
        assert_eq!(
            config.heads,
            built["heads"].as_u64().map(|n| n as usize),
            "{name}"
        );
        assert_eq!(facts.activation, Some(activation), "{name}");
        assert_eq!(facts.epsilon, Some(number(&built["epsilon"])), "{name}");
        assert_eq!(facts.pool, Some(pool), "{name}");
    }
    for name in ["vit_base_patch16_rpn_224", "resnet50"] {
        let config = VitConfig::of_timm(&json!({ "architecture": name }));
        assert_eq!(
            (config.heads, config.facts.activation),
            (None, None),
            "{name}"
        );
    }
}

fn resize(case: &Case) {
    let file = Arc::new(opened(&case.set().path(case.text("model"))));
    let layout = layouts::detect(&file).expect("a layout");
    assert_eq!(layout.name(), "vit");
    let conversion = Conversion {
        image_size: case.count("image_size"),
        ..Conversion::default()
    };
    let plan = conversion.plan(file, layout.as_ref()).expect("a plan");
    let resized = in_memory(&plan, &RunOptions::default(), &Silent).expect("it runs");
    let expected = &case.tensors("expected")["pos_embed"];
    assert_eq!(
        resized.require("pos_embed").expect("there").shape,
        expected.shape
    );
    let difference = fixtures::first_difference(
        &values(&resized, "pos_embed"),
        &expected.values(),
        case.tolerance("", "rtol"),
        case.tolerance("", "atol"),
    );
    assert_eq!(difference, None);
}
