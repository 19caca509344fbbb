//! How far apart experts and checkpoints are.

use merge::distance::{
    Comparison, Distance, DistanceOptions, Grain, Keep, Metric, Operands, PairSet,
    checkpoint_pairs, expert_pairs, measure,
};
use merge::layouts::{BlockId, Description, Dimensions, Part};
use merge::progress::Silent;
use merge::{Checkpoint, Error, Expert, Layout, ParamKind, Result, Role, Slot};
use proptest::prelude::*;

use crate::stored::Stored;

/// `block.module.param` is shared, `block.module.expert.param` has experts `v`, `l`, `vl`.
struct Toy {
    description: Description,
}

impl Layout for Toy {
    fn description(&self) -> &Description {
        &self.description
    }

    fn part(&self, _: &Slot) -> Part {
        Part::Other
    }

    fn gram_key(&self, _: &Slot, _: Option<Expert>) -> Option<String> {
        None
    }

    fn role(&self, key: &str) -> Result<Role> {
        let segments: Vec<&str> = key.split('.').collect();
        let slot = |module: &str, param: &str| Slot {
            key: format!("{}.{module}.{param}", segments[0]),
            block: segments[0].parse().ok().map(BlockId::only),
            module: module.to_owned(),
            kind: ParamKind::LinearWeight,
        };
        Ok(match segments[1..] {
            [module, expert, param] => Role::Expert {
                expert: match expert {
                    "v" => Expert::Vision,
                    "l" => Expert::Language,
                    _ => Expert::VisionLanguage,
                },
                slot: slot(module, param),
            },
            [module, param] => Role::Shared(slot(module, param)),
            _ => Role::Derived,
        })
    }
}

const TOY: Toy = Toy {
    description: Description {
        name: "toy",
        evidence: Vec::new(),
        dimensions: Dimensions {
            stacks: Vec::new(),
            fusion_start: None,
            patch_size: None,
            image_size: None,
            text_len: None,
            text_table_len: None,
            vocabulary: None,
            n_token_types: None,
            joint_width: None,
        },
    },
};

const VISION_LANGUAGE: Comparison = Comparison::Experts(Expert::Vision, Expert::Language);

fn keep(share: f64) -> Metric {
    Metric::Tssd(Keep::new(share).expect("a share"))
}

fn run(set: &PairSet<'_>, metrics: &[Metric], grains: &[Grain]) -> Vec<Distance> {
    let options = DistanceOptions {
        metrics: metrics.to_vec(),
        grains: grains.to_vec(),
    };
    measure(&set.pairs, &options, &Silent).expect("finite")
}

/// The pooled values of `v` against `l`.
fn between(v: &[f32], l: &[f32], seed: Option<&[f32]>, metrics: &[Metric]) -> Vec<Option<f64>> {
    let checkpoint = Stored::new("a")
        .with("0.fc.v.w", v)
        .with("0.fc.l.w", l)
        .open();
    let seed = seed.map(|seed| Stored::new("seed").with("0.fc.w", seed).open());
    let set = expert_pairs(&checkpoint, &TOY, seed.as_ref()).expect("one pair");
    let distances = run(&set, metrics, &[Grain::All]);
    distances[0]
        .values
        .iter()
        .map(|(_, value)| *value)
        .collect()
}

#[test]
fn every_metric_by_hand() {
    // a = (3, -1, 0, 2), b = (1, 1, 0, -2)
    // a - b = (2, -2, 0, 4); a.b = -2; |a|^2 = 14, |b|^2 = 6; sign terms 4/4, 0/2, -, 0/4
    // half kept: a = (3, 0, 0, 2) from 2 on, b = (1, 1, 0, -2) since the ones tie: 4/4, 1/1, -, 0/4
    let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd, keep(0.5)];
    let found = between(
        &[3.0, -1.0, 0.0, 2.0],
        &[1.0, 1.0, 0.0, -2.0],
        None,
        &metrics,
    );
    assert_eq!(
        found,
        [
            Some(24f64.sqrt()),
            Some(1.0 + 2.0 / 84f64.sqrt()),
            Some(1.0 - 1.0 / 3.0),
            Some(1.0 - 2.0 / 3.0),
        ]
    );
}

