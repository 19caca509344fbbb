//! Mixtures of experts: their spellings, experts and units in another order, and refusals.

use std::sync::Arc;

use fixtures::{Raw, Set};
use merge::Checkpoint;
use merge::convert::{Conversion, Spelling};
use merge::execute::{RunOptions, in_memory};
use merge::mixtures::{MixtureSpelling, survey};
use merge::progress::Silent;
use merge::random::Draws;
use safetensors::Dtype;

use crate::eve::{converted, opened};

use crate::mixture_models::{
    EXPERTS, Folder, LAYERS, ORDER, Tensors, UNITS, WIDTH, assert_same, deepseek, host,
    mixtral_like, raw, rows_in, shuffled, spellings, transposed, units_shuffled,
};

const BOTH: &str = "merge_method: linear\nmodels: [<a>, <b>]\nparameters: { weight: 0.5 }\n";

#[test]
fn a_shuffled_copy_merges_back_to_the_original_in_every_spelling() {
    let (model, other) = (mixtral_like(1), shuffled(&mixtral_like(1)));
    let all = spellings(&model).into_iter().zip(spellings(&other));
    let all = all.map(|((spelling, one), (_, other))| (spelling.to_string(), one, other));
    let deepseek = ("deepseek".to_owned(), deepseek(1), shuffled(&deepseek(1)));
    for (name, one, other) in all.chain([deepseek]) {
        let folder = Folder::new();
        folder.write("a", &one);
        folder.write("b", &other);
        let fault = folder.fault(BOTH);
        assert!(
            fault.contains("no common order") && fault.contains("align_experts: weights"),
            "{name}: {fault}"
        );
        let found = folder
            .merged(&format!("{BOTH}align_experts: weights\n"))
            .expect("merged");
        assert_same(&found, &one);
        // The other one is the first: it keeps its order.
        let turned = BOTH.replace("[<a>, <b>]", "[<b>, <a>]");
        let found = folder
            .merged(&format!("{turned}align_experts: weights\n"))
            .expect("merged");
        assert_same(&found, &other);
        // The recipe can ask for a merge by number.
        let found = folder
            .merged(&format!("{BOTH}align_experts: none\n"))
            .expect("merged");
        let differs = one
            .iter()
            .any(|(key, raw)| found.read_all(key).expect("it reads") != raw.bytes);
        assert!(differs, "{name}");
    }
}

#[test]
fn the_matching_is_reported_and_kept_in_the_file() {
    let folder = Folder::new();
    folder.write("a", &deepseek(1));
    folder.write("b", &shuffled(&deepseek(1)));
    let recipe = format!("{BOTH}align_experts: weights\nalign_units: true\n");
    let plan = folder.plan(&recipe).expect("a plan");
    let report = plan.alignment().expect("found").expect("asked for");
    assert_eq!(report.experts.len(), LAYERS.len());
    for (matching, layer) in report.experts.iter().zip(LAYERS) {
        assert_eq!(matching.model, "b.safetensors");
        assert_eq!(matching.mixture, host(layer));
        // Expert `to` of the copy is expert `ORDER[to]` of the model.
        let back = ORDER.map(|from| {
            ORDER
                .iter()
                .position(|&at| ORDER[from] == at)
                .expect("in it")
        });
        assert_eq!(back, ORDER);
        for (place, expert) in matching.experts.iter().enumerate() {
            assert_eq!(ORDER[*expert], place);
        }
        assert_eq!(matching.n_moved(), EXPERTS);
        assert!(
            matching.cosine > 0.999 && matching.cosine_in_place < 0.9,
            "{matching:?}"
        );
    }
    // Two networks that all tokens share, one dense, and the experts.
    assert_eq!(report.units.len(), 3 + 2 * EXPERTS);
    assert!(
        report
            .units
            .iter()
            .all(|network| network.n_moved == 0 && network.n_units == UNITS)
    );
    let found = in_memory(&plan, &RunOptions::default(), &Silent).expect("merged");
    let note = &found.info().metadata["vlmerge.alignment"];
    let note: serde_json::Value = serde_json::from_str(note).expect("JSON");
    assert_eq!(note, serde_json::to_value(&report).expect("JSON"));
}

