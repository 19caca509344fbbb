//! The result of an adapter of plain products, in closed form.

use fixtures::Raw;
use safetensors::Dtype;

use super::{Folder, R1, halved, raw};

#[test]
fn a_linear_weight_gets_the_product_times_alpha_by_the_rank() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("fc.bias", raw(&[2], &[1.0, 1.0])),
    ]);
    folder.adapter(
        "a",
        r#""r": 2, "lora_alpha": 6"#,
        vec![
            (
                "fc.lora_A.weight",
                raw(&[2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, 1.0]),
            ),
            ("fc.lora_B.weight", raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0])),
        ],
    );
    let merged = folder.with("a").expect("merges");
    // B A = [1 2 4; 3 4 10], times 3.
    let expected = [4.0, 8.0, 15.0, 13.0, 17.0, 36.0];
    assert_eq!(merged["fc.weight"].values(), expected);
    assert_eq!(merged["fc.bias"].values(), [1.0, 1.0]);
}

#[test]
fn ranks_and_alphas_may_differ_by_module_and_rslora_divides_by_the_root() {
    let ones = |n: usize| vec![1.0; n];
    let folder = Folder::new(vec![
        ("x.q.weight", raw(&[1, 2], &[0.0; 2])),
        ("x.k.weight", raw(&[1, 2], &[0.0; 2])),
        ("y.q.weight", raw(&[1, 2], &[0.0; 2])),
    ]);
    let tensors = || {
        vec![
            ("x.q.lora_A.weight", raw(&[4, 2], &ones(8))),
            ("x.q.lora_B.weight", raw(&[1, 4], &ones(4))),
            ("x.k.lora_A.weight", raw(&[1, 2], &ones(2))),
            ("x.k.lora_B.weight", raw(&[1, 1], &ones(1))),
            ("y.q.lora_A.weight", raw(&[4, 2], &ones(8))),
            ("y.q.lora_B.weight", raw(&[1, 4], &ones(4))),
        ]
    };
    let patterns =
        r#""r": 1, "lora_alpha": 3, "rank_pattern": {"q": 4}, "alpha_pattern": {"y.q": 8}"#;
    folder.adapter("plain", patterns, tensors());
    folder.adapter(
        "root",
        &format!("{patterns}, \"use_rslora\": true"),
        tensors(),
    );
    // The sum over the rank, times α/r, or α/√r.
    let expected = [
        ("plain", 4.0 * 3.0 / 4.0, 4.0 * 8.0 / 4.0),
        ("root", 6.0, 16.0),
    ];
    for (adapter, first, last) in expected {
        let merged = folder.with(adapter).expect("merges");
        assert_eq!(merged["x.q.weight"].values(), [first; 2], "{adapter}");
        assert_eq!(merged["x.k.weight"].values(), [3.0; 2], "{adapter}");
        assert_eq!(merged["y.q.weight"].values(), [last; 2], "{adapter}");
    }
}

/// A base of a square and an oblong weight, and an adapter of both for weights kept as `(in, out)`.
fn transposed(oblong: &[usize], settings: &str) -> Folder {
    let folder = Folder::new(vec![
        ("square.weight", raw(&[2, 2], &[0.0; 4])),
        ("oblong.weight", raw(oblong, &[0.0; 6])),
    ]);
    folder.adapter(
        "a",
        &format!("{R1}, {settings}"),
        vec![
            ("square.lora_A.weight", raw(&[1, 2], &[1.0, 2.0])),
            ("square.lora_B.weight", raw(&[2, 1], &[1.0, 3.0])),
            ("oblong.lora_A.weight", raw(&[1, 2], &[1.0, 2.0])),
            ("oblong.lora_B.weight", raw(&[3, 1], &[1.0, 3.0, 5.0])),
        ],
    );
    folder
}

