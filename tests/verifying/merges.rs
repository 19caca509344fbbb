//! Against the recipe: values, adapters, inputs.

use serde_json::json;

use super::{FIXTURES, Folder, assert_each_damage_is_found, model};

#[test]
fn merges_of_each_kind_pass_and_each_damaged_element_is_found() {
    let folder = Folder::with(&[
        "mergekit/words_a",
        "mergekit/words_b",
        "mergekit/words_base",
        "quantized/gptq_a",
        "quantized/gptq_b",
    ]);
    // Models, with a union of their tokens.
    let union = "merge_method: ties\nbase_model: words_base\nmodels:\n- {model: words_a, parameters: {weight: 0.7, \
                 density: 0.5}}\n- {model: words_b, parameters: {weight: 0.4, density: 0.5}}\ntokenizer_source: \
                 union\n";
    // Layers of a model, once more.
    let slices = "merge_method: passthrough\nslices:\n- sources: [{model: words_a, layer_range: [0, 1]}]\n- sources: \
                  [{model: words_a, layer_range: [0, 1]}]\n";
    let drawn = "merge_method: dare_linear\nbase_model: words_base\nmodels:\n- {model: words_a, parameters: {weight: \
                 0.7, density: 0.5}}\ntokenizer_source: base\n";
    // A result of another document.
    let documents = "name: first\nmerge_method: slerp\nbase_model: words_a\nmodels: [words_a, words_base]\n\
                     parameters: {t: 0.4}\ntokenizer_source: base\n---\nmerge_method: linear\nmodels: [first, \
                     words_a]\nparameters: {weight: 1}\ntokenizer_source: base\n";
    let codes = "merge_method: linear\nmodels: [gptq_a, gptq_b]\nparameters: {weight: 1}\n";
    for (name, yaml) in [
        ("union", union),
        ("slices", slices),
        ("drawn", drawn),
        ("documents", documents),
        ("codes", codes),
    ] {
        let (recipe, out) = (format!("{name}.yaml"), format!("{name}/"));
        folder.write(&recipe, yaml);
        folder.merge(&[&recipe, "--out", &out]);
        for more in [
            &["--against", &recipe][..],
            &["--against", &recipe, "--full"],
            &["--inputs", "."],
            &["--inputs", ".", "--full"],
            &[],
        ] {
            folder
                .verify(&[&[out.as_str()], more].concat())
                .assert_passed();
        }
        let weights = format!("{name}/model.safetensors");
        assert_each_damage_is_found(&folder, &weights, &[&out, "--inputs", "."]);
    }
}

#[test]
fn merges_of_experts_pass_in_every_container() {
    let folder = Folder::new();
    let specific = format!("{FIXTURES}/ckpt/all_moe_pretrain.ckpt");
    let seed = format!("{FIXTURES}/ckpt/ufo_pretrain.ckpt");
    let inputs = format!("{FIXTURES}/ckpt");
    for (out, verb, more) in [
        ("a.safetensors", "interpolate", &["--ratio", "0.3"][..]),
        (
            "b.ckpt",
            "interpolate",
            &["--ratio", "0.3", "--dtype", "bf16"],
        ),
        (
            "c.pt",
            "arithmetic",
            &["--seed-checkpoint", &seed, "--lambda", "0.4"],
        ),
        (
            "d.safetensors",
            "interpolate",
            &["--ratio", "0.3", "--shard-size", "100KB"],
        ),
    ] {
        let said = folder.run(&[&[verb, &specific, "--out", out], more].concat());
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let out = match folder.path(out).exists() {
            true => out.to_owned(),
            false => format!("{out}.index.json"),
        };
        let verdict = folder.verify(&[&out, "--inputs", &inputs, "--full"]);
        verdict.assert_passed();
        assert_eq!(verdict.outcome("values"), "passed");
        assert_eq!(verdict.outcome("config"), "skipped");
    }
    assert_each_damage_is_found(
        &folder,
        "a.safetensors",
        &["a.safetensors", "--inputs", &inputs],
    );
}