#[test]
fn a_seed_makes_modality_vectors_of_the_weights() {
    // Weights (5, 4) and (6, 1) from (4, 2) are (1, 2) and (2, -1): orthogonal.
    // Sign terms 3/3 and 1/3.
    let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd];
    let found = between(&[5.0, 4.0], &[6.0, 1.0], Some(&[4.0, 2.0]), &metrics);
    assert_eq!(
        found,
        [Some(10f64.sqrt()), Some(1.0), Some(1.0 - (4.0 / 3.0) / 2.0)]
    );
}

#[test]
fn the_angle_to_an_unmoved_expert_is_undefined() {
    let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd];
    let found = between(&[4.0, 2.0], &[4.0, 2.0], Some(&[4.0, 2.0]), &metrics);
    assert_eq!(found, [Some(0.0), None, Some(0.0)]);
}

#[test]
fn outputs_say_whether_a_seed_was_used() {
    let a = Stored::new("a")
        .with("0.fc.v.w", &[1.0])
        .with("0.fc.l.w", &[2.0])
        .open();
    let seed = Stored::new("seed").with("0.fc.w", &[1.0]).open();
    let operands = |seed| expert_pairs(&a, &TOY, seed).expect("a pair").operands;
    assert_eq!(operands(None), Operands::RawWeights);
    assert_eq!(operands(Some(&seed)), Operands::ModalityVectors);
}

fn two_blocks() -> Checkpoint {
    Stored::new("a")
        .with("0.fc.v.w", &[1.0, 2.0])
        .with("0.fc.l.w", &[1.0, 0.0])
        .with("0.norm.v.w", &[2.0])
        .with("0.norm.l.w", &[-1.0])
        .with("1.fc.v.w", &[3.0, 0.0])
        .with("1.fc.l.w", &[0.0, 0.0])
        .with("1.fc.vl.w", &[3.0, 4.0])
        .open()
}

#[test]
fn pooled_values_are_those_of_the_concatenated_tensors() {
    let checkpoint = two_blocks();
    let set = expert_pairs(&checkpoint, &TOY, None).expect("pairs");
    let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd, keep(0.4)];
    let pooled = &run(&set, &metrics, &[Grain::All])[0];
    let values: Vec<_> = pooled.values.iter().map(|(_, value)| *value).collect();
    let whole = between(
        &[1.0, 2.0, 2.0, 3.0, 0.0],
        &[1.0, 0.0, -1.0, 0.0, 0.0],
        None,
        &metrics,
    );
    assert_eq!(pooled.comparison, VISION_LANGUAGE);
    assert_eq!((pooled.n_elements, values), (5, whole));
}

#[test]
fn every_pair_of_experts_is_compared_where_it_exists() {
    let checkpoint = two_blocks();
    let set = expert_pairs(&checkpoint, &TOY, None).expect("pairs");
    let rows = |grain| -> Vec<(String, Option<usize>, Option<String>, u64)> {
        run(&set, &[Metric::L2], &[grain])
            .into_iter()
            .map(|d| (d.comparison.to_string(), d.block, d.module, d.n_elements))
            .collect()
    };
    let row = |comparison: &str, block, module: Option<&str>, n| {
        (comparison.to_owned(), block, module.map(str::to_owned), n)
    };
    let (v_l, v_vl, l_vl) = (
        "vision vs language",
        "vision vs vision_language",
        "language vs vision_language",
    );
    assert_eq!(
        rows(Grain::Block),
        [
            row(v_l, Some(0), None, 3),
            row(v_l, Some(1), None, 2),
            row(v_vl, Some(1), None, 2),
            row(l_vl, Some(1), None, 2),
        ]
    );
    assert_eq!(
        rows(Grain::Module)[..2],
        [
            row(v_l, None, Some("fc"), 4),
            row(v_l, None, Some("norm"), 1)
        ]
    );
    assert_eq!(
        rows(Grain::Cell)[..3],
        [
            row(v_l, Some(0), Some("fc"), 2),
            row(v_l, Some(0), Some("norm"), 1),
            row(v_l, Some(1), Some("fc"), 2)
        ]
    );
    assert_eq!(rows(Grain::Tensor).len(), 5);
}

