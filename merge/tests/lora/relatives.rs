//! Adapters one after the other, and updates that are more than a product.

use super::{Folder, R1, raw};

#[test]
fn adapters_are_stacked_in_their_order_each_with_its_weight() {
    let folder = Folder::new(vec![("fc.weight", raw(&[1, 2], &[1.0, 2.0]))]);
    for (name, value) in [("one", 1.0), ("two", 3.0)] {
        let product = vec![
            ("fc.lora_A.weight", raw(&[1, 2], &[value, 1.0])),
            ("fc.lora_B.weight", raw(&[1, 1], &[1.0])),
        ];
        folder.adapter(name, R1, product);
    }
    folder.adapter("whole", R1, vec![("fc.weight", raw(&[1, 2], &[9.0, 9.0]))]);
    // 2 B A of each: (2, 2) and (6, 2).
    let of = |adapters: &str| folder.with(adapters).expect("merges")["fc.weight"].values();
    assert_eq!(of("one+two"), [9.0, 6.0]);
    assert_eq!(of("one*0.5+two"), [8.0, 5.0]);
    assert_eq!(of("one*-1"), [-1.0, 0.0]);
    assert_eq!(of("one+whole"), [9.0, 9.0]);
    // Half the way from (3, 4) to (9, 9).
    assert_eq!(of("one+whole*0.5"), [6.0, 6.5]);
}

#[test]
fn dora_brings_the_rows_of_the_sum_to_its_lengths() {
    let folder = Folder::new(vec![
        ("fc.weight", raw(&[2, 2], &[3.0, 3.0, 0.0, 1.0])),
        ("embed.weight", raw(&[2, 1], &[3.0, 4.0])),
    ]);
    folder.adapter(
        "dora",
        r#""r": 1, "lora_alpha": 1, "use_dora": true"#,
        vec![
            ("fc.lora_A.weight", raw(&[1, 2], &[0.0, 1.0])),
            ("fc.lora_B.weight", raw(&[2, 1], &[1.0, 1.0])),
            ("fc.lora_magnitude_vector", raw(&[2], &[10.0, 3.0])),
            ("embed.lora_embedding_A", raw(&[1, 2], &[0.0, 0.0])),
            ("embed.lora_embedding_B", raw(&[1, 1], &[0.0])),
            ("embed.lora_magnitude_vector", raw(&[1], &[10.0])),
        ],
    );
    let merged = folder.with("dora").expect("merges");
    // (3, 4) of length 5 to 10, (0, 2) to 3; columns of embeddings.
    assert_eq!(merged["fc.weight"].values(), [6.0, 8.0, 0.0, 3.0]);
    assert_eq!(merged["embed.weight"].values(), [6.0, 8.0]);
}

#[test]
fn fused_experts_get_a_product_each_whichever_way_they_are_kept() {
    let settings =
        r#""r": 1, "lora_alpha": 1, "target_parameters": ["experts.up", "experts.down"]"#;
    // Two experts; A has a row for each, B a column.
    let inner = |module: &str| {
        vec![
            (
                format!("{module}.lora_A.weight"),
                raw(&[2, 3], &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0]),
            ),
            (
                format!("{module}.lora_B.weight"),
                raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0]),
            ),
        ]
    };
    let folder = Folder::new(vec![
        ("experts.up", raw(&[2, 3, 2], &[0.0; 12])),
        ("experts.down", raw(&[2, 2, 3], &[0.0; 12])),
    ]);
    let outer = inner("experts.base_layer");
    let outer = outer
        .iter()
        .map(|(name, raw)| (name.as_str(), raw.clone()))
        .collect();
    // One adapter for two tensors that both fit is ambiguous.
    folder.adapter("both", settings, outer);
    assert!(folder.fault("both").contains("do not tell which is meant"));
    for (parameter, expected) in [
        (
            "up",
            vec![
                1.0, 3.0, 2.0, 6.0, 3.0, 9.0, 20.0, 40.0, 40.0, 80.0, 60.0, 120.0,
            ],
        ),
        (
            "down",
            vec![
                1.0, 2.0, 3.0, 3.0, 6.0, 9.0, 20.0, 40.0, 60.0, 40.0, 80.0, 120.0,
            ],
        ),
    ] {
        let own = inner("experts");
        let own = own
            .iter()
            .map(|(name, raw)| (name.as_str(), raw.clone()))
            .collect();
        let settings =
            format!(r#""r": 1, "lora_alpha": 1, "target_parameters": ["experts.{parameter}"]"#);
        folder.adapter(parameter, &settings, own);
        let merged = folder.with(parameter).expect("merges");
        assert_eq!(merged[&format!("experts.{parameter}")].values(), expected);
    }
}

#[test]
fn products_by_element_and_of_kronecker_are_added() {
    let folder = Folder::new(vec![("fc.weight", raw(&[2, 2], &[0.0; 4]))]);
    folder.adapter(
        "loha",
        r#""r": 1, "alpha": 2, "peft_type": "LOHA""#,
        vec![
            ("fc.hada_w1_a", raw(&[2, 1], &[1.0, 2.0])),
            ("fc.hada_w1_b", raw(&[1, 2], &[1.0, 3.0])),
            ("fc.hada_w2_a", raw(&[2, 1], &[1.0, 1.0])),
            ("fc.hada_w2_b", raw(&[1, 2], &[5.0, 7.0])),
        ],
    );
    folder.adapter(
        "lokr",
        r#""r": 1, "alpha": 1, "peft_type": "LOKR""#,
        vec![
            ("fc.lokr_w1", raw(&[1, 2], &[1.0, 10.0])),
            ("fc.lokr_w2_a", raw(&[2, 1], &[1.0, 2.0])),
            ("fc.lokr_w2_b", raw(&[1, 1], &[3.0])),
        ],
    );
    let of = |adapter: &str| folder.with(adapter).expect("merges")["fc.weight"].values();
    assert_eq!(of("loha"), [10.0, 42.0, 20.0, 84.0]);
    assert_eq!(of("lokr"), [3.0, 30.0, 6.0, 60.0]);
}
