//! Mixtures with fewer experts: REAP and M-SMoE, from statistics of routing as a gram file has them.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixtures::{Case, Dtype, Raw, first_difference};
use merge::convert::{FewerExperts, Keep, Others, Worth};
use merge::execute::{RunOptions, execute};
use merge::gram::GramStore;
use merge::io::{OpenOptions, WriteOptions};
use merge::mixtures::{Routing, survey};
use merge::progress::Silent;
use merge::recipe::OutputDType;

fixtures::golden_tests! {
    package: "merge", set: "methods",
    worth_of_experts_and_pruning_are_those_of_reap: "reap" => reap,
    groups_and_merged_experts_are_those_of_m_smoe: "m_smoe" => m_smoe,
}

fn raw(dtype: Dtype, shape: &[usize], values: impl IntoIterator<Item = f64>) -> Raw {
    let values = values.into_iter();
    let bytes = match dtype {
        Dtype::F64 => values.flat_map(f64::to_le_bytes).collect(),
        _ => values
            .flat_map(|value| (value as f32).to_le_bytes())
            .collect(),
    };
    Raw {
        dtype,
        shape: shape.to_vec(),
        bytes,
    }
}

fn integers(raw: &Raw) -> Vec<usize> {
    let numbers = raw.integers().into_iter();
    numbers.map(|number| number as usize).collect()
}

fn identity(n: usize) -> impl Iterator<Item = f64> {
    (0..n * n).map(move |at| if at % (n + 1) == 0 { 1.0 } else { 0.0 })
}

/// The sums of products of rows that `vlmerge gram` records of a router: 1, a 1 for each chosen expert, and for each
/// of those its weight times the length of its answer.
fn recorded(case: &Case, statistics: &BTreeMap<String, Raw>) -> (usize, Raw) {
    let renormalizes = case["params"]["renormalize"] == true;
    let top_k = case.count("top_k").expect("choices");
    let n_experts = statistics["router_logits.0"].shape[1];
    let width = 1 + 2 * n_experts;
    let mut sums = vec![0.0; width * width];
    for batch in 0.. {
        let Some(logits) = statistics.get(&format!("router_logits.{batch}")) else {
            break;
        };
        let n_tokens = logits.shape[0];
        let (scores, answers) = (
            logits.values(),
            &statistics[&format!("activations.{batch}")],
        );
        let (size, answers) = (answers.shape[2], answers.values());
        let chosen = integers(&statistics[&format!("selected.{batch}")]);
        for token in 0..n_tokens {
            let scores = &scores[token * n_experts..(token + 1) * n_experts];
            let most = scores.iter().copied().fold(f64::MIN, f64::max);
            let powers: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let total: f64 = powers.iter().sum();
            let chosen = &chosen[token * top_k..(token + 1) * top_k];
            let of_chosen: f64 = chosen.iter().map(|&expert| powers[expert] / total).sum();
            let mut row = vec![0.0; width];
            row[0] = 1.0;
            for &expert in chosen {
                let weight = powers[expert] / total;
                let weight = if renormalizes {
                    weight / of_chosen
                } else {
                    weight
                };
                let start = (expert * n_tokens + token) * size;
                let squares = answers[start..start + size].iter().map(|x| x * x);
                row[1 + expert] = 1.0;
                row[1 + n_experts + expert] = weight * squares.sum::<f64>().sqrt();
            }
            for (at, sum) in sums.iter_mut().enumerate() {
                *sum += row[at / width] * row[at % width];
            }
        }
    }
    (n_experts, raw(Dtype::F64, &[width, width], sums))
}

/// A model of mixtures with these tensors, and its gram file.
struct Model {
    folder: tempfile::TempDir,
    source: Arc<merge::Checkpoint>,
    grams: Arc<GramStore>,
}

impl Model {
    fn new(tensors: &BTreeMap<String, Raw>, grams: &BTreeMap<String, Raw>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let open = |name: &str, tensors: &BTreeMap<String, Raw>| {
            let path = folder.path().join(name);
            fixtures::write(&path, tensors);
            let file = merge::io::open(&path, &OpenOptions::default());
            Arc::new(file.expect("opens"))
        };
        let source = open("model.safetensors", tensors);
        let grams = GramStore::new(open("grams.safetensors", grams)).expect("a gram file");
        Self {
            source,
            grams: Arc::new(grams),
            folder,
        }
    }

    fn fewer(&self, keep: Keep, worth: Worth, others: Others) -> FewerExperts {
        FewerExperts {
            keep,
            worth,
            others,
            grams: Arc::clone(&self.grams),
            is_folder: false,
            dtype: OutputDType::Keep,
        }
    }
}

/// Experts of a layer, of two matrices each, and a router of identity.
fn layer(
    number: usize,
    n_experts: usize,
    part: impl Fn(usize, &str) -> Raw,
) -> BTreeMap<String, Raw> {
    let host = format!("layers.{number}.mlp");
    let mut tensors = BTreeMap::new();
    for expert in 0..n_experts {
        for name in ["wi", "wo"] {
            let key = format!("{host}.experts.{expert}.{name}.weight");
            tensors.insert(key, part(expert, name));
        }
    }
    let router = raw(Dtype::F32, &[n_experts, n_experts], identity(n_experts));
    tensors.insert(format!("{host}.gate.weight"), router);
    tensors
}