#[test]
fn units_in_another_order_merge_back_to_the_original_in_every_spelling() {
    let model = mixtral_like(1);
    let (units, both) = (units_shuffled(&model), units_shuffled(&shuffled(&model)));
    for (index, (spelling, one)) in spellings(&model).into_iter().enumerate() {
        let folder = Folder::new();
        folder.write("a", &one);
        folder.write("b", &spellings(&units)[index].1);
        folder.write("both", &spellings(&both)[index].1);
        let found = folder
            .merged(&format!("{BOTH}align_units: true\n"))
            .expect("merged");
        assert_same(&found, &one);
        let both = BOTH.replace("<b>", "<both>");
        let found = folder.merged(&format!(
            "{both}align_experts: weights\nalign_units: true\n"
        ));
        assert_same(
            &found.unwrap_or_else(|fault| panic!("{spelling}: {fault}")),
            &one,
        );
    }
}

/// Layers of dense networks by their names, `(into, out of)`, with whether they have biases, and whether they are
/// `(in, out)`.
const DENSE: [(&[&str], &str, bool, bool); 5] = [
    (&["mlp.fc1"], "mlp.fc2", true, false),
    (&["intermediate.dense"], "output.dense", true, false),
    (&["mlp.c_fc"], "mlp.c_proj", true, true),
    (&["mlp.c_fc"], "mlp.c_proj", true, false),
    (
        &["DenseReluDense.wi_0", "DenseReluDense.wi_1"],
        "DenseReluDense.wo",
        false,
        false,
    ),
];

#[test]
fn units_of_dense_networks_are_matched_biases_included() {
    for (into, out_of, has_bias, is_transposed) in DENSE {
        let mut model = Tensors::new();
        let mut order: Vec<usize> = (0..UNITS).collect();
        Draws::new(2, out_of).sequence().shuffle(&mut order);
        let mut other = Tensors::new();
        let turn = |tensor: Raw| {
            if is_transposed {
                transposed(&tensor)
            } else {
                tensor
            }
        };
        for layer in into {
            let weight = raw(4, layer, &[UNITS, WIDTH]);
            model.insert(format!("h.0.{layer}.weight"), turn(weight.clone()));
            other.insert(
                format!("h.0.{layer}.weight"),
                turn(rows_in(&weight, &order)),
            );
            if has_bias {
                let bias = raw(5, layer, &[UNITS]);
                model.insert(format!("h.0.{layer}.bias"), bias.clone());
                other.insert(format!("h.0.{layer}.bias"), rows_in(&bias, &order));
            }
        }
        let weight = raw(6, out_of, &[WIDTH, UNITS]);
        model.insert(format!("h.0.{out_of}.weight"), turn(weight.clone()));
        let moved = transposed(&rows_in(&transposed(&weight), &order));
        other.insert(format!("h.0.{out_of}.weight"), turn(moved));
        let folder = Folder::new();
        folder.write("a", &model);
        folder.write("b", &other);
        let found = folder
            .merged(&format!("{BOTH}align_units: true\n"))
            .expect("merged");
        assert_same(&found, &model);
    }
}

#[test]
fn experts_of_gpt_oss_move_with_their_biases_and_units_that_stand_in_turn() {
    let mut model = Tensors::new();
    for (name, shape) in [
        ("experts.gate_up_proj", &[EXPERTS, WIDTH, 2 * UNITS][..]),
        ("experts.gate_up_proj_bias", &[EXPERTS, 2 * UNITS]),
        ("experts.down_proj", &[EXPERTS, UNITS, WIDTH]),
        ("experts.down_proj_bias", &[EXPERTS, WIDTH]),
        ("router.weight", &[EXPERTS, WIDTH]),
        ("router.bias", &[EXPERTS]),
    ] {
        let key = format!("model.layers.0.mlp.{name}");
        model.insert(key.clone(), raw(3, &key, shape));
    }
    let mut other: Tensors = (model.iter())
        .map(|(key, tensor)| (key.clone(), rows_in(tensor, &ORDER)))
        .collect();
    let folder = Folder::new();
    folder.write("a", &model);
    folder.write("b", &other);
    let found = folder
        .merged(&format!("{BOTH}align_experts: weights\n"))
        .expect("merged");
    assert_same(&found, &model);
    // Units of expert 1 in the opposite order: pairs of gate and value stay together.
    let pairs: Vec<usize> = (0..UNITS)
        .rev()
        .flat_map(|unit| [2 * unit, 2 * unit + 1])
        .collect();
    let units: Vec<usize> = (0..UNITS).rev().collect();
    let mut change = |name: &str, rows_of_expert: usize, order: &dyn Fn(&Raw) -> Raw| {
        let tensor = other
            .get_mut(&format!("model.layers.0.mlp.{name}"))
            .expect("there");
        let size = tensor.bytes.len() / EXPERTS;
        let columns = tensor.shape.iter().skip(1).product::<usize>() / rows_of_expert;
        let own = Raw {
            dtype: Dtype::F32,
            shape: vec![rows_of_expert, columns],
            bytes: tensor.bytes[size..2 * size].to_vec(),
        };
        tensor.bytes[size..2 * size].copy_from_slice(&order(&own).bytes);
    };
    change("experts.gate_up_proj", WIDTH, &|own| {
        transposed(&rows_in(&transposed(own), &pairs))
    });
    change("experts.gate_up_proj_bias", 2 * UNITS, &|own| {
        rows_in(own, &pairs)
    });
    change("experts.down_proj", UNITS, &|own| rows_in(own, &units));
    folder.write("b", &other);
    let found = folder
        .merged(&format!(
            "{BOTH}align_experts: weights\nalign_units: true\n"
        ))
        .expect("merged");
    assert_same(&found, &model);
}

