//! Weights under the names of other libraries (`tests/name_maps.py` holds them against transformers' classes).

use std::sync::Arc;

use merge::convert::{ClipTarget, Conversion, Spelling};
use merge::execute::{RunOptions, in_memory};
use merge::layouts::detect;
use merge::progress::Silent;
use merge::{Checkpoint, DType};

use crate::stored::Stored;

fn bytes(values: impl Iterator<Item = u8>) -> Vec<u8> {
    values.flat_map(|n| f32::from(n).to_le_bytes()).collect()
}

fn converted(stored: Stored, to: ClipTarget) -> merge::Result<Checkpoint> {
    let source = Arc::new(stored.open());
    let layout = detect(&source)?;
    let conversion = Conversion {
        spelling: Some(Spelling::Clip(to)),
        ..Conversion::default()
    };
    let plan = conversion.plan(source, layout.as_ref())?;
    in_memory(&plan, &RunOptions::default(), &Silent)
}

/// A part of Google's BERT: a matrix of (in, out) that counts from zero, its bias, and a table.
fn bert() -> Stored {
    Stored::new("bert.npz")
        .with_bytes(
            "bert/encoder/layer_0/attention/self/query/kernel",
            DType::F32,
            &[2, 3],
            bytes(0..6),
        )
        .with(
            "bert/encoder/layer_0/attention/self/query/bias:0",
            &[7.0, 8.0, 9.0],
        )
        .with_bytes(
            "bert/embeddings/word_embeddings",
            DType::F32,
            &[2, 3],
            bytes(0..6),
        )
}

#[test]
fn a_kernel_of_tensorflow_is_turned_and_a_table_is_not() {
    let stored = bert()
        .with(
            "bert/encoder/layer_0/attention/self/query/bias/adam_m",
            &[1.0],
        )
        .with("global_step", &[1.0]);
    let found = converted(stored, ClipTarget::HuggingFace).expect("converted");
    let names: Vec<&str> = found.tensors().map(|(name, _)| name).collect();
    let expected = [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.encoder.layer.0.attention.self.query.weight",
    ];
    assert_eq!(names, expected);
    let weight = found.get(expected[2]).expect("there");
    assert_eq!(weight.shape, [3, 2]);
    let turned = bytes([0, 3, 1, 4, 2, 5].into_iter());
    assert_eq!(found.read_all(expected[2]).expect("numbers"), turned);
    assert_eq!(found.read_all(expected[0]).expect("numbers"), bytes(0..6));
}

#[test]
fn names_that_no_row_knows_are_listed_and_other_axes_refused() {
    let fault = |stored: Stored, to| match converted(stored, to) {
        Ok(_) => panic!("it was converted"),
        Err(error) => error.to_string(),
    };
    let unknown = bert()
        .with("bert/adapter/kernel", &[1.0])
        .with("other", &[1.0]);
    assert_eq!(
        fault(unknown, ClipTarget::HuggingFace),
        "bert.npz: it has the names of Google's BERT of TensorFlow, and 2 others: `bert/adapter/kernel`, `other`"
    );
    let vector = bert().with("bert/pooler/dense/kernel", &[1.0]);
    let said = fault(vector, ClipTarget::HuggingFace);
    assert!(
        said.contains("`bert/pooler/dense/kernel`: shape [1] is not (in, out)"),
        "{said}"
    );
    let twice = bert().with("bert/embeddings/word_embeddings:0", &[1.0]);
    let said = fault(twice, ClipTarget::HuggingFace);
    assert!(
        said.contains("`bert.embeddings.word_embeddings.weight`"),
        "{said}"
    );
    let said = fault(bert(), ClipTarget::OpenClip);
    assert!(said.contains("cannot be spelled as open_clip"), "{said}");
}
