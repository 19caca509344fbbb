//! Model folders whose mixtures change: configurations that say so, and groups of experts that routers pick among.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixtures::Raw;
use merge::beside::Content;
use merge::convert::{DenseOfExperts, FewerExperts, Keep, Others, Upcycling, Worth};
use merge::execute::{RunOptions, in_memory};
use merge::gram::GramStore;
use merge::io::{OpenOptions, open};
use merge::mixtures::survey;
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::{Checkpoint, MergePlan, MergeRecipe};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::mixture_models::{
    EXPERTS, LAYERS, Tensors, as_mixtral, deepseek, host, mixtral_like, reordered, shuffled,
};

/// A folder with weights and a configuration.
fn model(folder: &Path, name: &str, tensors: &Tensors, config: &Value) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir(&path).expect("made");
    fixtures::write(&path.join("model.safetensors"), tensors);
    std::fs::write(path.join("config.json"), config.to_string()).expect("written");
    std::fs::write(path.join("tokenizer.json"), "{}").expect("written");
    path
}

fn opened(path: &Path) -> Arc<Checkpoint> {
    Arc::new(open(path, &OpenOptions::default()).expect("it opens"))
}

/// A gram file that says how many tokens went to each expert of each mixture.
fn grams(folder: &Path, counts: [[f64; EXPERTS]; 2]) -> Arc<GramStore> {
    let width = 1 + 2 * EXPERTS;
    let routing = |counts: [f64; EXPERTS]| {
        let mut values = vec![0.0; width * width];
        values[0] = 100.0;
        for (expert, count) in counts.into_iter().enumerate() {
            (values[1 + expert], values[1 + EXPERTS + expert]) = (count, count);
        }
        Raw {
            dtype: Dtype::F64,
            shape: vec![width, width],
            bytes: values.into_iter().flat_map(f64::to_le_bytes).collect(),
        }
    };
    let of_layers = LAYERS.into_iter().zip(counts);
    let matrices =
        of_layers.map(|(layer, counts)| (format!("{}.routing", host(layer)), routing(counts)));
    let path = folder.join("grams.safetensors");
    fixtures::write(&path, &matrices.collect::<BTreeMap<_, _>>());
    Arc::new(GramStore::new(opened(&path)).expect("a gram file"))
}

fn fewer(keep: usize, worth: Worth, grams: Arc<GramStore>) -> FewerExperts {
    FewerExperts {
        keep: Keep::Each(keep),
        worth,
        others: Others::Prune,
        grams,
        is_folder: true,
        dtype: OutputDType::Keep,
    }
}

/// The configuration that a plan writes.
fn config(plan: &MergePlan) -> Value {
    let mut files = plan.beside().files.iter();
    let file = files.find(|file| file.name == "config.json");
    match &file.expect("a configuration").content {
        Content::Text(text) => serde_json::from_str(text).expect("JSON"),
        Content::Copy(path) => panic!("{} is copied", path.display()),
    }
}

fn names(plan: &MergePlan) -> Vec<&str> {
    let files = plan.beside().files.iter();
    files.map(|file| file.name.as_str()).collect()
}

const COUNTS: [[f64; EXPERTS]; 2] = [[40.0, 30.0, 20.0, 10.0]; 2];

#[test]
fn a_folder_with_fewer_experts_says_how_many_and_a_file_says_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = json!({"num_experts": EXPERTS, "num_experts_per_tok": 2, "torch_dtype": "float32"});
    let source = opened(&model(folder.path(), "model", &mixtral_like(1), &said));
    let grams = grams(folder.path(), COUNTS);
    let three = FewerExperts {
        dtype: OutputDType::Bf16,
        ..fewer(3, Worth::Frequency, Arc::clone(&grams))
    };
    let (plan, _) = three.plan(Arc::clone(&source)).expect("a plan");
    assert_eq!(
        config(&plan),
        json!({"num_experts": 3, "num_experts_per_tok": 2, "torch_dtype": "bfloat16"})
    );
    assert_eq!(names(&plan), ["config.json", "tokenizer.json"]);
    let one = fewer(1, Worth::Frequency, Arc::clone(&grams));
    let (plan, _) = one.plan(Arc::clone(&source)).expect("a plan");
    assert_eq!(config(&plan)["num_experts_per_tok"], 1);
    assert!(plan.beside().notes[0].contains("num_experts_per_tok"));
    let file = FewerExperts {
        is_folder: false,
        ..one
    };
    let (plan, _) = file.plan(Arc::clone(&source)).expect("a plan");
    assert!(plan.beside().files.is_empty() && plan.beside().ingredients.is_empty());
    assert!(plan.beside().notes[0].contains("still says what the model was"));
    let uneven = FewerExperts {
        keep: Keep::InAll(6),
        ..fewer(0, Worth::Frequency, grams)
    };
    // Both mixtures have the same frequencies, so the numbers are the same.
    let (plan, _) = uneven.plan(source).expect("a plan");
    assert_eq!(config(&plan)["num_experts"], 3);
}

