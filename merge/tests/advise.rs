//! Measurements of task vectors with known numbers, and the advice that follows.

use std::collections::BTreeMap;

use merge::advise::{Facts, METHODS, Options, RULES, Ranked, measure, ranked};
use merge::io::OpenOptions;
use merge::progress::Silent;
use merge::random::Draws;
use merge::{Checkpoint, Error, layouts};
use safetensors::Dtype;
use tempfile::TempDir;

use fixtures::Raw;

const ROWS: usize = 24;
const COLUMNS: usize = 16;
const KEYS: [&str; 2] = ["layers.0.fc.weight", "layers.1.fc.weight"];

fn random(name: &str, deviation: f32) -> Vec<f32> {
    let mut values = vec![0.0; ROWS * COLUMNS];
    Draws::new(5, name).add_normal(deviation, 0, &mut values);
    values
}

/// A model whose two matrices are the base's with `delta` added.
fn model(folder: &TempDir, name: &str, delta: impl Fn(&str) -> Vec<f32>) -> Checkpoint {
    let tensors = KEYS.map(|key| {
        let values = random(key, 0.5).into_iter().zip(delta(key));
        let bytes = values.flat_map(|(base, delta)| (base + delta).to_le_bytes());
        let raw = Raw {
            dtype: Dtype::F32,
            shape: vec![ROWS, COLUMNS],
            bytes: bytes.collect(),
        };
        (key.to_owned(), raw)
    });
    let path = folder.path().join(format!("{name}.safetensors"));
    fixtures::write(&path, &BTreeMap::from(tensors));
    merge::io::open(&path, &OpenOptions::default()).expect("it opens")
}

/// The measurements of two models with these task vectors.
fn of_two(a: impl Fn(&str) -> Vec<f32>, b: impl Fn(&str) -> Vec<f32>, rank: usize) -> Facts {
    let folder = TempDir::new().expect("a folder");
    let base = model(&folder, "base", |_| vec![0.0; ROWS * COLUMNS]);
    let models = [model(&folder, "a", a), model(&folder, "b", b)];
    let named = [("a".to_owned(), &models[0]), ("b".to_owned(), &models[1])];
    let layout = layouts::detect(&base).expect("a layout");
    let facts = measure(&base, &named, layout.as_ref(), &Options { rank }, &Silent);
    facts.expect("measured")
}

fn rules(ranked: &[Ranked]) -> Vec<&str> {
    let reasons = ranked.iter().flat_map(|of| &of.reasons);
    let mut rules: Vec<&str> = reasons.map(|reason| reason.rule).collect();
    rules.sort_unstable();
    rules.dedup();
    rules
}

fn place(ranked: &[Ranked], method: &str) -> usize {
    ranked
        .iter()
        .position(|of| of.method == method)
        .expect("ranked")
}

/// An outer product of a row of `rows` and one of `columns`.
fn outer(rows: impl Fn(usize) -> f32, columns: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..ROWS * COLUMNS)
        .map(|at| rows(at / COLUMNS) * columns(at % COLUMNS))
        .collect()
}

#[test]
fn equal_models_are_told_and_the_mean_comes_first() {
    let delta = |key: &str| random(&format!("delta of {key}"), 0.01);
    let facts = of_two(delta, delta, 4);
    assert_eq!(facts.pairs[0].cosine, Some(1.0));
    assert_eq!(facts.pairs[0].opposite, Some(0.0));
    assert_eq!(facts.all.cancelled, Some(0.0));
    assert!((facts.pairs[0].overlap.expect("overlap") - 1.0).abs() < 1e-6);
    assert_eq!(facts.matrices.len(), 2);
    assert!(facts.matrices.iter().all(|of| of.cosines.len() == 4));
    let ranked = ranked(&facts);
    assert_eq!(rules(&ranked), ["equal"]);
    assert_eq!(ranked[0].method, "linear");
    assert!(place(&ranked, "wudi") < place(&ranked, "tsv_m"));
}

#[test]
fn orthogonal_task_vectors_of_low_rank_have_nothing_in_common() {
    // The first rows of one, the last of the other; the same columns: orthogonal as a whole and on the left.
    let half = |is_first: bool| {
        move |_: &str| {
            let row = move |row: usize| match (row < ROWS / 2) == is_first {
                true => 0.02 * (1.0 + row as f32),
                false => 0.0,
            };
            outer(row, |column| 0.01 * (1.0 + column as f32))
        }
    };
    let facts = of_two(half(true), half(false), 3);
    assert!(facts.pairs[0].cosine.expect("cosine").abs() < 1e-12);
    // Nothing is changed by both.
    assert_eq!(
        (facts.pairs[0].opposite, facts.all.shared),
        (None, Some(0.0))
    );
    assert_eq!(facts.all.cancelled, Some(0.0));
    assert!(facts.pairs[0].overlap.expect("overlap") < 1e-9);
    assert_eq!(facts.models[0].changed, 0.5);
    // f32 weights round a matrix of rank one to full rank, with very little in the rest.
    assert!(
        facts
            .models
            .iter()
            .all(|model| model.in_leading.expect("some") > 0.999)
    );
    // Length by hand, of both matrices: Σ over rows and columns of the squares.
    let rows: f64 = (0..ROWS / 2)
        .map(|row| (0.02 * (1.0 + row as f64)).powi(2))
        .sum();
    let columns: f64 = (0..COLUMNS)
        .map(|column| (0.01 * (1.0 + column as f64)).powi(2))
        .sum();
    let expected = (2.0 * rows * columns).sqrt();
    assert!((facts.models[0].norm / expected - 1.0).abs() < 1e-4);
    let ranked = ranked(&facts);
    let found = rules(&ranked);
    assert!(
        ["apart", "low rank", "orthogonal"]
            .iter()
            .all(|rule| found.contains(rule)),
        "{found:?}"
    );
    assert_eq!(ranked[0].method, "tsv_m");
    assert!(place(&ranked, "task_arithmetic") < place(&ranked, "iso_c"));
}