#[test]
fn weights_kept_as_in_by_out_get_the_transpose() {
    let folder = transposed(&[2, 3], r#""fan_in_fan_out": true"#);
    let merged = folder.with("a").expect("merges");
    // (2 B A)ᵀ.
    assert_eq!(merged["square.weight"].values(), [2.0, 6.0, 4.0, 12.0]);
    let expected = [2.0, 6.0, 10.0, 4.0, 12.0, 20.0];
    assert_eq!(merged["oblong.weight"].values(), expected);
}

#[test]
fn a_setting_that_shapes_contradict_is_refused_where_a_square_weight_needs_it() {
    for (oblong, setting) in [([3, 2], "true"), ([2, 3], "false")] {
        let said = transposed(&oblong, &format!("\"fan_in_fan_out\": {setting}")).fault("a");
        assert!(said.contains("`fan_in_fan_out: "), "{said}");
        assert!(said.contains("square `square.weight`"), "{said}");
        assert!(said.contains("(line 3, column 3)"), "{said}");
    }
}

#[test]
fn embeddings_convolutions_biases_and_whole_modules_are_merged_each_in_its_way() {
    let folder = Folder::new(vec![
        ("embed.weight", raw(&[3, 2], &[0.0; 6])),
        ("conv.weight", raw(&[2, 1, 1, 2], &[1.0; 4])),
        ("fc.weight", raw(&[1, 1], &[1.0])),
        ("fc.bias", raw(&[1], &[1.0])),
        ("head.weight", raw(&[1, 2], &[1.0, 1.0])),
        (
            "norm.count",
            Raw {
                dtype: Dtype::I64,
                shape: vec![1],
                bytes: vec![1; 8],
            },
        ),
    ]);
    folder.adapter(
        "a",
        &format!("{R1}, \"lora_bias\": true, \"modules_to_save\": [\"head\", \"norm\"]"),
        vec![
            ("embed.lora_embedding_A", raw(&[1, 3], &[1.0, 2.0, 3.0])),
            ("embed.lora_embedding_B", raw(&[2, 1], &[1.0, 10.0])),
            ("conv.lora_A.weight", raw(&[1, 1, 1, 2], &[1.0, 2.0])),
            ("conv.lora_B.weight", raw(&[2, 1, 1, 1], &[1.0, 3.0])),
            ("fc.lora_A.weight", raw(&[1, 1], &[1.0])),
            ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
            ("fc.lora_B.bias", raw(&[1], &[3.0])),
            ("head.weight", raw(&[1, 2], &[7.0, 8.0])),
            (
                "norm.count",
                Raw {
                    dtype: Dtype::I64,
                    shape: vec![1],
                    bytes: vec![2; 8],
                },
            ),
        ],
    );
    let merged = folder.with("a").expect("merges");
    let embed = [2.0, 20.0, 4.0, 40.0, 6.0, 60.0];
    assert_eq!(merged["embed.weight"].values(), embed);
    assert_eq!(merged["conv.weight"].values(), [3.0, 5.0, 7.0, 13.0]);
    assert_eq!(merged["fc.weight"].values(), [3.0]);
    assert_eq!(merged["fc.bias"].values(), [7.0]);
    assert_eq!(merged["head.weight"].values(), [7.0, 8.0]);
    assert_eq!(merged["norm.count"].bytes, [2; 8]);
}

#[test]
fn in_bfloat16_the_sum_is_rounded_once_and_not_before_another_method_sees_it() {
    let folder = Folder::new(vec![("fc.weight", halved(&[1, 2], &[1.0, 3.0]))]);
    let small = 2f32.powi(-10);
    folder.adapter(
        "a",
        R1,
        vec![
            ("fc.lora_A.weight", halved(&[1, 2], &[small, 1.0])),
            ("fc.lora_B.weight", halved(&[1, 1], &[1.0])),
        ],
    );
    let merged = folder.with("a").expect("merges");
    // 1 + 2⁻⁹ is below half a step above 1.
    assert_eq!(merged["fc.weight"].dtype, Dtype::BF16);
    assert_eq!(merged["fc.weight"].values(), [1.0, 5.0]);
    let yaml = "merge_method: task_arithmetic\nbase_model: <base>\nmodels: [{model: <base>+a}]\nparameters: \
                {weight: 64.0}\n";
    let merged = folder.merge_to("merged", yaml).expect("merges");
    // 1 + 64 · 2⁻⁹: rounded in between nothing would have been left of it.
    assert_eq!(merged["fc.weight"].dtype, Dtype::BF16);
    assert_eq!(merged["fc.weight"].values(), [1.125, 131.0]);
}
