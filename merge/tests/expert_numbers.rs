//! Fewer experts by routing statistics, dense networks out of mixtures, and mixtures out of dense networks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fixtures::{Raw, first_difference};
use merge::convert::{DenseOfExperts, FewerExperts, Keep, Others, Upcycling, Worth};
use merge::execute::{RunOptions, in_memory};
use merge::gram::GramStore;
use merge::layouts::{self, EveTask};
use merge::mixtures::{Routing, survey};
use merge::progress::Silent;
use merge::recipe::OutputDType;
use merge::{Checkpoint, MergePlan};
use safetensors::Dtype;

use crate::eve::{opened, synthesis, tiny, values, write};

const HOST: &str = "backbone.encoder.layers.3.mlp_moe.moe";

/// Tokens that went to each of the five experts of the small model, and weight times length of their answers, in sum:
/// expert 4 has few tokens, whose answers are long.
const COUNTS: [f64; 5] = [10.0, 40.0, 5.0, 30.0, 2.0];
const LENGTHS: [f64; 5] = [10.0, 20.0, 20.0, 3.0, 30.0];

fn matrix(width: usize, value: impl Fn(usize, usize) -> f64) -> Raw {
    let values = (0..width * width).map(|at| value(at / width, at % width));
    Raw {
        dtype: Dtype::F64,
        shape: vec![width, width],
        bytes: values.flat_map(f64::to_le_bytes).collect(),
    }
}

fn routing() -> Raw {
    matrix(11, |row, column| match (row.min(column), row.max(column)) {
        (0, 0) => 50.0,
        (0, at) if at <= 5 => COUNTS[at - 1],
        (0, at) => LENGTHS[at - 6],
        _ => 0.0,
    })
}

struct Model {
    folder: tempfile::TempDir,
    source: Arc<Checkpoint>,
}

impl Model {
    fn eve() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        write(
            &synthesis(tiny(EveTask::Retrieval)).plan().expect("a plan"),
            &path,
        );
        Self {
            source: Arc::new(opened(&path)),
            folder,
        }
    }

    fn grams(&self, tensors: BTreeMap<String, Raw>) -> Arc<GramStore> {
        let path = self.folder.path().join("grams.safetensors");
        fixtures::write(&path, &tensors);
        Arc::new(GramStore::new(Arc::new(opened(&path))).expect("a gram file"))
    }

    fn fewer(&self, keep: usize, worth: Worth, others: Others, with_inputs: bool) -> FewerExperts {
        let mut grams = BTreeMap::from([(format!("{HOST}.routing"), routing())]);
        if with_inputs {
            let identity = matrix(6, |row, column| f64::from(u8::from(row == column)));
            grams.insert(format!("{HOST}.gate.wg"), identity);
        }
        FewerExperts {
            keep: Keep::Each(keep),
            worth,
            others,
            grams: self.grams(grams),
            is_folder: false,
            dtype: OutputDType::Keep,
        }
    }
}

fn run(plan: &MergePlan) -> Checkpoint {
    in_memory(plan, &RunOptions::default(), &Silent).expect("made")
}

fn expert(of: usize, part: &str) -> String {
    format!("{HOST}.experts.experts.{of}.{part}")
}

const PARTS: [&str; 4] = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];

#[test]
fn routing_is_read_from_a_gram_file() {
    let model = Model::eve();
    let fewer = model.fewer(2, Worth::Saliency, Others::Prune, true);
    let mixture = &survey(&model.source).expect("mixtures")[HOST];
    let routing = Routing::read(&fewer.grams, &model.source, mixture).expect("routing");
    assert_eq!(routing.n_tokens, 50.0);
    assert_eq!(routing.counts, COUNTS);
    assert_eq!(routing.saliency, [1.0, 0.5, 4.0, 0.1, 15.0]);
    // With inputs of identity the scores' cosines are those of the router's rows.
    let rows = values(&model.source, &format!("{HOST}.gate.wg.weight"));
    let row = |at: usize| &rows[6 * at..6 * at + 6];
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let expected = dot(row(1), row(3)) / (dot(row(1), row(1)) * dot(row(3), row(3))).sqrt();
    let alike = routing.alike.expect("inputs are there");
    assert!((alike[(1, 3)] - expected).abs() < 1e-12);
}