#[test]
fn the_published_permutation_of_eve_merges_back() {
    let set = Set::open("eve");
    for case in set.cases("permute_experts") {
        let model = case.tensors("input");
        let mut other = model.clone();
        for (key, tensor) in case.tensors("expected") {
            other.insert(key, tensor);
        }
        let folder = Folder::new();
        folder.write("a", &model);
        folder.write("b", &other);
        let fault = folder.fault(BOTH);
        assert!(fault.contains("no common order"), "{fault}");
        let found = folder
            .merged(&format!("{BOTH}align_experts: weights\n"))
            .expect("merged");
        assert_same(&found, &model);
    }
}

#[test]
fn models_in_two_spellings_merge_as_those_in_one() {
    let (one, other) = (mixtral_like(1), mixtral_like(2));
    let (own, theirs) = (spellings(&one), spellings(&other));
    for (index, (spelling, one)) in own.iter().enumerate() {
        let folder = Folder::new();
        folder.write("a", one);
        folder.write("same", &theirs[index].1);
        let expected = folder
            .merged(&BOTH.replace("<b>", "<same>"))
            .expect("merged");
        for (other, model) in &theirs {
            folder.write("b", model);
            let found = folder
                .merged(BOTH)
                .unwrap_or_else(|fault| panic!("{spelling} and {other}: {fault}"));
            let expected: Tensors = (expected.tensors())
                .map(|(name, info)| {
                    let raw = Raw {
                        dtype: Dtype::F32,
                        shape: info.shape.clone(),
                        bytes: expected.read_all(name).expect("it reads"),
                    };
                    (name.to_owned(), raw)
                })
                .collect();
            assert_same(&found, &expected);
        }
    }
}

#[test]
fn every_spelling_converts_to_every_other_bit_for_bit() {
    let folder = Folder::new();
    let all = spellings(&mixtral_like(1));
    for (from, model) in &all {
        folder.write("a", model);
        let path = folder.0.path().join("a.safetensors");
        let source = Arc::new(opened(&path));
        let found = survey(&source).expect("mixtures");
        assert_eq!(found.len(), LAYERS.len());
        for mixture in found.values() {
            assert_eq!(
                MixtureSpelling::of(mixture),
                Some(*from),
                "{}",
                mixture.host
            );
            assert_eq!((mixture.n_experts, mixture.router.len()), (EXPERTS, 1));
        }
        for (to, expected) in &all {
            let conversion = Conversion {
                spelling: Some(Spelling::Mixture(*to)),
                ..Conversion::default()
            };
            let plan = converted(&source, &conversion);
            let found = in_memory(&plan, &RunOptions::default(), &Silent).expect("converted");
            assert_same(&found, expected);
        }
    }
}

#[test]
fn what_a_spelling_has_no_name_for_is_refused_by_name() {
    let folder = Folder::new();
    folder.write("a", &deepseek(1));
    let source = Arc::new(opened(&folder.0.path().join("a.safetensors")));
    let layout = merge::layouts::detect(&source).expect("a layout");
    let said = |to: MixtureSpelling, source: &Arc<Checkpoint>| {
        let conversion = Conversion {
            spelling: Some(Spelling::Mixture(to)),
            ..Conversion::default()
        };
        let plan = conversion.plan(Arc::clone(source), layout.as_ref());
        plan.err().expect("refused").to_string()
    };
    let fault = said(MixtureSpelling::Mixtral, &source);
    assert!(
        fault.contains("e_score_correction_bias") && fault.contains("mixtral"),
        "{fault}"
    );
    let mut dense = mixtral_like(1);
    dense.retain(|key, _| !key.contains("experts") && !key.contains(".gate."));
    folder.write("dense", &dense);
    let source = Arc::new(opened(&folder.0.path().join("dense.safetensors")));
    let fault = said(MixtureSpelling::FusedExperts, &source);
    assert!(fault.contains("no mixture"), "{fault}");
}