#[test]
fn merges_of_families_pass_in_every_container_and_each_damaged_element_is_found() {
    let folder = Folder::new();
    let merges = [
        (
            "zerovl",
            "zerovl/ckpt",
            ["model.safetensors", "plain_epoch_001.pth"],
        ),
        (
            "flm",
            "flm/ckpt",
            ["flm_pretrain.ckpt", "flm_pretrain_trained.ckpt"],
        ),
    ];
    for (family, inputs, [a, b]) in merges {
        let inputs = format!("{FIXTURES}/{inputs}");
        for (method, settings) in [
            ("slerp", "base_model: MODEL_A\nparameters: {t: 0.4}\n"),
            (
                "della",
                "base_model: MODEL_A\nparameters: {weight: 0.5, density: 0.6, epsilon: 0.2}\n",
            ),
        ] {
            let yaml = format!("merge_method: {method}\nmodels: [MODEL_A, MODEL_B]\n{settings}");
            let yaml = yaml.replace("MODEL_A", &format!("{inputs}/{a}"));
            let recipe = format!("{family}_{method}.yaml");
            folder.write(&recipe, yaml.replace("MODEL_B", &format!("{inputs}/{b}")));
            for ending in ["safetensors", "ckpt"] {
                let out = format!("{family}_{method}.{ending}");
                folder.merge(&[&recipe, "--out", &out]);
                let verdict = folder.verify(&[&out, "--inputs", &inputs, "--full"]);
                verdict.assert_passed();
                assert_eq!(verdict.outcome("values"), "passed");
                folder.verify(&[&out, "--against", &recipe]).assert_passed();
            }
        }
        let out = format!("{family}_slerp.safetensors");
        assert_each_damage_is_found(&folder, &out, &[&out, "--inputs", &inputs]);
    }
}

/// An adapter for modules, with one value in each second factor.
fn adapter(folder: &Folder, name: &str, modules: &[(&str, f32)]) {
    let names: Vec<[String; 2]> = (modules.iter())
        .map(|(module, _)| {
            ["A", "B"].map(|half| format!("base_model.model.{module}.lora_{half}.weight"))
        })
        .collect();
    let tensors: Vec<(&str, &[usize], f32)> = (names.iter().zip(modules))
        .flat_map(|([a, b], (_, value))| {
            [
                (a.as_str(), &[1, 3][..], 2.0),
                (b.as_str(), &[2, 1][..], *value),
            ]
        })
        .collect();
    model(
        &folder.path(name).join("adapter_model.safetensors"),
        &tensors,
    );
    let settings = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
    folder.write(&format!("{name}/adapter_config.json"), settings.to_string());
}

#[test]
fn each_adapter_must_be_wholly_applied_and_change_something() {
    let folder = Folder::new();
    let weights: [(&str, &[usize], f32); 3] = [
        ("one.weight", &[2, 3], 1.0),
        ("two.weight", &[2, 3], 1.0),
        ("norm.weight", &[3], 1.0),
    ];
    model(&folder.path("base/model.safetensors"), &weights);
    adapter(&folder, "tuned", &[("one", 3.0), ("two", 4.0)]);
    adapter(&folder, "half", &[("one", 3.0), ("two", 0.0)]);
    adapter(&folder, "untrained", &[("one", 0.0), ("two", 0.0)]);
    adapter(&folder, "stranger", &[("one", 3.0), ("three", 4.0)]);
    let recipe = |name: &str, adapters: &str| {
        let yaml = format!("merge_method: passthrough\nmodels: [base+{adapters}]\n");
        folder.write(&format!("{name}.yaml"), yaml);
        format!("{name}.yaml")
    };
    let stacked = recipe("stacked", "tuned*0.5+half");
    folder.merge(&[&stacked, "--out", "stacked/"]);
    let verdict = folder.verify(&["stacked", "--against", &stacked, "--full"]);
    verdict.assert_passed();
    verdict.assert_said(
        "adapters",
        "note",
        "half: 1 of 2 weights stay as they are, `two.weight`",
    );
    assert_each_damage_is_found(
        &folder,
        "stacked/model.safetensors",
        &["stacked", "--inputs", "."],
    );

    let tuned = recipe("tuned", "tuned");
    folder.merge(&[&tuned, "--out", "merged/"]);
    let verdict = folder.verify(&["merged", "--against", &tuned]);
    verdict.assert_passed();
    verdict.assert_said("adapters", "passed", "tuned: 4 tensors change 2 weights");

    let untrained = recipe("untrained", "untrained");
    folder.merge(&[&untrained, "--out", "idle/"]);
    let verdict = folder.verify(&["idle", "--against", &untrained]);
    verdict.assert_failed(
        "adapters",
        "untrained: changes none of 2 weights; its factors make zero",
    );
    let nothing = recipe("nothing", "tuned*0");
    folder.merge(&[&nothing, "--out", "nothing/"]);
    let verdict = folder.verify(&["nothing", "--against", &nothing]);
    verdict.assert_failed("adapters", "its weight is 0");

    // The base alone is not what the recipe with the adapter makes.
    let verdict = folder.verify(&["base", "--against", &tuned]);
    verdict.assert_failed("values", "`one.weight`: 6 elements differ");
    // A tensor that fits nothing.
    let stranger = recipe("stranger", "stranger");
    let verdict = folder.verify(&["merged", "--against", &stranger]);
    verdict.assert_failed(
        "adapters",
        "`three.weight`, which base/model.safetensors does not have",
    );
}