#[test]
fn two_checkpoints_are_compared_by_name_and_the_rest_is_listed() {
    let a = Stored::new("a")
        .with("0.fc.w", &[1.0, 1.0])
        .with("0.old.w", &[1.0])
        .with("0.fc.v.w", &[5.0])
        .with("index", &[1.0])
        .open();
    let b = Stored::new("b")
        .with("0.fc.w", &[1.0, 3.0])
        .with("0.fc.v.w", &[2.0])
        .with("0.new.w", &[1.0])
        .open();
    let set = checkpoint_pairs(&a, &b, &TOY, None).expect("pairs");
    let skipped: Vec<_> = set
        .skipped
        .iter()
        .map(|s| (s.key.as_str(), s.why))
        .collect();
    assert_eq!(
        skipped,
        [
            ("0.old.w", "not in the second checkpoint"),
            ("index", "rebuilt by loaders"),
            ("0.new.w", "not in the first checkpoint"),
        ]
    );
    let distances = run(&set, &[Metric::L2], &[Grain::All]);
    assert_eq!(distances[0].comparison, Comparison::Checkpoints(None));
    assert_eq!(distances[0].values, [(Metric::L2, Some(2.0))]);
    assert_eq!(distances[1].comparison.to_string(), "vision");
    assert_eq!(distances[1].values, [(Metric::L2, Some(3.0))]);
}

#[test]
fn what_cannot_be_compared_is_an_error() {
    let shared = Stored::new("a").with("0.fc.w", &[1.0]).open();
    assert!(matches!(
        expert_pairs(&shared, &TOY, None).err(),
        Some(Error::NothingToCompare { .. })
    ));
    let uneven = Stored::new("a")
        .with("0.fc.v.w", &[1.0])
        .with("0.fc.l.w", &[1.0, 2.0])
        .open();
    assert!(matches!(
        expert_pairs(&uneven, &TOY, None).err(),
        Some(Error::CompareShapes { .. })
    ));
    assert!(matches!(
        expert_pairs(&two_blocks(), &TOY, Some(&shared)).err(),
        Some(Error::CompareShapes { .. })
    ));
    let broken = Stored::new("a")
        .with("0.fc.v.w", &[1.0])
        .with("0.fc.l.w", &[f32::NAN])
        .open();
    let set = expert_pairs(&broken, &TOY, None).expect("a pair");
    let options = DistanceOptions {
        metrics: vec![Metric::L2],
        grains: vec![Grain::All],
    };
    assert!(matches!(
        measure(&set.pairs, &options, &Silent),
        Err(Error::NonFiniteInput { element: 0, .. })
    ));
    for share in [0.0, -0.1, 1.1, f64::NAN] {
        assert!(matches!(Keep::new(share), Err(Error::BadParameter { .. })));
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    // Two tensors of several runs each, of uneven length.
    let wave = |n: usize, step: f32| -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 1e-2).collect()
    };
    let a = Stored::new("a")
        .with("0.fc.v.w", &wave(1_300_001, 0.37))
        .with("0.fc.l.w", &wave(1_300_001, 0.41))
        .with("1.fc.v.w", &wave(70_001, 0.11))
        .with("1.fc.l.w", &wave(70_001, 0.13))
        .open();
    let metrics = [
        Metric::L2,
        Metric::Cosine,
        Metric::Ssd,
        keep(0.2),
        keep(0.7),
    ];
    let with = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build();
        pool.expect("a pool").install(|| {
            let set = expert_pairs(&a, &TOY, None).expect("pairs");
            run(&set, &metrics, &[Grain::Tensor, Grain::All])
        })
    };
    let serial = with(1);
    assert_eq!(serial, with(3));
    assert_eq!(serial, with(8));
}

