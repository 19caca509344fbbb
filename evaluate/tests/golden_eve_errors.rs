//! Inputs at which EVE's published program fails: refused here by name, or done right.

use std::sync::Arc;

use evaluate::metrics::reranking::Shortlist;
use fixtures::{Case, Dtype, Raw, integers};
use merge::convert::EveStart;
use merge::io::OpenOptions;
use merge::layouts::EveTask;

use crate::golden::models::values;
use crate::golden_eve::{Way, open, run};

fixtures::golden_tests! {
    package: "evaluate", set: "eve",
    golden_eve_what_the_published_program_fails_at_is_refused_by_name: "expect_error" => fault,
}

fn fault(case: &Case) {
    match case["operation"].as_str() {
        Some("load") => load(case),
        Some("rerank") => rerank(case),
        _ => short_text(case),
    }
}

fn size(case: &Case, name: &str) -> usize {
    case.set().config()[name].as_u64().expect("a size") as usize
}

/// A file with tensors of other shapes.
fn load(case: &Case) {
    let mut tensors = case.set().tensors(case.text("input"));
    let changes = case["change"]["replace"].as_object().expect("tensors");
    let mut said = Vec::new();
    for (key, shape) in changes {
        let shape: Vec<usize> = integers(shape).into_iter().map(|n| n as usize).collect();
        let before = tensors.insert(
            key.clone(),
            Raw {
                dtype: Dtype::F32,
                bytes: vec![0; 4 * shape.iter().product::<usize>()],
                shape: shape.clone(),
            },
        );
        let before = before.expect("a tensor of the file");
        said.push((key, shape[0], before.shape[0]));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    fixtures::write(&path, &tensors);
    let source = merge::io::open(&path, &OpenOptions::default()).expect("it opens");
    let task = case.param("task").expect("a task");
    let task = EveTask::ALL.iter().find(|(_, name)| *name == task);
    let start = EveStart {
        image_size: Some(size(case, "image_size")),
        text_positions: Some(size(case, "texts_max_tokens")),
        vocabulary: Some(size(case, "vocab_size")),
        ..EveStart::of(task.expect("a known task").0)
    };
    let fault = start
        .plan(Arc::new(source))
        .err()
        .expect("refused")
        .to_string();
    for (key, found, expected) in said {
        assert!(fault.contains(key.as_str()), "{}: {fault}", case.id());
        assert!(fault.contains(&found.to_string()), "{}: {fault}", case.id());
        // A table of positions of another size is resized, if only it is a square.
        let is_square = key.contains("pos_embed_vision");
        let is_said =
            fault.contains(&expected.to_string()) || is_square && fault.contains("square");
        assert!(is_said, "{}: {fault}", case.id());
    }
}

/// More candidates than there are.
fn rerank(case: &Case) {
    let count = |name: &str| case.count(name).expect("a count");
    let (images, texts, k) = (count("images"), count("texts"), count("k_test"));
    let similarities = ndarray::Array2::<f32>::zeros((images, texts));
    let fault = Shortlist::new(k, &similarities.view()).expect_err("refused");
    let fault = fault.to_string();
    for n in [k, images, texts] {
        assert!(fault.contains(&n.to_string()), "{fault}");
    }
}

/// A text shorter than the table of relative positions: it takes the positions that it has, so it is read like the same
/// text with padding.
fn short_text(case: &Case) {
    let weights = case.tensors("weights");
    let mut given = case.tensors("inputs");
    let opened = open(case.set(), &weights, Way::default());
    let short = run(&opened, &given, &["text"]).tensors["text.norm"].clone();
    let whole = size(case, "texts_max_tokens");
    for name in ["ids", "atts"] {
        let raw = given.get_mut(name).expect("a text");
        pad(raw, whole);
    }
    let long = run(&opened, &given, &["text"]).tensors["text.norm"].clone();
    let n = short.dim(1).expect("tokens");
    assert!(n < whole, "a short text");
    let first = long.narrow(1, 0, n).and_then(|first| first.contiguous());
    let differs = fixtures::first_difference(
        &values(&short),
        &values(&first.expect("the first tokens")),
        1e-5,
        1e-5,
    );
    assert_eq!(differs, None);
}

/// Fills rows up to `len` numbers with zeros.
fn pad(raw: &mut Raw, len: usize) {
    let row = raw.bytes.len() / raw.shape[0];
    let one = row / raw.shape[1];
    let rows = raw.bytes.chunks_exact(row);
    raw.bytes = rows
        .flat_map(|row| {
            let mut row = row.to_vec();
            row.resize(one * len, 0);
            row
        })
        .collect();
    raw.shape[1] = len;
}
