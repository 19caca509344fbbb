//! Methods that decompose task vectors of matrices.

use fixtures::Case;
use serde_json::{Value, json};

use super::Written;

fixtures::golden_tests! {
    package: "merge", set: "methods",
    tsv_m_is_that_of_the_specification: "tsv_m" => tsv_m,
    iso_c_is_that_of_the_specification: "iso_c" => iso_c,
    iso_cts_is_that_of_the_specification: "iso_cts" => iso_cts,
    wudi_is_that_of_the_specification: "wudi" => wudi,
    optmerge_is_that_of_the_published_program: "optmerge" => optmerge,
    swudi_is_that_of_the_published_program: "swudi" => swudi,
    aswudi_is_that_of_the_published_program: "aswudi" => aswudi,
    regmean_of_task_vectors_is_that_of_the_specification: "actmat" => actmat,
    cart_is_that_of_the_specification: "cart" => cart,
}

fn by_rule<'c>(case: &'c Case, method: &'static str) -> Written<'c> {
    Written::new(case, method).by_the_rule_of_the_case()
}

fn tsv_m(case: &Case) {
    let written = by_rule(case, "tsv_m").number("lambda", "alpha");
    let written = written.each("weight", "alpha").each("weight", "weights");
    match case["params"]["min_rank_one"] == true {
        true => written.with("min_rank", json!(1)),
        false => written,
    }
    .number("rank_tolerance", "rank_rtol")
    .check();
}

fn iso_c(case: &Case) {
    let written = by_rule(case, "iso_c").number("lambda", "scaling_factor");
    written.number("rank_tolerance", "rank_rtol").check();
}

fn iso_cts(case: &Case) {
    let written = by_rule(case, "iso_cts").number("lambda", "scaling_factor");
    let name = "common_space_fraction";
    written.number(name, name).check();
}

fn wudi(case: &Case) {
    let written = by_rule(case, "wudi").number("lambda", "scale");
    match case.param("solver") {
        Some("adam") => written
            .with("solver", json!("adam"))
            .number("iterations", "iterations")
            .number("learning_rate", "lr"),
        Some("closed_form") => written.number("ridge", "ridge"),
        Some("pinv") => written.number("rank_tolerance", "pinv_rtol"),
        other => panic!("a solver that this test does not know: {other:?}"),
    }
    .check();
}

fn optmerge(case: &Case) {
    by_rule(case, "optmerge")
        .number("lambda", "scale")
        .number("iterations", "iterations")
        .number("learning_rate", "lr")
        .number("momentum", "momentum")
        .check();
}

fn start<'c>(case: &Case, written: Written<'c>) -> Written<'c> {
    let start = case.param("init_mode").expect("a start");
    written
        .with("start", json!(start))
        .number("min_eigenvalue", "min_eigenvalue")
        .number("lambda", "scale")
}

fn swudi(case: &Case) {
    let written = start(case, by_rule(case, "swudi")).number("time", "exp_time");
    match &case["params"]["truncate_rank_ratio"] {
        Value::Null => written.with("ratio", json!(1)),
        ratio => written.with("ratio", ratio.clone()),
    }
    .check();
}

fn aswudi(case: &Case) {
    assert_eq!(case.param("filter"), Some("none"));
    let rule = case.param("auto_rank_method").expect("a rule");
    let written = start(case, by_rule(case, "aswudi"));
    match rule.strip_prefix("cumvar_") {
        Some(share) => {
            let share: f64 = share.parse().expect("a share");
            let written = written.with("rank_rule", json!("energy"));
            written.with("energy", json!(share))
        }
        None => written.with("rank_rule", json!(rule)),
    }
    .check();
}

fn actmat(case: &Case) {
    assert_eq!(case.param("pinv_rtol"), Some("default"));
    by_rule(case, "regmean")
        .with("grams", json!("task_vectors"))
        .each("weight", "weights")
        .number("ridge", "ridge")
        .check();
}

fn cart(case: &Case) {
    let rank = case.number("pruning_rank").expect("a rank");
    let written = by_rule(case, "cart").number("lambda", "scaling_coeffs");
    // The program cuts a rank that a matrix cannot have down to the one it has; here it is an error.
    let base = fixtures::tensors(written.base());
    let small = base
        .iter()
        .filter_map(|(name, raw)| match *raw.shape.as_slice() {
            [rows, columns] if rank > rows.min(columns) as f64 => {
                Some(json!({ "glob": name, "value": rows.min(columns) }))
            }
            _ => None,
        });
    let ranks: Vec<Value> = small.chain([json!({ "value": rank })]).collect();
    written.with("rank", json!(ranks)).check();
}