/// TSSD by sorting everything.
fn tssd_by_sorting(a: &[f32], b: &[f32], share: f64) -> f64 {
    let truncate = |values: &[f32]| -> Vec<f64> {
        let n_kept = ((share * values.len() as f64).round() as usize).clamp(1, values.len());
        let mut sizes: Vec<f64> = values.iter().map(|v| f64::from(v.abs())).collect();
        sizes.sort_by(|x, y| y.total_cmp(x));
        let kept = |v: f64| if v.abs() >= sizes[n_kept - 1] { v } else { 0.0 };
        values.iter().map(|&v| kept(f64::from(v))).collect()
    };
    let terms: Vec<f64> = truncate(a)
        .iter()
        .zip(truncate(b))
        .filter(|(x, y)| x.abs() + y.abs() > 0.0)
        .map(|(x, y)| (x + y).abs() / (x.abs() + y.abs()))
        .collect();
    if terms.is_empty() {
        return 0.0;
    }
    1.0 - terms.iter().sum::<f64>() / terms.len() as f64
}

/// Small vectors with many ties and zeros.
fn vectors() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
    let element = || prop_oneof![(-4i8..=4).prop_map(f32::from), -1.0f32..1.0];
    proptest::collection::vec((element(), element()), 1..60).prop_map(|v| v.into_iter().unzip())
}

fn close(a: Option<f64>, b: Option<f64>) -> bool {
    match (a, b) {
        // 60 terms of size 1 in f64.
        (Some(a), Some(b)) => (a - b).abs() <= 1e-12 * (1.0 + b.abs()),
        (a, b) => a == b,
    }
}

proptest! {
    #[test]
    fn tssd_equals_tssd_by_sorting((a, b) in vectors(), share in 0.01f64..=1.0) {
        let found = between(&a, &b, None, &[keep(share)]);
        prop_assert!(close(found[0], Some(tssd_by_sorting(&a, &b, share))));
    }

    #[test]
    fn tssd_of_everything_is_ssd((a, b) in vectors()) {
        let found = between(&a, &b, None, &[keep(1.0), Metric::Ssd]);
        prop_assert!(close(found[0], found[1]));
    }

    #[test]
    fn swapping_the_sides_changes_nothing((a, b) in vectors()) {
        let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd, keep(0.3)];
        let there = between(&a, &b, None, &metrics);
        let back = between(&b, &a, None, &metrics);
        prop_assert!(there.iter().zip(&back).all(|(x, y)| close(*x, *y)));
    }

    #[test]
    fn scaling_both_sides_scales_l2_alone((a, b) in vectors()) {
        let metrics = [Metric::L2, Metric::Cosine, Metric::Ssd, keep(0.3)];
        let once = between(&a, &b, None, &metrics);
        // A power of two scales without rounding.
        let scale = |v: &[f32]| v.iter().map(|x| 4.0 * x).collect::<Vec<_>>();
        let scaled = between(&scale(&a), &scale(&b), None, &metrics);
        prop_assert!(close(scaled[0], once[0].map(|l2| 4.0 * l2)));
        prop_assert!(once[1..].iter().zip(&scaled[1..]).all(|(x, y)| close(*x, *y)));
    }

    #[test]
    fn l2_does_not_depend_on_the_seed((a, b) in vectors(), shift in -3.0f32..3.0) {
        let seed: Vec<f32> = a.iter().map(|x| x + shift).collect();
        let raw = between(&a, &b, None, &[Metric::L2]);
        let vectors = between(&a, &b, Some(&seed), &[Metric::L2]);
        prop_assert!(close(raw[0], vectors[0]));
    }
}
