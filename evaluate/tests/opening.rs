//! Opening a checkpoint of any family.

use std::sync::Arc;

use candle_core::{DType, Device};
use evaluate::models::{self, Head, Overrides};
use evaluate::weights::{Init, Misfit};
use evaluate::{Error, Result, Weights};
use merge::io::OpenOptions;

use crate::fixture::path;

fn checkpoint() -> Arc<merge::Checkpoint> {
    let opened = merge::io::open(&path("ckpt/ufo_pretrain.ckpt"), &OpenOptions::default());
    Arc::new(opened.expect("the fixture opens"))
}

fn overrides() -> Overrides {
    Overrides {
        text_table_len: Some(16),
        ..Overrides::default()
    }
}

fn weights() -> Weights {
    let prepared = models::prepare(checkpoint(), &overrides(), &Device::Cpu, DType::F32);
    prepared.expect("a family reads it").1
}

#[test]
fn what_a_model_takes_is_known_before_its_weights_are_loaded() {
    let checkpoint = checkpoint();
    let layout = merge::layouts::detect(&checkpoint).expect("a layout");
    let blueprint = models::blueprint(&checkpoint, layout.as_ref(), &overrides());
    let blueprint = blueprint.expect("a family reads it");
    assert_eq!(blueprint.family(), "multiway");
    let opened = models::open(checkpoint, &overrides(), &Device::Cpu, DType::F32);
    let opened = opened.expect("it opens");
    assert_eq!(opened.model.input(), blueprint.input());
    assert_eq!(blueprint.input().image.side, 48);
    assert!(opened.model.dual().is_ok() && opened.model.fusion().is_ok());
    let error = opened.model.captioner().err().expect("no captioner");
    assert_eq!(
        error.to_string(),
        "models of the family multiway cannot write captions"
    );
    let error = opened
        .model
        .n_classes(Head::Ranking)
        .expect_err("no such head");
    assert!(error.to_string().contains("multiway"), "{error}");
}

#[test]
fn everything_that_does_not_fit_comes_in_one_error() {
    let weights = weights();
    let build = |weights: &Weights| -> Result<()> {
        weights.get("transformer.norm.weight", &[7], Init::Ones)?;
        weights.get("transformer.norm.bias", &[32], Init::Zeros)?;
        weights.get("transformer.nrom.bias", &[32], Init::Zeros)?;
        Ok(())
    };
    let error = weights.check(build).expect_err("two do not fit");
    let text = error.to_string();
    let Error::OtherWeights {
        misfits, unused, ..
    } = error
    else {
        panic!("{text}");
    };
    let width = match &misfits[0] {
        Misfit::Shape {
            found, expected, ..
        } => {
            assert_eq!(expected, &[7]);
            found[0]
        }
        Misfit::Missing { name } => panic!("{name}"),
    };
    assert_eq!(
        misfits.last(),
        Some(&Misfit::Missing {
            name: "transformer.nrom.bias".into()
        })
    );
    // All but the two norms, one of which has another shape.
    assert!(unused.iter().any(|name| name == "transformer.cls_token"));
    assert!(
        text.contains(&format!("has shape [{width}], expected [7]")),
        "{text}"
    );
    assert!(text.contains("the first of which is"), "{text}");
    // Nothing was read, so nothing is used.
    assert!(weights.report().used.is_empty());
}

#[test]
fn one_missing_weight_comes_with_the_nearest_name() {
    let weights = weights();
    let error = weights.check(|weights| weights.get("transformer.nrom.bias", &[32], Init::Zeros));
    let Err(Error::MissingWeight { name, nearest, .. }) = error else {
        panic!("{error:?}");
    };
    assert_eq!(name, "transformer.nrom.bias");
    assert_eq!(nearest.as_deref(), Some("transformer.norm.bias"));
}
