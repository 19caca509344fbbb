//! Damaged inputs, which a tool must refuse by name.

use std::path::{Path, PathBuf};

use fixtures::{Case, Raw, text};
use merge::convert::Conversion;
use merge::io::{OpenOptions, open};
use merge::recipe::ModelRef;
use serde_json::Value;

use super::merging::{recipe, run};

fixtures::golden_tests! {
    package: "merge", set: "vl_merging",
    damaged_inputs_are_refused_by_name: "expect_error" => refusal,
}

/// Letters of an expert in a key, and its name in messages.
const EXPERTS: [(&str, &str); 3] = [
    ("v", "vision"),
    ("l", "language"),
    ("vl", "vision_language"),
];

fn refusal(case: &Case) {
    match case.text("operation") {
        "nlvr2 fine-tuning start" => three_token_types_stay(case),
        method => merge_is_refused(case, method),
    }
}

fn merge_is_refused(case: &Case, method: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let target = folder.path().join("merged.safetensors");
    let mut recipe = recipe(case, method, false);
    let mut said: Vec<String> = Vec::new();
    let input = Damage {
        removed: &case["remove"],
        replaced: &case["replace"],
    };
    recipe.models[0].model = input.of(&case.file("input"), folder.path(), &mut said);
    if let Some(central) = case.file_if_any("central") {
        let damage = Damage {
            removed: &case["remove_from_central"],
            replaced: &Value::Null,
        };
        let base = damage.of(&central, folder.path(), &mut said);
        recipe.base_model = Some(ModelRef::new(base));
    }
    if method == "regmean" {
        said.push(expert_without_gram(case).to_owned());
    }
    let uses_task = case["params"]["only_activate_used_experts"] == true;
    if uses_task && case["params"]["task"].is_null() {
        // Here the choice of experts is part of the recipe, so nothing needs refusing without
        // one: all experts take part.
        run(&recipe, &target).expect("all experts take part");
        return;
    }
    assert!(!said.is_empty(), "damage that this test does not know");
    let message = run(&recipe, &target).expect_err("refused").to_string();
    for part in said {
        assert!(message.contains(&part), "no {part}: {message}");
    }
    assert!(!target.exists(), "nothing is written");
}

/// The change of a file in a case.
struct Damage<'a> {
    removed: &'a Value,
    replaced: &'a Value,
}

impl Damage<'_> {
    /// A damaged copy, and what the message must say of it.
    fn of(&self, file: &Path, folder: &Path, said: &mut Vec<String>) -> PathBuf {
        let mut tensors = fixtures::tensors(file);
        for key in self.removed.as_array().into_iter().flatten() {
            let key = text(key);
            tensors.remove(key).expect("the key is there");
            let (slot, expert) = slot_and_expert(key);
            let file = file.file_name().expect("a name").to_string_lossy();
            said.extend([slot, expert.unwrap_or(&file).to_owned()]);
        }
        for (key, how) in self.replaced.as_object().into_iter().flatten() {
            assert_eq!(how, "drop the last row", "what this test knows");
            let raw = tensors.get_mut(key).expect("the key is there");
            said.extend([slot_and_expert(key).0, format!("{:?}", raw.shape)]);
            drop_last_row(raw);
            said.push(format!("{:?}", raw.shape));
        }
        let path = folder.join(file.file_name().expect("a name"));
        fixtures::write(&path, &tensors);
        path
    }
}

/// A key without its expert, and the expert's name.
fn slot_and_expert(key: &str) -> (String, Option<&'static str>) {
    let expert = EXPERTS
        .iter()
        .find(|(letters, _)| key.split('.').any(|segment| segment == *letters));
    match expert {
        Some((letters, name)) => (key.replacen(&format!(".{letters}."), ".", 1), Some(name)),
        None => (key.to_owned(), None),
    }
}

fn drop_last_row(raw: &mut Raw) {
    let row = raw.bytes.len() / raw.shape[0];
    raw.shape[0] -= 1;
    raw.bytes.truncate(raw.bytes.len() - row);
}

/// The name of an expert of the case's task that its file of gram matrices knows nothing of.
fn expert_without_gram(case: &Case) -> &'static str {
    let used: &[&str] = match case.param("task") {
        Some("irtr") => &["v", "l"],
        Some("vqa") => &["vl"],
        _ => &["v", "l", "vl"],
    };
    let grams = case.tensors("gram");
    let has = |letters: &str| {
        grams
            .keys()
            .any(|key| key.split('.').any(|part| part == letters))
    };
    let missing = (EXPERTS.iter()).find(|(letters, _)| used.contains(letters) && !has(letters));
    missing.expect("an expert without gram matrices").1
}

/// The published program cannot start NLVR2 from three rows; we take them as they are.
fn three_token_types_stay(case: &Case) {
    let file = case.file("input");
    let source = open(&file, &OpenOptions::default()).expect("opens");
    let conversion = Conversion {
        third_token_type: true,
        ..Conversion::default()
    };
    let found = super::convert::run(&super::convert::convert(&source.into(), &conversion));
    assert_eq!(found, fixtures::tensors(&file));
}