#[test]
fn pruning_keeps_the_experts_of_most_worth_with_their_rows() {
    let model = Model::eve();
    for (worth, kept) in [(Worth::Saliency, [2, 4]), (Worth::Frequency, [1, 3])] {
        let (plan, report) = model
            .fewer(2, worth, Others::Prune, false)
            .plan(Arc::clone(&model.source))
            .expect("a plan");
        let pruned = run(&plan);
        assert_eq!(report.len(), 1);
        assert_eq!(report[0].groups, kept.map(|expert| vec![expert]));
        for (to, from) in kept.into_iter().enumerate() {
            for part in PARTS {
                let found = pruned.read_all(&expert(to, part)).expect("there");
                assert_eq!(
                    found,
                    model.source.read_all(&expert(from, part)).expect("there"),
                    "{part}"
                );
            }
        }
        let router = format!("{HOST}.gate.wg.weight");
        let rows = values(&model.source, &router);
        let expected: Vec<f64> = kept
            .iter()
            .flat_map(|&row| rows[6 * row..6 * row + 6].to_vec())
            .collect();
        assert_eq!(values(&pruned, &router), expected);
        // It is a model of its family, of which nothing else has changed.
        let layout = layouts::detect(&pruned).expect("a layout");
        assert_eq!(layout.name(), "eve/retrieval");
        let n_before = model.source.tensors().count();
        assert_eq!(pruned.tensors().count(), n_before - 3 * PARTS.len());
        for (key, _) in pruned.tensors().filter(|(key, _)| !key.starts_with(HOST)) {
            assert_eq!(
                pruned.read_all(key).expect("there"),
                model.source.read_all(key).expect("there")
            );
        }
    }
}