fn reap(case: &Case) {
    let [statistics] = case.inputs("statistics").try_into().expect("a file");
    let (n_experts, sums) = recorded(case, &fixtures::tensors(&statistics));
    let expected = case.tensors("expected");
    let of_sums = sums.values();
    let width = 1 + 2 * n_experts;
    let tensors = layer(0, n_experts, |expert, _| {
        raw(Dtype::F32, &[1, 1], [expert as f64])
    });
    let model = Model::new(
        &tensors,
        &BTreeMap::from([("layers.0.mlp.routing".to_owned(), sums)]),
    );
    let mixture = &survey(&model.source).expect("mixtures")["layers.0.mlp"];
    let routing = Routing::read(&model.grams, &model.source, mixture).expect("routing");
    assert_eq!(
        routing.n_tokens as usize,
        integers(&expected["total_tokens"])[0]
    );
    let counts: Vec<usize> = routing.counts.iter().map(|&count| count as usize).collect();
    assert_eq!(counts, integers(&expected["expert_frequency"]));
    // Of a pair of experts the program has the tokens of both, not those that chose both.
    let pairs =
        (0..n_experts * n_experts).map(|at| counts[at / n_experts] + counts[at % n_experts]);
    let pairs: Vec<usize> = pairs.collect();
    assert_eq!(pairs, integers(&expected["pairwise_expert_frequency"]));
    let atol = case.tolerance("", "atol");
    let lengths = of_sums[1 + n_experts..width].to_vec();
    for (found, name, atol) in [
        (&routing.saliency, "reap", atol),
        (&routing.saliency, "reap_f64", 1e-9),
        (&lengths, "weighted_ean_sum", atol),
    ] {
        let differs = first_difference(found, &expected[name].values(), 0.0, atol);
        assert_eq!(differs, None, "{name}");
    }
    let mut n_pruned = 0;
    for (name, gone) in &expected {
        let Some(n) = name.strip_prefix("pruned_") else {
            continue;
        };
        let n: usize = n.parse().expect("a number");
        let fewer = model.fewer(Keep::Each(n_experts - n), Worth::Saliency, Others::Prune);
        let (_, kept) = fewer.plan(Arc::clone(&model.source)).expect("a plan");
        let kept = kept[0].groups.concat();
        let gone: Vec<usize> = integers(gone);
        let found: Vec<usize> = (0..n_experts)
            .filter(|expert| !kept.contains(expert))
            .collect();
        assert_eq!(found, gone, "{name}");
        n_pruned += 1;
    }
    assert!(n_pruned > 0, "pruning");
}

fn m_smoe(case: &Case) {
    let [statistics] = case.inputs("statistics").try_into().expect("a file");
    let statistics = fixtures::tensors(&statistics);
    let expected = case.tensors("expected");
    let (mut tensors, mut grams) = (BTreeMap::new(), BTreeMap::new());
    let merged_layer = case.count("layer_merged").expect("a layer");
    for number in 0.. {
        let Some(distances) = statistics.get(&format!("distance.{number}")) else {
            break;
        };
        let n_experts = distances.shape[0];
        // Other layers are only grouped; their experts may be any.
        tensors.extend(layer(number, n_experts, |expert, part| {
            statistics[&format!("{part}.{expert}")].clone()
        }));
        let host = format!("layers.{number}.mlp");
        let cosines = distances
            .values()
            .into_iter()
            .map(|distance| 1.0 - distance);
        let cosines = raw(Dtype::F64, &[n_experts, n_experts], cosines);
        grams.insert(format!("{host}.gate"), cosines);
        let usage = statistics[&format!("probability.{number}")].values();
        let width = 1 + 2 * n_experts;
        let sums = (0..width * width).map(|at| {
            match ((at / width).min(at % width), (at / width).max(at % width)) {
                (0, 0) => 1.0,
                (0, column) if column <= n_experts => usage[column - 1],
                _ => 0.0,
            }
        });
        grams.insert(
            format!("{host}.routing"),
            raw(Dtype::F64, &[width, width], sums),
        );
    }
    let model = Model::new(&tensors, &grams);
    let total = case.count("total_clusters").expect("clusters");
    let others = Others::Group { align_units: true };
    let fewer = model.fewer(Keep::InAll(total), Worth::Frequency, others);
    let (plan, kept) = fewer.plan(Arc::clone(&model.source)).expect("a plan");
    for (number, of_layer) in kept.iter().enumerate() {
        let labels = integers(&expected[&format!("labels.{number}")]);
        let label = |expert: usize| {
            of_layer
                .groups
                .iter()
                .position(|group| group.contains(&expert))
        };
        let found: Vec<usize> = (0..labels.len()).filter_map(label).collect();
        assert_eq!(found, labels, "layer {number}");
    }
    let target = WriteOptions::new(model.folder.path().join("merged.safetensors"));
    execute(&plan, &target, &RunOptions::default(), &Silent).expect("runs");
    let found = fixtures::tensors(&target.path);
    let mut n_merged = 0;
    for (name, expected) in &expected {
        let Some((part, group)) = name
            .strip_prefix("merged.")
            .and_then(|rest| rest.split_once('.'))
        else {
            continue;
        };
        let key = format!("layers.{merged_layer}.mlp.experts.{group}.{part}.weight");
        let atol = case.tolerance("", "atol");
        // The program divides by a little more than the sum of the weights, which shrinks experts a little.
        let group: usize = group.parse().expect("a number");
        let usage = statistics[&format!("probability.{merged_layer}")].values();
        let of_group = kept[merged_layer].groups[group].iter();
        let total: f64 = of_group.map(|&expert| usage[expert]).sum();
        let shrunk = total / (total + case.number("eps").expect("a number"));
        let found = found[&key].values().into_iter().map(|value| shrunk * value);
        let found: Vec<f64> = found.collect();
        let differs = first_difference(&found, &expected.values(), 0.0, atol);
        assert_eq!(differs, None, "{name}");
        n_merged += 1;
    }
    assert!(n_merged > 0, "merged experts");
}