#[test]
fn models_that_were_trained_apart_are_merged_by_number() {
    let folder = Folder::new();
    for seed in 0..20 {
        folder.write("a", &deepseek(seed));
        folder.write("b", &deepseek(100 + seed));
        folder.merged(BOTH).expect("merged");
    }
}

#[test]
fn settings_without_a_meaning_are_refused() {
    let folder = Folder::new();
    let mut dense = mixtral_like(1);
    dense.retain(|key, _| !key.contains("experts") && !key.contains(".gate."));
    folder.write("a", &deepseek(1));
    folder.write("dense", &dense);
    let pair = "merge_method: linear\nmodels: [<dense>, <dense>]\nparameters: { weight: 0.5 }\n";
    for setting in ["align_experts: weights", "align_experts: none"] {
        let fault = folder.fault(&format!("{pair}{setting}\n"));
        assert!(
            fault.contains("`align_experts`") && fault.contains("no mixture of experts"),
            "{fault}"
        );
    }
    let mut bare = dense.clone();
    bare.retain(|key, _| key.contains("embed"));
    folder.write("bare", &bare);
    let fault = folder.fault(&format!(
        "{}align_units: true\n",
        pair.replace("dense", "bare")
    ));
    assert!(
        fault.contains("`align_units`") && fault.contains("no feed-forward network"),
        "{fault}"
    );
    let sliced = "merge_method: linear\nslices:\n- sources: [{ model: <a>, layer_range: [0, 2] }, { model: <a>, \
                  layer_range: [0, 2] }]\nparameters: { weight: 0.5 }\nlayers: model.layers\nalign_experts: weights\n";
    let fault = folder.fault(sliced);
    assert!(fault.contains("slices"), "{fault}");
}

#[test]
fn mixtures_that_do_not_fit_are_refused_by_name() {
    let folder = Folder::new();
    let model = deepseek(1);
    folder.write("a", &model);
    let mut fewer = model.clone();
    fewer.retain(|key, _| !key.contains(".1.mlp.experts.3."));
    let rows = fewer
        .get_mut("model.layers.1.mlp.gate.weight")
        .expect("there");
    *rows = rows_in(rows, &[0, 1, 2]);
    rows.shape[0] = 3;
    let bias = fewer
        .get_mut("model.layers.1.mlp.gate.e_score_correction_bias")
        .expect("there");
    *bias = rows_in(bias, &[0, 1, 2]);
    bias.shape[0] = 3;
    folder.write("b", &fewer);
    let fault = folder.fault(BOTH);
    assert!(
        fault.contains("`model.layers.1.mlp` has 3 experts") && fault.contains("and 4 in"),
        "{fault}"
    );
    let mut alone = model.clone();
    alone.retain(|key, _| !key.contains(".2.mlp.experts."));
    folder.write("b", &alone);
    let fault = folder.fault(BOTH);
    assert!(
        fault.contains("`model.layers.2.mlp.gate") && fault.contains("without its experts"),
        "{fault}"
    );
    let mut gap = model.clone();
    gap.retain(|key, _| !key.contains(".2.mlp.experts.1."));
    folder.write("b", &gap);
    let fault = folder.fault(BOTH);
    assert!(
        fault.contains("has 4 experts, and `model.layers.2.mlp.experts.1."),
        "{fault}"
    );
    let mut misfit = model.clone();
    misfit.retain(|key, _| !key.contains(".2.mlp.experts.3."));
    folder.write("b", &misfit);
    let fault = folder.fault(BOTH);
    assert!(
        fault.contains("router `model.layers.2.mlp.gate.weight` has rows for 4"),
        "{fault}"
    );
    // Some models have a router with more rows than experts: that of all is merged, and nothing is moved.
    folder.write("a", &misfit);
    let found = folder.merged(BOTH).expect("merged by name");
    assert_same(&found, &misfit);
    let fault = folder.fault(&format!("{BOTH}align_experts: weights\n"));
    assert!(fault.contains("has rows for 4"), "{fault}");
    let mut no_router = model;
    no_router.retain(|key, _| !key.contains(".gate."));
    folder.write("a", &no_router);
    folder.write("b", &no_router);
    let fault = folder.fault(&format!("{BOTH}align_experts: weights\n"));
    assert!(fault.contains("has no router"), "{fault}");
}

