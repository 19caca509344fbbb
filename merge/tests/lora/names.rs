//! Where adapters may be named, and whose names of tensors they may have.

use fixtures::{self as fixture, Raw};

use super::large::large;
use super::{Folder, raw};

#[test]
fn slices_and_documents_take_adapters_too() {
    let folder = large();
    let whole = folder.with("a").expect("merges");
    let yaml = "merge_method: passthrough\nslices:\n- sources: [{model: <base>+a, layer_range: [1, 2]}]\n- \
                sources: [{model: <base>, layer_range: [0, 1]}]\n";
    let sliced = folder.merge_to("sliced", yaml).expect("merges");
    let (first, second) = ("m.layers.0.fc.weight", "m.layers.1.fc.weight");
    assert!(sliced[first] == whole[second]);
    assert!(sliced[second] == fixture::tensors(&folder.path("base"))[first]);

    let yaml = "name: twin\nmerge_method: linear\nparameters: {weight: 1}\nmodels: [<base>, <base>]\n---\n\
                merge_method: passthrough\nmodels: [{model: twin+a}]\n";
    let chained = folder.merge_to("chained", yaml).expect("merges");
    assert!(chained == whole);
}

#[test]
fn an_adapters_names_can_be_brought_to_the_bases() {
    let folder = Folder::new(vec![("model.fc.weight", raw(&[1, 1], &[1.0]))]);
    folder.adapter(
        "a",
        r#""r": 1, "lora_alpha": 1, "alpha_pattern": {"language_model.fc": 2}"#,
        vec![
            (
                "model.language_model.fc.lora_A.weight",
                raw(&[1, 1], &[1.0]),
            ),
            (
                "model.language_model.fc.lora_B.weight",
                raw(&[1, 1], &[1.0]),
            ),
        ],
    );
    let said = folder.fault("a");
    assert!(
        said.contains("changes `model.language_model.fc.weight`, which"),
        "{said}"
    );
    let yaml = "merge_method: passthrough\nmodels:\n- model: <base>+a\n  adapter_rename: [{from: \
                '^model.language_model', to: model}]\n";
    let merged = folder.merge_to("merged", yaml).expect("merges");
    // Patterns of the settings go by the adapter's own names.
    assert_eq!(merged["model.fc.weight"].values(), [3.0]);
}

#[test]
fn names_of_kohya_and_diffusers_mean_the_modules_of_the_base() {
    let folder = Folder::new(vec![
        ("down.0.attn1.to_q.weight", raw(&[1, 2], &[0.0; 2])),
        ("down.0.attn1.to_out.0.weight", raw(&[1, 2], &[0.0; 2])),
    ]);
    let product = |down: &str, up: &str| {
        vec![
            (down.to_owned(), raw(&[1, 2], &[1.0, 2.0])),
            (up.to_owned(), raw(&[1, 1], &[1.0])),
        ]
    };
    let file = |name: &str, mut tensors: Vec<(String, Raw)>, more: Vec<(&str, Raw)>| {
        tensors.extend(more.into_iter().map(|(name, raw)| (name.to_owned(), raw)));
        let path = folder.path(name);
        fixture::write(&path, &tensors.into_iter().collect());
        format!("{name}.safetensors")
    };
    let q = "down.0.attn1.to_q.weight";
    let kohya = "lora_unet_down_0_attn1_to_q";
    let name = file(
        "kohya",
        product(
            &format!("{kohya}.lora_down.weight"),
            &format!("{kohya}.lora_up.weight"),
        ),
        vec![
            ("lora_unet_down_0_attn1_to_q.alpha", raw(&[], &[3.0])),
            // For a text encoder, which is another file.
            (
                "lora_te_layers_0_q.lora_down.weight",
                raw(&[1, 2], &[1.0, 2.0]),
            ),
            ("lora_te_layers_0_q.lora_up.weight", raw(&[1, 1], &[1.0])),
            ("lora_te_layers_0_q.alpha", raw(&[], &[3.0])),
        ],
    );
    assert_eq!(folder.with(&name).expect("merges")[q].values(), [3.0, 6.0]);
    let yaml = format!("merge_method: passthrough\nmodels:\n- model: <base>+{name}\n");
    let plan = folder.plan(&yaml).expect("resolves");
    let notes: Vec<&str> = (plan.beside().ingredients.iter())
        .filter_map(|ingredient| ingredient.note.as_deref())
        .collect();
    assert!(
        notes[0].contains("3 tensors are for other parts"),
        "{notes:?}"
    );
    for (name, down, up) in [
        (
            "new",
            "unet.down.0.attn1.to_q.lora_A.weight",
            "unet.down.0.attn1.to_q.lora_B.weight",
        ),
        (
            "old",
            "unet.down.0.attn1.to_q.lora.down.weight",
            "unet.down.0.attn1.to_q.lora.up.weight",
        ),
        (
            "older",
            "unet.down.0.attn1.processor.to_q_lora.down.weight",
            "unet.down.0.attn1.processor.to_q_lora.up.weight",
        ),
    ] {
        let name = file(name, product(down, up), Vec::new());
        assert_eq!(
            folder.with(&name).expect("merges")[q].values(),
            [1.0, 2.0],
            "{name}"
        );
    }
    let output = "unet.down.0.attn1.processor.to_out_lora";
    let tensors = product(
        &format!("{output}.down.weight"),
        &format!("{output}.up.weight"),
    );
    let name = file("output", tensors, Vec::new());
    let merged = folder.with(&name).expect("merges");
    assert_eq!(merged["down.0.attn1.to_out.0.weight"].values(), [1.0, 2.0]);
}