#[test]
fn the_most_frequent_experts_of_the_whole_model_stay_at_least_two_in_each_mixture() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = json!({"num_experts": EXPERTS, "num_experts_per_tok": 2});
    let source = opened(&model(folder.path(), "model", &mixtral_like(1), &said));
    let counts = [[10.0, 10.0, 40.0, 40.0], [1.0, 97.0, 1.0, 1.0]];
    let grams = grams(folder.path(), counts);
    let of = |keep: usize, is_folder: bool| FewerExperts {
        is_folder,
        keep: Keep::InAll(keep),
        ..fewer(0, Worth::Frequency, Arc::clone(&grams))
    };
    let (plan, report) = of(6, false).plan(Arc::clone(&source)).expect("a plan");
    let kept = report.iter().map(|of| of.groups.concat());
    // Of six experts in all, two of the second mixture stay though others of the first have more tokens.
    assert_eq!(kept.collect::<Vec<_>>(), [vec![0, 1, 2, 3], vec![0, 1]]);
    let found = in_memory(&plan, &RunOptions::default(), &Silent).expect("made");
    let mixtures = survey(&found).expect("mixtures");
    let n_experts = mixtures.values().map(|of| of.n_experts);
    assert_eq!(n_experts.collect::<Vec<_>>(), [4, 2]);
    for expert in [0, 1] {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            let key = format!("{}.experts.{expert}.{part}.weight", host(LAYERS[1]));
            let [own, before] = [&found, &*source].map(|of| of.read_all(&key).expect("there"));
            assert!(own == before, "{key}");
        }
    }
    let fault = |keep: usize, is_folder: bool| {
        let fault = of(keep, is_folder).plan(Arc::clone(&source)).err();
        fault.expect("refused").to_string()
    };
    let said = fault(3, false);
    assert!(said.contains("8 experts and cannot be given 3"), "{said}");
    let said = fault(6, true);
    assert!(
        said.contains("`num_experts` is one number for all layers, which keep 2 to 4 experts"),
        "{said}"
    );
}

#[test]
fn what_a_configuration_cannot_say_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = json!({"num_experts": 9});
    let source = opened(&model(folder.path(), "other", &mixtral_like(1), &said));
    let grams = grams(folder.path(), COUNTS);
    let two = fewer(2, Worth::Frequency, grams);
    let fault = two.plan(source).err().expect("refused").to_string();
    assert!(
        fault.contains("config.json: no number of experts of `model.layers` is 4"),
        "{fault}"
    );
    let alone = tempfile::tempdir().expect("a folder");
    let path = alone.path().join("model.safetensors");
    fixtures::write(&path, &mixtral_like(1));
    let (plan, _) = two.plan(opened(&path)).expect("a plan");
    assert!(plan.beside().notes[0].contains("no config.json beside it"));
}

#[test]
fn experts_in_groups_are_kept_in_equal_numbers_of_each() {
    let folder = tempfile::tempdir().expect("a folder");
    let grams = grams(folder.path(), COUNTS);
    let said = |more: Value| {
        let mut all = json!({"n_routed_experts": EXPERTS, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 1});
        let (all_of, more) = (all.as_object_mut().expect("an object"), more);
        all_of.extend(more.as_object().expect("an object").clone());
        all
    };
    let best_of_group = json!({"topk_method": "group_limited_greedy"});
    let path = model(folder.path(), "v2", &deepseek(1), &said(best_of_group));
    let source = opened(&path);
    let two = fewer(2, Worth::Frequency, Arc::clone(&grams));
    let (plan, report) = two.plan(Arc::clone(&source)).expect("a plan");
    // The most frequent are 0 and 1, which are both of the first group.
    assert!(report.iter().all(|of| of.groups == [[0], [2]]));
    assert_eq!(config(&plan)["n_routed_experts"], 2);
    let refused = |fewer: FewerExperts, source: &Arc<Checkpoint>| {
        let fault = fewer.plan(Arc::clone(source)).err().expect("refused");
        fault.to_string()
    };
    let fault = refused(fewer(3, Worth::Frequency, Arc::clone(&grams)), &source);
    assert!(
        fault.contains("4 experts in 2 groups") && fault.contains("multiple of 2, at least 2"),
        "{fault}"
    );
    let uneven = FewerExperts {
        keep: Keep::InAll(4),
        ..fewer(0, Worth::Frequency, Arc::clone(&grams))
    };
    let fault = refused(uneven, &source);
    assert!(fault.contains("groups of equal sizes"), "{fault}");
    // Later routers judge a group by its best two.
    let source = opened(&model(folder.path(), "v3", &deepseek(1), &said(json!({}))));
    let fault = refused(fewer(2, Worth::Frequency, Arc::clone(&grams)), &source);
    assert!(fault.contains("at least 4"), "{fault}");
    let source = opened(&model(
        folder.path(),
        "one",
        &deepseek(1),
        &said(json!({"n_group": 1})),
    ));
    let (_, report) = fewer(2, Worth::Frequency, grams)
        .plan(source)
        .expect("a plan");
    assert!(report.iter().all(|of| of.groups == [[0], [1]]));
}

