//! The errors of adapters that do not fit, and of sums that are not finite.

use fixtures::Raw;
use safetensors::Dtype;

use super::{Folder, R1, halved, raw};

#[test]
fn adapters_that_do_not_fit_are_refused_by_line_and_tensor_all_at_once() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 3], &[0.0; 6])),
        ("head.weight", raw(&[1, 2], &[0.0; 2])),
        (
            "eight.weight",
            Raw {
                dtype: Dtype::F8_E4M3,
                shape: vec![1, 1],
                bytes: vec![0],
            },
        ),
    ]);
    let a = |shape: &[usize]| raw(shape, &vec![0.0; shape.iter().product()]);
    folder.adapter(
        "other",
        R1,
        vec![
            ("fc.lora_A.weight", a(&[1, 4])),
            ("fc.lora_B.weight", a(&[2, 1])),
            ("gone.lora_A.weight", a(&[1, 3])),
            ("gone.lora_B.weight", a(&[2, 1])),
            ("head.weight", a(&[3, 2])),
            ("eight.lora_A.weight", a(&[1, 1])),
            ("eight.lora_B.weight", a(&[1, 1])),
        ],
    );
    let said = folder.fault("other");
    for part in [
        "`base_model.model.fc.lora_A.weight` (A [1, 4] and B [2, 1] of rank 1) does not fit `fc.weight`, F32 [2, 3]",
        "`base_model.model.gone.lora_A.weight` changes `gone.weight`, which",
        "`base_model.model.head.weight` (F32 [3, 2]) does not fit `head.weight`, F32 [1, 2]",
        "does not fit `eight.weight`, F8_E4M3 [1, 1]",
        "(line 3, column 3)",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    type Case<'a> = (&'a str, Vec<(&'a str, Raw)>, &'a str);
    let cases: [Case<'_>; 5] = [
        (
            "rank",
            vec![
                ("fc.lora_A.weight", a(&[2, 3])),
                ("fc.lora_B.weight", a(&[2, 2])),
            ],
            "of rank 1) does not fit",
        ),
        (
            "half",
            vec![("fc.lora_A.weight", a(&[1, 3]))],
            "needs `base_model.model.fc.lora_B.weight`",
        ),
        (
            "other_half",
            vec![("fc.lora_B.weight", a(&[2, 1]))],
            "needs `base_model.model.fc.lora_A.weight`",
        ),
        (
            "dora",
            vec![("fc.lora_magnitude_vector", a(&[3]))],
            "fc.lora_magnitude_vector` ([3]) does not fit `fc.weight`",
        ),
        (
            "twice",
            vec![
                ("head.weight", a(&[1, 2])),
                ("head.base_layer.weight", a(&[1, 2])),
            ],
            "is a second change of `head.weight`",
        ),
    ];
    for (name, tensors, part) in cases {
        folder.adapter(name, R1, tensors);
        let said = folder.fault(name);
        assert!(said.contains(part), "no {part} in {said}");
        assert!(said.contains("(line 3, column 3)"), "{said}");
    }
    let said = folder.fault("nowhere");
    assert!(said.contains("nowhere/adapter_config.json"), "{said}");
}

#[test]
fn values_that_are_not_finite_are_found_in_the_sum() {
    let folder = Folder::new(vec![("fc.weight", halved(&[1, 1], &[1.0]))]);
    let tensors = vec![
        ("fc.lora_A.weight", raw(&[1, 1], &[f32::NAN])),
        ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
    ];
    folder.adapter("a", R1, tensors);
    let said = folder.fault("a");
    for part in [
        "a/adapter_model.safetensors: `base_model.model.fc.lora_A.weight` [0, 0]",
        "NaN",
    ] {
        assert!(said.contains(part), "no {part} in {said}");
    }
    // Of a base that is broken itself the base is named.
    let folder = Folder::new(vec![("fc.weight", halved(&[1, 1], &[f32::NAN]))]);
    let tensors = vec![
        ("fc.lora_A.weight", raw(&[1, 1], &[1.0])),
        ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
    ];
    folder.adapter("a", R1, tensors);
    let said = folder.fault("a");
    assert!(
        said.contains("base.safetensors: `fc.weight` [0, 0]"),
        "{said}"
    );
}

#[test]
fn adapters_without_a_number_are_refused_and_idle_ones_are_noted() {
    let folder = Folder::new(vec![("fc.weight", raw(&[1, 1], &[1.0]))]);
    let pair = |a: Raw, b: Raw| vec![("fc.lora_A.weight", a), ("fc.lora_B.weight", b)];
    folder.adapter("none", R1, Vec::new());
    let said = folder.fault("none");
    assert!(
        said.contains("there is no tensor in it") && said.contains("(line 3,"),
        "{said}"
    );
    folder.adapter("pieces", R1, pair(raw(&[0], &[]), raw(&[0], &[])));
    let said = folder.fault("pieces");
    assert!(
        said.contains(
            "2 of 2 tensors are empty, `base_model.model.fc.lora_A.weight` has shape [0]"
        ),
        "{said}"
    );
    let one = || raw(&[1, 1], &[1.0]);
    let zero = || raw(&[1, 1], &[0.0]);
    folder.adapter("untrained", R1, pair(one(), zero()));
    folder.adapter(
        "switched_off",
        r#""r": 1, "lora_alpha": 0"#,
        pair(one(), one()),
    );
    folder.adapter("trained", R1, pair(one(), one()));
    for (name, is_noted) in [
        ("untrained", true),
        ("switched_off", true),
        ("trained", false),
    ] {
        let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{name}\n");
        let notes = folder.plan(&yaml).expect("resolves").beside().notes.clone();
        let found = notes
            .iter()
            .any(|note| note.contains("changes none of 1 weights"));
        assert_eq!(found, is_noted, "{name}: {notes:?}");
    }
}
