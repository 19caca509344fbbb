//! ZeroVL's recall and zero-shot accuracy, case by case of `fixtures/zerovl/manifest.json`.

use std::collections::BTreeMap;

use evaluate::Sample;
use evaluate::metrics::retrieval::{Captions, Ties, sample, standings};
use evaluate::metrics::zero_shot::{self, rows_by_id};
use evaluate::tasks::Similarities;
use fixtures::{Case, Raw};
use serde_json::Value;

fixtures::golden_tests! {
    package: "evaluate", set: "zerovl",
    recall_over_unique_images_is_the_published_one: "retrieval" => retrieval,
    zero_shot_accuracy_is_the_published_one: "zero_shot" => zero_shot_accuracy,
}

/// Rows of a matrix in f32, and its width.
fn rows(raw: &Raw, of: &[usize]) -> (Vec<f32>, usize) {
    let width = raw.shape[1];
    let values = raw.values();
    let rows = of.iter().flat_map(|&row| &values[row * width..][..width]);
    (rows.map(|&value| value as f32).collect(), width)
}

fn checked(case: &Case, sample: &Sample, names: &[(&str, &str)]) {
    let all = case.json("expected");
    let expected = all[case.text("key")].as_object().expect("numbers");
    let (atol, rtol) = (case.tolerance("", "atol"), case.tolerance("", "rtol"));
    for (name, published) in names {
        let (_, value) = (expected.iter())
            .find(|(key, _): &(&String, &Value)| key.ends_with(published))
            .unwrap_or_else(|| panic!("no {published}"));
        let expected = value.as_f64().expect("a number");
        let found = crate::fixture::value(sample, name);
        let found = match *name {
            "rsum" => found,
            _ => 100.0 * found,
        };
        let far = (found - expected).abs();
        assert!(
            far <= atol + rtol * expected.abs(),
            "{name}: {found}, not {expected}"
        );
    }
}

fn retrieval(case: &Case) {
    let tensors: BTreeMap<String, Raw> = case.tensors_of("input", case.text("prefix"));
    let ids = tensors["image_id"].integers();
    // `image_id > -1`: the rows that the program used.
    let rule = case.param("rows_used").expect("a rule");
    let least = rule
        .split('>')
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let least: i64 = least.expect("a bound").parse().expect("a number");
    let used: Vec<usize> = (0..ids.len()).filter(|&row| ids[row] > least).collect();
    let used_ids: Vec<i64> = used.iter().map(|&row| ids[row]).collect();
    let by_image = rows_by_id(&used_ids);
    let image_ids: Vec<i64> = by_image.iter().map(|(id, _)| *id).collect();
    let last = by_image
        .iter()
        .map(|(_, rows)| used[*rows.last().expect("a row")]);
    let (images, width) = rows(&tensors["image"], &last.collect::<Vec<_>>());
    let (texts, _) = rows(&tensors["text"], &used);
    let captions = Captions::new(&image_ids, &used_ids).expect("captions");
    let scores = Similarities::new(images, texts, width);
    let found = standings(&scores, &captions).expect("ranks");
    let names = [
        ("tr_r1", "I2T-R@1"),
        ("tr_r5", "I2T-R@5"),
        ("tr_r10", "I2T-R@10"),
        ("ir_r1", "T2I-R@1"),
        ("ir_r5", "T2I-R@5"),
        ("ir_r10", "T2I-R@10"),
        ("rsum", "RSUM"),
    ];
    checked(case, &sample(&found, &captions, Ties::default()), &names);
}

fn zero_shot_accuracy(case: &Case) {
    let tensors = case.tensors_of("input", case.text("prefix"));
    let labels = tensors["class"].integers();
    let by_class = rows_by_id(&labels);
    let classes: Vec<i64> = by_class.iter().map(|(class, _)| *class).collect();
    let last = by_class
        .iter()
        .map(|(_, rows)| *rows.last().expect("a row"));
    let (texts, width) = rows(&tensors["text"], &last.collect::<Vec<_>>());
    let (images, _) = rows(&tensors["image"], &(0..labels.len()).collect::<Vec<_>>());
    let scores = Similarities::new(texts, images, width);
    let found = zero_shot::sample(&scores, &classes, &labels, Ties::default());
    let names = [("top1", "I2T-R@1"), ("top5", "I2T-R@5")];
    checked(case, &found.expect("ranks"), &names);
}
