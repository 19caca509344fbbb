//! One walk over everything that can be wrong with a recipe and its inputs: each fault is named with its
//! line and, where it is one tensor's, with the tensor.

use std::path::Path;

use serde_json::json;

use crate::program::vlmerge;

/// A tensor's name, shape and type, which has 4 bytes.
type Tensor = (&'static str, &'static [usize], &'static str);

/// Writes a safetensors file of ones.
fn model(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for &(name, shape, dtype) in tensors {
        let one = match dtype {
            "F32" => 1_f32.to_le_bytes(),
            _ => 1_i32.to_le_bytes(),
        };
        let first = data.len();
        data.extend(one.repeat(shape.iter().product()));
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [first, data.len()]});
        header.insert(name.to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).expect("written");
}

/// A recipe, the exit code, and the words that the error must have.
type Case = (&'static str, i32, &'static [&'static str]);

const CASES: &[Case] = &[
    (
        "merge_method: linear\nmodels:\n- model: <a>\n  parameters: {weight: 1}\n- model: <b>\n  parameters:\n    \
         weight: -1\n",
        2,
        &[
            "`embed.weight`",
            "the weights add up to 0",
            "(line 4, column 24)",
            "normalize: false",
        ],
    ),
    (
        "merge_method: task_arithmetic\nbase_model: <base>\nmodels:\n- {model: <a>, parameters: {weight: 0}}\n\
         parameters: {normalize: true}\n",
        2,
        &["`embed.weight`", "the weights add up to 0", "(line 4,"],
    ),
    (
        "merge_method: ties\nbase_model: <base>\nparameters: {weight: 1}\nmodels:\n- model: <a>\n  parameters:\n    \
         density: 1.5\n",
        2,
        &[
            "`embed.weight`",
            "`density` must be a number from 0 to 1",
            "(line 7, column 14)",
        ],
    ),
    (
        "merge_method: dare_ties\nbase_model: <base>\nmodels: [<a>]\nparameters:\n  weight: 1\n  density:\n  - filter: \
         norm\n    value: [0.5, -0.5]\n  - value: 1\n",
        2,
        &[
            "`layers.1.norm.weight`",
            "`density` must be a number from 0 to 1",
            "(line 7,",
        ],
    ),
    (
        "merge_method: slerp\nparameters: {t: 0.5}\nmodels:\n- <a>\n",
        2,
        &[
            "slerp merges two models",
            "the recipe has 1",
            "(line 4, column 3)",
        ],
    ),
    (
        "merge_method: model_stock\nbase_model: <base>\nmodels:\n- <base>\n- <a>\n",
        2,
        &[
            "at least 2 models beside the base",
            "has 1",
            "(line 4, column 3)",
        ],
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- <a>\n- <wide>\n",
        1,
        &[
            "`embed.weight` has shape [3, 4]",
            "expected [3, 2]",
            "wide.safetensors",
            "(line 5, column 3)",
        ],
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- <a>\n- <short>\n",
        1,
        &[
            "`layers.1.norm.weight` is in",
            "a.safetensors only, not in",
            "short.safetensors (line 5, column 3)",
            "on_missing: copy",
        ],
    ),
    (
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n- <a>\n- <integers>\n",
        1,
        &[
            "`embed.weight` has dtype I32",
            "only floats are merged",
            "(line 5, column 3)",
        ],
    ),
    (
        "merge_method: linear\nmodels: [one]\nparameters: {weight: 1}\n---\nname: one\nmerge_method: linear\nmodels: \
         [two]\nparameters: {weight: 1}\n---\nname: two\nmerge_method: linear\nmodels:\n- <a>\n- one\nparameters: {weight: 1}\n",
        2,
        &["one -> two -> one", "(line 14, column 3)"],
    ),
    (
        "name: me\nmerge_method: linear\nmodels: [me]\nparameters: {weight: 1}\n---\nmerge_method: passthrough\nmodels: [me]\n",
        2,
        &["me -> me", "(line 3, column 10)"],
    ),
    (
        "merge_method: linear\nmodels: [<a>]\nparameters: {weight: 1}\n---\nname: x\nmerge_method: passthrough\nmodels: [<b>]\n",
        2,
        &["`x` is used by no other"],
    ),
    (
        "merge_method: slerp\nbase_model: <a>\nparameters: {t: high}\nmodels: [<a>, <b>]\n",
        2,
        &["`embed.weight`", "`t` must be", "(line 3, column 17)"],
    ),
    (
        "merge_method: slerp\nbase_model: <a>\nparameters: {t: .nan}\nmodels: [<a>, <b>]\n",
        2,
        &["line 3 column 17", "`.nan`"],
    ),
    (
        "merge_method: linear\nmodels:\n- <a>\n- <b>\n",
        2,
        &[
            "`embed.weight`",
            "linear needs `weight` for",
            "(line 3, column 3)",
        ],
    ),
    (
        "merge_method: linear\nmodels:\n  - a\n - b\n",
        2,
        &["line 4"],
    ),
    (
        "merge_method: linear\nmodels: []\n",
        2,
        &["one of `models`, `slices` and `modules`"],
    ),
    ("", 2, &["recipe.yaml"]),
];

#[test]
fn every_fault_is_named_with_its_line_and_its_tensor() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = |name: &str| folder.path().join(format!("{name}.safetensors"));
    let plain: [Tensor; 3] = [
        ("embed.weight", &[3, 2], "F32"),
        ("layers.0.norm.weight", &[2], "F32"),
        ("layers.1.norm.weight", &[2], "F32"),
    ];
    for name in ["base", "a", "b"] {
        model(&file(name), &plain);
    }
    model(
        &file("wide"),
        &[("embed.weight", &[3, 4], "F32"), plain[1], plain[2]],
    );
    model(&file("short"), &plain[..2]);
    model(
        &file("integers"),
        &[("embed.weight", &[3, 2], "I32"), plain[1], plain[2]],
    );
    let recipe = folder.path().join("recipe.yaml");
    let out = file("merged");
    for (yaml, code, parts) in CASES {
        let at = folder.path().display();
        let text = yaml
            .replace('<', &format!("{at}/"))
            .replace('>', ".safetensors");
        std::fs::write(&recipe, text).expect("written");
        let arguments = [
            "merge",
            recipe.to_str().expect("UTF-8"),
            "--out",
            out.to_str().expect("UTF-8"),
        ];
        let said = vlmerge(&arguments);
        assert_eq!(said.code, Some(*code), "{yaml}\n{}", said.stderr);
        for part in *parts {
            assert!(
                said.stderr.contains(part),
                "no {part} for\n{yaml}\n{}",
                said.stderr
            );
        }
        assert!(!out.exists(), "{yaml}");
    }
}

#[test]
fn a_folder_is_no_recipe_and_the_error_says_the_two_forms() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("out.safetensors");
    let said = vlmerge(&[
        "merge",
        folder.path().to_str().expect("UTF-8"),
        "--out",
        out.to_str().expect("UTF-8"),
    ]);
    assert_eq!(said.code, Some(2), "{}", said.stderr);
    for part in ["this is a folder", "`MODEL+ADAPTER`"] {
        assert!(said.stderr.contains(part), "no {part} in {}", said.stderr);
    }
}