#[test]
fn matched_experts_stay_in_groups_with_those_that_they_were_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |n: usize| json!({"n_routed_experts": EXPERTS, "n_group": n, "topk_group": 1});
    let own = deepseek(1);
    let a = model(folder.path(), "a", &own, &of(2));
    // Groups exchanged, and experts within one; the order of `shuffled` tears groups apart.
    let kept = model(
        folder.path(),
        "kept",
        &reordered(&own, [3, 2, 0, 1]),
        &of(2),
    );
    let torn = model(folder.path(), "torn", &shuffled(&own), &of(2));
    let other = model(folder.path(), "other", &own, &of(4));
    let plan = |with: &Path| {
        let yaml = format!(
            "merge_method: linear\nmodels: [{}, {}]\nparameters: {{ weight: 0.5 }}\nalign_experts: weights\n",
            a.display(),
            with.display()
        );
        let recipe = MergeRecipe::parse(&yaml, Path::new("test")).expect("a recipe");
        Ok::<_, merge::Error>(MergePlan::resolve(&recipe)?.0)
    };
    let experts = |with: &Path| {
        let report = plan(with).expect("a plan").alignment().expect("found");
        report.expect("asked for").experts
    };
    for matching in experts(&kept) {
        assert_eq!(matching.experts, [2, 3, 1, 0]);
        assert!(matching.cosine > 0.999);
    }
    for matching in experts(&torn) {
        let groups = matching.experts.chunks(2);
        for group in groups {
            assert_eq!(group[0] / 2, group[1] / 2, "{matching:?}");
        }
        assert!(matching.cosine < 0.999);
    }
    let fault = plan(&other).err().expect("refused").to_string();
    assert!(fault.contains("different numbers of groups"), "{fault}");
}

#[test]
fn a_dense_folder_becomes_one_with_mixtures_and_dense_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let said = json!({
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 3, "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": null,
        "intermediate_size": 10,
    });
    let path = model(
        folder.path(),
        "mixtral",
        &as_mixtral(&mixtral_like(1)),
        &said,
    );
    let dense = |is_folder| DenseOfExperts {
        grams: None,
        is_folder,
        dtype: OutputDType::Keep,
    };
    let plan = dense(true).plan(opened(&path)).expect("a plan");
    let own = config(&plan);
    assert_eq!(own["model_type"], "mistral");
    assert_eq!(own["architectures"], json!(["MistralForCausalLM"]));
    assert_eq!(own.get("num_local_experts"), None);
    // Weights of the dense model, with a network in every layer.
    let mut tensors = mixtral_like(1);
    tensors.retain(|key, _| !key.contains(".experts.") && !key.contains("gate.weight"));
    for layer in LAYERS {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            let own = tensors[&format!("{}.{part}.weight", host(0))].clone();
            tensors.insert(format!("{}.{part}.weight", host(layer)), own);
        }
    }
    let path = model(folder.path(), "mistral", &tensors, &own);
    let upcycling = |blocks, is_folder| Upcycling {
        n_experts: 4,
        blocks,
        seed: 1,
        is_folder,
        dtype: OutputDType::Keep,
    };
    let plan = upcycling(None, true).plan(opened(&path)).expect("a plan");
    assert_eq!(config(&plan), said);
    let names: Vec<&str> = plan
        .entries()
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert!(names.contains(&"model.layers.0.block_sparse_moe.gate.weight"));
    assert!(names.contains(&"model.layers.2.block_sparse_moe.experts.3.w2.weight"));
    // As a file it keeps the names that are not of one architecture.
    let plan = upcycling(None, false).plan(opened(&path)).expect("a plan");
    assert!(
        plan.entries()
            .iter()
            .any(|entry| entry.name == "model.layers.0.mlp.gate.weight")
    );
    let fault = upcycling(Some(1..3), true)
        .plan(opened(&path))
        .err()
        .expect("refused");
    assert!(
        fault
            .to_string()
            .contains("`mixtral` has a mixture in every layer, and layers [0] have none"),
        "{fault}"
    );
    // Mixtures of an architecture without a dense one.
    let said = json!({"model_type": "olmoe", "num_hidden_layers": 3, "num_experts": EXPERTS});
    let path = model(folder.path(), "olmoe", &mixtral_like(1), &said);
    let fault = dense(true)
        .plan(opened(&path))
        .err()
        .expect("refused")
        .to_string();
    assert!(fault.contains("`olmoe` without mixtures"), "{fault}");
    dense(false)
        .plan(opened(&path))
        .expect("a file has no configuration");
}