#[test]
fn groups_are_means_by_frequency_of_experts_with_like_scores() {
    let model = Model::eve();
    let router = format!("{HOST}.gate.wg.weight");
    let path = model.folder.path().join("model.safetensors");
    let mut tensors = fixtures::tensors(&path);
    // Expert 0 has scores like those of 3, experts 2 and 4 like those of 1.
    let rows: [[f32; 6]; 5] = [
        [0.1, 1.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 0.1, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [2.0, 0.0, 0.5, 0.0, 0.0, 0.0],
    ];
    let raw = tensors.get_mut(&router).expect("a router");
    raw.bytes = rows
        .iter()
        .flatten()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    fixtures::write(&path, &tensors);
    let source = Arc::new(opened(&path));
    let others = Others::Group { align_units: false };
    let fewer = model.fewer(2, Worth::Frequency, others, true);
    let (plan, report) = fewer.plan(Arc::clone(&source)).expect("a plan");
    assert_eq!(report[0].groups, [vec![1, 2, 4], vec![3, 0]]);
    let grouped = run(&plan);
    for part in PARTS {
        for (to, group) in report[0].groups.iter().enumerate() {
            let total: f64 = group.iter().map(|&of| COUNTS[of]).sum();
            let mut expected = vec![0.0; values(&source, &expert(0, part)).len()];
            for &of in group {
                for (sum, value) in expected.iter_mut().zip(values(&source, &expert(of, part))) {
                    *sum += COUNTS[of] / total * value;
                }
            }
            let found = values(&grouped, &expert(to, part));
            assert_eq!(
                first_difference(&found, &expected, 1e-6, 1e-9),
                None,
                "{part}"
            );
        }
    }
    let expected: Vec<f64> = [rows[1], rows[3]]
        .iter()
        .flatten()
        .map(|&value| f64::from(value))
        .collect();
    assert_eq!(values(&grouped, &router), expected);
    let fault = model
        .fewer(2, Worth::Frequency, others, false)
        .plan(source)
        .err()
        .expect("refused");
    assert!(fault.to_string().contains("--shared"), "{fault}");
}

#[test]
fn experts_that_differ_in_the_order_of_units_alone_merge_to_one_of_them() {
    let model = Model::eve();
    let path = model.folder.path().join("model.safetensors");
    let mut tensors = fixtures::tensors(&path);
    // Every expert is expert 0, each with its units in an order of its own.
    for of in 1..5 {
        let order: Vec<usize> = (0..10).map(|unit| (unit * 3 + of) % 10).collect();
        let rows = |raw: &Raw| {
            let size = raw.bytes.len() / 10;
            let rows = order
                .iter()
                .map(|&row| raw.bytes[row * size..(row + 1) * size].to_vec());
            rows.flatten().collect::<Vec<u8>>()
        };
        for part in ["fc1.weight", "fc1.bias"] {
            let bytes = rows(&tensors[&expert(0, part)]);
            tensors.get_mut(&expert(of, part)).expect("there").bytes = bytes;
        }
        let own = &tensors[&expert(0, "fc2.weight")].bytes;
        let columns = |row: &[u8]| -> Vec<u8> {
            order
                .iter()
                .flat_map(|&column| row[4 * column..4 * column + 4].to_vec())
                .collect()
        };
        let bytes: Vec<u8> = own.chunks(40).flat_map(columns).collect();
        tensors
            .get_mut(&expert(of, "fc2.weight"))
            .expect("there")
            .bytes = bytes;
        let bytes = tensors[&expert(0, "fc2.bias")].bytes.clone();
        tensors
            .get_mut(&expert(of, "fc2.bias"))
            .expect("there")
            .bytes = bytes;
    }
    fixtures::write(&path, &tensors);
    let source = Arc::new(opened(&path));
    for align_units in [true, false] {
        let fewer = model.fewer(1, Worth::Frequency, Others::Group { align_units }, true);
        let (plan, report) = fewer.plan(Arc::clone(&source)).expect("a plan");
        assert_eq!(report[0].groups[0][0], 1);
        let one = run(&plan);
        let is_same = PARTS.iter().all(|part| {
            let (found, expected) = (
                values(&one, &expert(0, part)),
                // Units stand as in the expert of the lowest number.
                values(&source, &expert(0, part)),
            );
            first_difference(&found, &expected, 1e-6, 1e-7).is_none()
        });
        assert_eq!(is_same, align_units);
    }
}

#[test]
fn routing_of_a_family_that_is_not_run_here_may_come_from_another_program() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = written(&folder.path().join("dense.safetensors"), &dense());
    let upcycling = Upcycling {
        n_experts: 5,
        blocks: None,
        seed: 1,
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    let plan = upcycling.plan(source).expect("a plan");
    let path = folder.path().join("mixture.safetensors");
    write(&plan, &path);
    // A number for each expert beside the router's rows, as DeepSeek has it.
    let mut tensors = fixtures::tensors(&path);
    let bias = Raw {
        dtype: Dtype::F32,
        shape: vec![5],
        bytes: [10.0f32, 11.0, 12.0, 13.0, 14.0]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    };
    tensors.insert(
        "model.layers.0.mlp.gate.e_score_correction_bias".to_owned(),
        bias,
    );
    fixtures::write(&path, &tensors);
    let source = Arc::new(opened(&path));
    let hosts = [0, 1].map(|layer| format!("model.layers.{layer}.mlp"));
    let mut grams = BTreeMap::new();
    for host in &hosts {
        grams.insert(format!("{host}.routing"), routing());
        let inputs = matrix(3, |row, column| f64::from(u8::from(row == column)));
        grams.insert(format!("{host}.gate"), inputs);
    }
    let path = folder.path().join("grams.safetensors");
    let grams = written(&path, &grams);
    let fewer = FewerExperts {
        keep: Keep::Each(2),
        worth: Worth::Frequency,
        others: Others::Group { align_units: true },
        grams: Arc::new(GramStore::new(grams).expect("a gram file")),
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    let (plan, report) = fewer.plan(source).expect("a plan");
    assert_eq!(
        report.iter().map(|of| of.groups.len()).collect::<Vec<_>>(),
        [2, 2]
    );
    let grouped = run(&plan);
    // The experts that most tokens go to are 1 and 3.
    assert_eq!(
        values(&grouped, "model.layers.0.mlp.gate.e_score_correction_bias"),
        [11.0, 13.0]
    );
    // Copies of one network are that network, whatever their shares.
    for (layer, host) in hosts.iter().enumerate() {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            let expected = dense()[&format!("model.layers.{layer}.mlp.{part}.weight")].values();
            let found = values(&grouped, &format!("{host}.experts.1.{part}.weight"));
            assert_eq!(first_difference(&found, &expected, 1e-6, 1e-9), None);
        }
    }
}

#[test]
fn numbers_of_experts_that_no_mixture_can_have_are_refused() {
    let model = Model::eve();
    for keep in [0, 6] {
        let fewer = model.fewer(keep, Worth::Saliency, Others::Prune, false);
        let fault = fewer
            .plan(Arc::clone(&model.source))
            .err()
            .expect("refused")
            .to_string();
        assert!(
            fault.contains(HOST) && fault.contains("5 experts"),
            "{fault}"
        );
    }
}

#[test]
fn a_gram_file_that_says_nothing_of_use_is_refused_with_what_is_there_instead() {
    let model = Model::eve();
    let name = format!("{HOST}.routing");
    let counts = |first: f64| {
        let of = routing();
        let mut values = of.values();
        (values[1], values[11]) = (first, first);
        matrix(11, |row, column| values[11 * row + column])
    };
    let no_tokens = matrix(11, |_, _| 0.0);
    for (name, matrix, reason) in [
        (
            "other",
            routing(),
            format!("there is no `{HOST}.routing`, 11 wide"),
        ),
        (
            &name,
            matrix(9, |_, _| 1.0),
            "is 9 wide, and 5 experts make it 11".to_owned(),
        ),
        (&name, no_tokens, "no token went to any expert".to_owned()),
        (
            &name,
            counts(51.0),
            "51 of 50 tokens went to expert 0".to_owned(),
        ),
        (
            &name,
            counts(-1.0),
            "-1 of 50 tokens went to expert 0".to_owned(),
        ),
    ] {
        let mut fewer = model.fewer(2, Worth::Saliency, Others::Prune, false);
        fewer.grams = model.grams(BTreeMap::from([(name.to_owned(), matrix)]));
        let fault = fewer
            .plan(Arc::clone(&model.source))
            .err()
            .expect("refused");
        let said = fault.to_string();
        assert!(
            said.contains("does not say how tokens go to the experts") && said.contains(&reason),
            "{said}"
        );
        assert!(
            fault
                .hint()
                .is_some_and(|hint| hint.contains("docs/formats.md"))
        );
    }
}

#[test]
fn a_mixture_of_eve_becomes_one_network() {
    let model = Model::eve();
    let weighted = model.fewer(1, Worth::Frequency, Others::Prune, false).grams;
    for (grams, shares) in [
        (None, [0.2; 5]),
        (
            Some(weighted),
            COUNTS.map(|count| count / COUNTS.iter().sum::<f64>()),
        ),
    ] {
        let dense = DenseOfExperts {
            grams,
            is_folder: false,
            dtype: OutputDType::Keep,
        };
        let found = run(&dense.plan(Arc::clone(&model.source)).expect("a plan"));
        for part in PARTS {
            let mut expected = vec![0.0; values(&model.source, &expert(0, part)).len()];
            for (of, share) in shares.iter().enumerate() {
                for (sum, value) in expected
                    .iter_mut()
                    .zip(values(&model.source, &expert(of, part)))
                {
                    *sum += share * value;
                }
            }
            let key = format!("backbone.encoder.layers.3.mlp_imag.{part}");
            assert_eq!(
                first_difference(&values(&found, &key), &expected, 1e-6, 1e-9),
                None,
                "{part}"
            );
        }
        for part in ["weight", "bias"] {
            let key = |norm: &str| format!("backbone.encoder.layers.3.{norm}.{part}");
            assert_eq!(
                values(&found, &key("norm2_imag")),
                values(&model.source, &key("norm2_vl"))
            );
        }
        assert!(
            found
                .tensors()
                .all(|(key, _)| !key.contains("mlp_moe") && !key.contains("norm2_vl"))
        );
        let layout = layouts::detect(&found).expect("a layout");
        for (key, _) in found.tensors() {
            layout.role(key).expect("a known key");
        }
    }
}

/// A dense model as Qwen and Llama spell it.
fn dense() -> BTreeMap<String, Raw> {
    let mut tensors = BTreeMap::new();
    for layer in 0..2_u8 {
        for (at, (name, shape)) in [
            ("gate_proj", [5, 3]),
            ("up_proj", [5, 3]),
            ("down_proj", [3, 5]),
        ]
        .into_iter()
        .enumerate()
        {
            let values =
                (0..15_u8).map(|i| f32::from(i) - 7.5 + 10.0 * f32::from(layer) + at as f32);
            let raw = Raw {
                dtype: Dtype::F32,
                shape: shape.to_vec(),
                bytes: values.flat_map(f32::to_le_bytes).collect(),
            };
            tensors.insert(format!("model.layers.{layer}.mlp.{name}.weight"), raw);
        }
    }
    tensors
}

fn written(path: &Path, tensors: &BTreeMap<String, Raw>) -> Arc<Checkpoint> {
    fixtures::write(path, tensors);
    Arc::new(opened(path))
}

#[test]
fn a_dense_network_becomes_a_mixture_of_copies_and_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = written(&folder.path().join("dense.safetensors"), &dense());
    let upcycling = |seed: u64| Upcycling {
        n_experts: 3,
        blocks: None,
        seed,
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    let mixture = run(&upcycling(1).plan(Arc::clone(&source)).expect("a plan"));
    let found = survey(&mixture).expect("mixtures");
    assert_eq!(found.len(), 2);
    for (host, of) in &found {
        assert_eq!(of.n_experts, 3);
        let router = values(&mixture, &format!("{host}.gate.weight"));
        assert_eq!(router.len(), 3 * 3);
        let deviation = (router.iter().map(|value| value * value).sum::<f64>() / 9.0).sqrt();
        assert!((0.005..0.05).contains(&deviation), "{deviation}");
        let other = run(&upcycling(2).plan(Arc::clone(&source)).expect("a plan"));
        assert_ne!(values(&other, &format!("{host}.gate.weight")), router);
    }
    let back = DenseOfExperts {
        grams: None,
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    let back = run(&back.plan(Arc::new(mixture)).expect("a plan"));
    for (key, raw) in dense() {
        assert_eq!(back.read_all(&key).expect("there"), raw.bytes, "{key}");
    }
    assert_eq!(back.tensors().count(), dense().len());
    let fault = upcycling(1).plan(Arc::new(back));
    fault.expect("dense again");
    let bare = written(
        &folder.path().join("bare.safetensors"),
        &BTreeMap::from([("a".to_owned(), routing())]),
    );
    let fault = upcycling(1).plan(bare).err().expect("refused").to_string();
    assert!(fault.contains("gate_proj"), "{fault}");
}

#[test]
fn a_network_of_eve_that_serves_all_tokens_becomes_a_mixture_and_back() {
    let model = Model::eve();
    let dense = DenseOfExperts {
        grams: None,
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    let path = model.folder.path().join("dense.safetensors");
    let plan = dense.plan(Arc::clone(&model.source)).expect("a plan");
    write(&plan, &path);
    let source = Arc::new(opened(&path));
    let upcycling = |blocks: Option<std::ops::Range<usize>>| Upcycling {
        n_experts: 4,
        blocks,
        seed: 7,
        is_folder: false,
        dtype: OutputDType::Keep,
    };
    // Blocks with a network for each modality stay as they are.
    let mixture = run(&upcycling(None).plan(Arc::clone(&source)).expect("a plan"));
    let layout = layouts::detect(&mixture).expect("a layout");
    assert_eq!(layout.name(), "eve/retrieval");
    let found = survey(&mixture).expect("mixtures");
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), [HOST]);
    assert_eq!(found[HOST].n_experts, 4);
    for (key, _) in mixture.tensors() {
        layout.role(key).expect("a known key");
    }
    let back = run(&dense.plan(Arc::new(mixture)).expect("a plan"));
    let names = |of: &Checkpoint| {
        of.tensors()
            .map(|(key, _)| key.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&back), names(&source));
    for key in names(&back) {
        let bytes = |of: &Checkpoint| of.read_all(&key).expect("it reads");
        assert_eq!(bytes(&back), bytes(&source), "{key}");
    }
    let fault = upcycling(Some(0..3)).plan(source).err().expect("refused");
    assert!(fault.to_string().contains("no block asked for"), "{fault}");
}
