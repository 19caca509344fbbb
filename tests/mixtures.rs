//! Mixtures of experts by the program: shuffled experts are refused or matched, spellings are converted, and flags that
//! change the number of experts say what they need.

use std::collections::BTreeMap;

use fixtures::{Raw, Set};
use tempfile::TempDir;

use crate::program::{ok, run};

type Tensors = BTreeMap<String, Raw>;

/// EVE's golden backbone and the same with its experts in another order.
fn pair(folder: &TempDir) -> Tensors {
    let set = Set::open("eve");
    let cases = set.cases("permute_experts");
    let case = cases.first().expect("a permutation");
    let model = case.tensors("input");
    let mut other = model.clone();
    other.extend(case.tensors("expected"));
    fixtures::write(&folder.path().join("a.safetensors"), &model);
    fixtures::write(&folder.path().join("b.safetensors"), &other);
    let recipe = format!(
        "merge_method: linear\nmodels: [{0}/a.safetensors, {0}/b.safetensors]\nparameters: {{ weight: 0.5 }}\n",
        folder.path().display()
    );
    std::fs::write(folder.path().join("recipe.yaml"), recipe).expect("written");
    model
}

#[test]
fn shuffled_experts_are_refused_with_what_mends_it_and_the_matching_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = pair(&folder);
    let said = run("merge {}/recipe.yaml --out {}/out.safetensors", &folder);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    for words in ["no common order", "mlp_moe.moe", "align_experts: weights"] {
        assert!(said.stderr.contains(words), "{words}: {}", said.stderr);
    }
    assert!(!folder.path().join("out.safetensors").exists());
    let line =
        "merge {}/recipe.yaml --out {}/out.safetensors --align-experts weights --align-units";
    let said = ok(run(&format!("{line} --dry-run"), &folder));
    assert!(
        said.stderr.contains("moved, in the order"),
        "{}",
        said.stderr
    );
    let said = ok(run(&format!("{line} --json"), &folder)).json();
    let experts = said["alignment"]["experts"].as_array().expect("matchings");
    assert!(!experts.is_empty());
    for matching in experts {
        assert_eq!(matching["model"], "b.safetensors");
        assert!(matching["cosine"].as_f64().expect("a number") > 0.999);
    }
    assert!(
        said["alignment"]["units"]
            .as_array()
            .expect("networks")
            .len()
            > experts.len()
    );
    let out = fixtures::tensors(&folder.path().join("out.safetensors"));
    assert_eq!(
        out.keys().collect::<Vec<_>>(),
        model.keys().collect::<Vec<_>>()
    );
    for (key, raw) in &model {
        assert!(out[key].bytes == raw.bytes, "{key}");
    }
    let said = ok(run("recipe {}/out.safetensors", &folder));
    assert!(
        said.stdout.contains("align_experts: weights"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains("align_units: true"), "{}", said.stdout);
    // A copy merged with its model changes nothing, which alone is found.
    let said = run("verify {}/out.safetensors --inputs {} --full", &folder);
    assert!(said.stdout.contains("passed   values"), "{}", said.stdout);
    assert!(
        said.stdout.matches("FAILED").count() == 1 && said.stdout.contains("FAILED   changed"),
        "{}",
        said.stdout
    );
}

#[test]
fn flags_for_the_number_of_experts_say_what_they_need() {
    let folder = tempfile::tempdir().expect("a folder");
    pair(&folder);
    for (flags, words) in [
        ("--experts 2", "needs --grams"),
        ("--experts dense --by frequency", "needs --grams"),
        ("--experts dense --group", "the mean of all experts"),
        ("--experts 0", "a number of experts"),
        ("--align-units", "--group"),
        ("--experts 2 --to mixtral", "cannot be used with"),
        ("--to mixtral", "have no other spelling"),
    ] {
        let said = run(
            &format!("convert {{}}/a.safetensors {{}}/out.safetensors {flags}"),
            &folder,
        );
        assert_ne!(said.code, Some(0), "{flags}");
        assert!(said.stderr.contains(words), "{flags}: {}", said.stderr);
    }
    let said = run(
        "expand {}/a.safetensors {}/out.safetensors --to mixture",
        &folder,
    );
    assert!(said.stderr.contains("--n-experts"), "{}", said.stderr);
    ok(run(
        "convert {}/a.safetensors {}/dense.safetensors --experts dense",
        &folder,
    ));
    let said = ok(run("inspect {}/dense.safetensors", &folder));
    assert!(said.stdout.contains("eve"), "{}", said.stdout);
}