#[test]
fn signs_that_oppose_each_other_speak_for_an_elected_sign() {
    let delta = |key: &str| random(&format!("delta of {key}"), 0.01);
    // 8 of 10 elements are turned around.
    let turned = |key: &str| {
        let values = random(&format!("delta of {key}"), 0.01)
            .into_iter()
            .enumerate();
        values
            .map(|(at, value)| if at % 10 < 8 { -value } else { value })
            .collect()
    };
    let facts = of_two(delta, turned, 4);
    let opposite = facts.pairs[0].opposite.expect("signs");
    assert!((opposite - 0.8).abs() < 0.01, "{opposite}");
    let cancelled = facts.all.cancelled.expect("cancelled");
    assert!((cancelled - 0.8).abs() < 0.05, "{cancelled}");
    assert!(facts.pairs[0].cosine.expect("cosine") < -0.4);
    let ranked = ranked(&facts);
    assert!(rules(&ranked).contains(&"opposed"));
    let score = |method: &str| ranked[place(&ranked, method)].score;
    let published = |method: &str| ranked[place(&ranked, method)].published;
    assert_eq!(score("ties"), published("ties") + 4.0);
    assert!(score("linear") < published("linear"));
}

#[test]
fn many_unrelated_task_vectors_cancel_by_chance_alone() {
    let folder = TempDir::new().expect("a folder");
    let base = model(&folder, "base", |_| vec![0.0; ROWS * COLUMNS]);
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let models = names.map(|name| {
        let delta = |key: &str| random(&format!("{name} of {key}"), 0.01);
        (name.to_owned(), model(&folder, name, delta))
    });
    let named = models.each_ref().map(|(name, model)| (name.clone(), model));
    let layout = layouts::detect(&base).expect("a layout");
    let options = Options { rank: 4 };
    let facts = measure(&base, &named, layout.as_ref(), &options, &Silent).expect("measured");
    let cancelled = facts.all.cancelled.expect("cancelled");
    let by_chance = 1.0 - 1.0 / 8.0_f64.sqrt();
    assert!((cancelled - by_chance).abs() < 0.03, "{cancelled}");
    assert!(!rules(&ranked(&facts)).contains(&"opposed"));
}

#[test]
fn a_shared_space_a_long_vector_and_a_distant_model_are_told() {
    // The same left vectors with other right vectors, one three times as long and more; both far from the base.
    let own = |times: f32, shift: usize| {
        move |_: &str| {
            outer(
                |row| 1.0 + row as f32,
                move |column| {
                    if (column + shift).is_multiple_of(4) {
                        times
                    } else {
                        0.1 * times
                    }
                },
            )
        }
    };
    let facts = of_two(own(0.2, 0), own(0.8, 1), 1);
    assert!(facts.pairs[0].overlap.expect("overlap") > 0.999);
    assert_eq!(facts.blocks.len(), 2);
    assert!(facts.models[1].relative_distance > 0.5);
    let ranked = ranked(&facts);
    let found = rules(&ranked);
    assert!(
        ["common space", "far", "uneven"]
            .iter()
            .all(|rule| found.contains(rule)),
        "{found:?}"
    );
    for of in &ranked {
        let points: f64 = of.reasons.iter().map(|reason| reason.points).sum();
        assert_eq!(of.score, of.published + points);
        assert!(
            of.reasons
                .iter()
                .all(|reason| !reason.why.is_empty() && !reason.source.is_empty())
        );
    }
}

#[test]
fn equal_to_the_base_and_other_shapes_are_no_crash() {
    let folder = TempDir::new().expect("a folder");
    let zero = |_: &str| vec![0.0; ROWS * COLUMNS];
    let facts = of_two(zero, zero, 4);
    assert_eq!(
        (facts.pairs[0].cosine, facts.pairs[0].overlap),
        (None, None)
    );
    assert_eq!(ranked(&facts).len(), METHODS.len());
    let base = model(&folder, "base", zero);
    let path = folder.path().join("other.safetensors");
    let raw = Raw {
        dtype: Dtype::F32,
        shape: vec![2, 2],
        bytes: vec![0; 16],
    };
    fixtures::write(&path, &BTreeMap::from([(KEYS[0].to_owned(), raw)]));
    let other = merge::io::open(&path, &OpenOptions::default()).expect("it opens");
    let layout = layouts::detect(&base).expect("a layout");
    let named = [("a".to_owned(), &base), ("b".to_owned(), &other)];
    let said = measure(
        &base,
        &named,
        layout.as_ref(),
        &Options { rank: 1 },
        &Silent,
    );
    assert!(matches!(said, Err(Error::CompareShapes { .. })));
}

#[test]
fn the_document_lists_every_rule_and_method_with_its_source() {
    let document = include_str!("../../docs/advise.md").replace('\n', " ");
    for rule in RULES {
        for text in [rule.name, rule.when, rule.source] {
            assert!(document.contains(text), "docs/advise.md lacks: {text}");
        }
        for effect in rule.effects {
            assert!(
                document.contains(effect.why),
                "docs/advise.md lacks: {}",
                effect.why
            );
            assert!(document.contains(&format!("{:+}", effect.points)));
        }
    }
    for of in METHODS {
        assert!(document.contains(&of.accuracy.to_string()) && document.contains(of.source));
    }
}