/// The gram matrix of the inputs of an expert's last layer, for experts of a kind of their own.
fn gram(kind: usize) -> Raw {
    let draws = raw(70 + kind as u64, "inputs", &[30, UNITS]).values();
    let element = |row: usize, column: usize| -> f64 {
        let at = |of: usize| draws.iter().skip(of).step_by(UNITS);
        at(row).zip(at(column)).map(|(a, b)| a * b).sum()
    };
    let values = (0..UNITS * UNITS).map(|at| element(at / UNITS, at % UNITS));
    Raw {
        dtype: Dtype::F64,
        shape: vec![UNITS, UNITS],
        bytes: values.flat_map(f64::to_le_bytes).collect(),
    }
}

#[test]
fn experts_are_matched_by_what_they_give_whatever_their_units() {
    let folder = Folder::new();
    let model = deepseek(1);
    let other = units_shuffled(&shuffled(&model));
    folder.write("a", &model);
    folder.write("b", &other);
    let mut own = Tensors::new();
    for layer in LAYERS {
        for expert in 0..EXPERTS {
            own.insert(
                format!("{}.experts.{expert}.down_proj", host(layer)),
                gram(expert),
            );
        }
    }
    // Inputs of the other model's last layers are those of the experts that they are, in their order of units.
    let mut theirs = Tensors::new();
    for layer in LAYERS {
        for (to, from) in ORDER.into_iter().enumerate() {
            let prefix = format!("{}.experts.{to}.", host(layer));
            let mut order: Vec<usize> = (0..UNITS).collect();
            Draws::new(9, &prefix).sequence().shuffle(&mut order);
            let values = gram(from).values();
            let moved = order
                .iter()
                .flat_map(|&row| order.iter().map(move |&column| row * UNITS + column));
            let moved: Vec<f64> = moved.map(|at| values[at]).collect();
            let raw = Raw {
                bytes: moved.into_iter().flat_map(f64::to_le_bytes).collect(),
                ..gram(from)
            };
            theirs.insert(format!("{prefix}down_proj"), raw);
        }
    }
    folder.write("own", &own);
    folder.write("theirs", &theirs);
    let recipe = "merge_method: linear\nmodels: [{ model: <a>, outputs: <own> }, { model: <b>, outputs: <theirs> }]\n\
                  parameters: { weight: 0.5 }\nalign_experts: outputs\nalign_units: true\n";
    let found = folder.merged(recipe).expect("merged");
    assert_same(&found, &model);
    let written = folder.plan(recipe).expect("a plan").recipe().to_owned();
    assert!(written.contains("outputs: own.safetensors"), "{written}");
    // Each model needs a file for `align_experts: outputs`, and a file without that setting is refused.
    let fault = folder.fault(&recipe.replace(", outputs: <theirs>", ""));
    assert!(
        fault.contains("`align_experts: outputs` needs `outputs`"),
        "{fault}"
    );
    let fault = folder.fault(&recipe.replace("align_experts: outputs", "align_experts: weights"));
    assert!(
        fault.contains("`outputs` of a model is read for"),
        "{fault}"
    );
    folder.write("theirs", &Tensors::from([("x".to_owned(), gram(0))]));
    let fault = folder.fault(recipe);
    assert!(
        fault.contains("lacks the gram matrices of the last layers"),
        "{fault}"
    );
}

#[test]
fn a_router_tells_of_shuffled_experts_whose_units_are_shuffled_too() {
    let folder = Folder::new();
    let mut model = mixtral_like(1);
    for layer in LAYERS {
        let key = format!("{}.gate.weight", host(layer));
        model.insert(key.clone(), raw(1, &key, &[EXPERTS, 200]));
    }
    let units = units_shuffled(&model);
    folder.write("a", &model);
    folder.write("b", &units);
    folder.merged(BOTH).expect("experts are in order");
    folder.write("b", &shuffled(&units));
    let fault = folder.fault(BOTH);
    assert!(fault.contains("no common order"), "{fault}");
}
