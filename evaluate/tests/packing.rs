//! A text tower whose padding is left out against the same with padding computed.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evaluate::models::{Bert, bert};
use evaluate::nn::{Gradient, Gradients, Mask, Omission, Pass, Tape};
use evaluate::{Result, Weights};
use merge::io::OpenOptions;

use crate::fixture::path;

/// Of states and of gradients, relative to the largest: the same sums over other numbers of rows.
const TOLERANCE: f32 = 2e-6;

/// Places of a text.
const LEN: usize = 9;

/// A tower of drawn weights.
fn tower(is_trainable: bool) -> (Bert, Weights) {
    let file = merge::io::open(&path("towers/bert.safetensors"), &OpenOptions::default());
    let file = Arc::new(file.expect("the file opens"));
    let weights = Bert::weights(file, &Device::Cpu, DType::F32).expect("names are known");
    let weights = match is_trainable {
        true => weights.trainable(),
        false => weights,
    };
    let config = bert::Config::read(&weights, "", Some(4)).expect("sizes");
    (Bert::load(&weights, "", config).expect("a tower"), weights)
}

/// Texts of these numbers of tokens.
struct Batch {
    ids: Tensor,
    kept: Tensor,
    mask: Mask,
}

fn batch(kept: &[[u8; LEN]]) -> Result<Batch> {
    let n = kept.len() * LEN;
    let ids: Vec<u32> = (0..n).map(|at| (at * 7 % 31 + 3) as u32).collect();
    let kept = Tensor::from_vec(kept.concat(), (kept.len(), LEN), &Device::Cpu)?;
    Ok(Batch {
        ids: Tensor::from_vec(ids, kept.dims(), &Device::Cpu)?,
        mask: Mask::padding(&kept, f32::MIN)?,
        kept: kept.to_dtype(DType::F32)?,
    })
}

/// This number of tokens, then padding.
fn lengths(lengths: &[usize]) -> Result<Batch> {
    let kept = |&n: &usize| std::array::from_fn(|at| u8::from(at < n));
    batch(&lengths.iter().map(kept).collect::<Vec<_>>())
}

/// A text with padding first, one with padding in between, one of nothing else, and a plain one.
fn odd() -> Result<Batch> {
    batch(&[
        [0, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0, 0],
        [0; LEN],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
    ])
}

fn omission() -> Omission {
    Omission {
        dropout: 0.2,
        seed: 5,
        name: "3/a.pass".into(),
        ..Omission::default()
    }
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let difference = difference.fold(0.0, f32::max);
    assert!(
        difference <= TOLERANCE * largest,
        "{what}: {difference} of {largest}"
    );
}

fn numbers(x: &Tensor) -> Vec<f32> {
    let flat = x.flatten_all().and_then(|x| x.to_vec1());
    flat.expect("numbers")
}

#[test]
fn tokens_and_features_are_those_of_texts_with_their_padding() -> Result<()> {
    let (tower, _) = tower(false);
    let omission = omission();
    let batches = [
        lengths(&[5, 9, 1, 3])?,
        lengths(&[1])?,
        lengths(&[2, 2])?,
        odd()?,
    ];
    for (Batch { ids, kept, mask }, is_random) in batches
        .iter()
        .flat_map(|batch| [(batch, false), (batch, true)])
    {
        let mut pass = Pass::new();
        if is_random {
            pass = pass.omitting(&omission);
        }
        let with_padding = pass.with_padding();
        let real = |tokens: Tensor| tokens.broadcast_mul(&kept.unsqueeze(2)?);
        let found = tower.tokens(ids, mask, &pass)?;
        let expected = tower.tokens(ids, mask, &with_padding)?;
        assert_close(
            "tokens",
            &numbers(&real(found)?),
            &numbers(&real(expected)?),
        );
        let found = tower.class(ids, mask, &pass)?;
        let expected = tower.class(ids, mask, &with_padding)?;
        assert_close("the first token", &numbers(&found), &numbers(&expected));
    }
    Ok(())
}

#[test]
fn padding_is_left_out_unless_it_is_asked_for() -> Result<()> {
    let (tower, _) = tower(false);
    let Batch { ids, mask, .. } = lengths(&[5, 9, 1])?;
    let of_padding = |pass: &Pass<'_>| -> Result<f32> {
        let row = tower.tokens(&ids, &mask, pass)?.get(0)?.get(LEN - 1)?;
        Ok(row.abs()?.sum_all()?.to_scalar()?)
    };
    assert_eq!(of_padding(&Pass::new())?, 0.0);
    assert!(of_padding(&Pass::new().with_padding())? > 1.0);
    Ok(())
}

#[test]
fn without_padding_nothing_changes_to_the_bit() -> Result<()> {
    let (tower, _) = tower(false);
    let Batch { ids, mask, .. } = lengths(&[LEN, LEN])?;
    let found = tower.class(&ids, &mask, &Pass::new())?;
    let expected = tower.class(&ids, &mask, &Pass::new().with_padding())?;
    assert_eq!(numbers(&found), numbers(&expected));
    Ok(())
}

/// Gradients of a sum over the first tokens.
fn gradients(texts: &Batch, tape: Tape, pads: bool) -> Result<BTreeMap<String, Vec<f32>>> {
    let (tower, weights) = tower(true);
    let omission = omission();
    let pass = Pass::new().omitting(&omission).recorded(&tape);
    let pass = match pads {
        true => pass.with_padding(),
        false => pass,
    };
    let loss = tower
        .class(&texts.ids, &texts.mask, &pass)?
        .powf(3.0)?
        .sum_all()?;
    let variables = weights.variables();
    let mut sums = Gradients::of(variables.values());
    tape.backward(&loss, &mut sums)?;
    let found = variables.iter().map(|(name, variable)| {
        let values = match sums.get(variable) {
            Some(Gradient::Host(values)) => values.to_vec(),
            _ => panic!("{name} gets no gradient"),
        };
        (name.clone(), values)
    });
    Ok(found.collect())
}

#[test]
fn gradients_are_those_of_texts_with_their_padding() -> Result<()> {
    for texts in [lengths(&[5, 9, 1, 3])?, odd()?] {
        let expected = gradients(&texts, Tape::new(), true)?;
        let largest = expected
            .values()
            .flatten()
            .fold(0.0_f32, |a, b| a.max(b.abs()));
        for tape in [Tape::new(), Tape::checkpointing()] {
            let found = gradients(&texts, tape, false)?;
            assert_eq!(found.len(), expected.len());
            for (name, expected) in &expected {
                let off = found[name].iter().zip(expected).map(|(a, b)| (a - b).abs());
                let off = off.fold(0.0, f32::max);
                assert!(
                    off <= 10.0 * TOLERANCE * largest,
                    "{name}: {off} of {largest}"
                );
            }
        }
    }
    Ok(())
}