#[test]
fn tensors_that_should_have_changed_are_looked_for() {
    let folder = Folder::new();
    let weights = |value: f32| -> [(&str, &[usize], f32); 2] {
        [("one.weight", &[2, 3], value), ("two.weight", &[2], 1.0)]
    };
    model(&folder.path("a/model.safetensors"), &weights(1.0));
    model(&folder.path("b/model.safetensors"), &weights(2.0));
    let recipe = |name: &str, models: &str| {
        let yaml = format!("merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\n");
        folder.write(&format!("{name}.yaml"), yaml);
        format!("{name}.yaml")
    };
    let (good, idle) = (recipe("good", "a, b"), recipe("idle", "a, a"));
    folder.merge(&[&good, "--out", "good/"]);
    let verdict = folder.verify(&["good", "--against", &good]);
    verdict.assert_passed();
    verdict.assert_said("changed", "note", "1 of 2 tensors");
    folder.merge(&[&idle, "--out", "idle/"]);
    let verdict = folder.verify(&["idle", "--against", &idle]);
    verdict.assert_failed("changed", "all 2 tensors");
    // One model alone is not combined with anything.
    let single = recipe("single", "a");
    folder.merge(&[&single, "--out", "single/"]);
    let verdict = folder.verify(&["single", "--against", &single]);
    verdict.assert_passed();
    assert_eq!(verdict.outcome("changed"), "passed");
}

#[test]
fn inputs_are_known_by_their_hashes() {
    let folder = Folder::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        model(
            &folder.path(name).join("model.safetensors"),
            &[("one.weight", &[2, 3], value)],
        );
    }
    let yaml = "merge_method: linear\nparameters: {weight: 1}\nmodels: [a, b]\n";
    folder.write("r.yaml", yaml);
    folder.merge(&["r.yaml", "--out", "hashed/"]);
    folder.merge(&["r.yaml", "--out", "by_sha256/", "--hash", "sha256"]);
    folder.merge(&["r.yaml", "--out", "bare/", "--no-hash"]);
    let against = |out: &str| folder.verify(&[out, "--against", "r.yaml"]);
    assert_eq!(against("hashed").outcome("inputs"), "passed");
    assert_eq!(against("by_sha256").outcome("inputs"), "passed");
    against("bare").assert_said("inputs", "note", "only sizes were compared");
    // The same numbers behind a longer header.
    let path = folder.path("b/model.safetensors");
    let good = std::fs::read(&path).expect("readable");
    let mut other = good.clone();
    let end = 8 + u64::from_le_bytes(good[..8].try_into().expect("eight bytes")) as usize;
    other.splice(end..end, *b"        ");
    other[..8].copy_from_slice(&(end as u64).to_le_bytes());
    std::fs::write(&path, &other).expect("written");
    let verdict = against("hashed");
    verdict.assert_failed(
        "inputs",
        "model.safetensors is not the file that the output was made from",
    );
    against("bare").assert_failed("inputs", "model.safetensors");
    // Other numbers of the same length.
    let mut changed = good.clone();
    let last = changed.len() - 1;
    changed[last] ^= 1;
    std::fs::write(&path, &changed).expect("written");
    assert_eq!(against("hashed").outcome("inputs"), "failed");
    assert_eq!(against("hashed").outcome("values"), "failed");
    assert_eq!(against("bare").outcome("values"), "failed");
    std::fs::write(&path, &good).expect("written");
    against("hashed").assert_passed();
    // Another number of files.
    folder.write(
        "one.yaml",
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [a]\n",
    );
    let verdict = folder.verify(&["hashed", "--against", "one.yaml"]);
    verdict.assert_said("inputs", "failed", "made from 2 files, the recipe has 1");
}
