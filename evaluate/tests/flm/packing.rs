//! FLM whose padding is left out against the same with padding computed.

use candle_core::{DType, Device, Tensor};
use evaluate::Result;
use evaluate::batch::{Pair, Texts};
use evaluate::models::{FreeLanguage, FusionEncoder, Model, Queries, Reading};
use evaluate::nn::{Gradient, Gradients, Omission, Pass, Tape};
use evaluate::streams::{Span, query_ids};

use super::{Ready, ready, three_streams};

/// Of states, which are normed, and of gradients relative to the largest: products of other numbers of rows add up in
/// another order, and norms of a few channels raise the difference.
const TOLERANCE: f32 = 5e-5;

/// Of states where a query sees nothing: scores of about −10,000 have steps of 0.001 in f32.
const BLIND_TOLERANCE: f32 = 1e-3;

/// A batch with texts of these numbers of tokens.
fn of_lengths(mut ready: Ready, lengths: &[usize]) -> Result<Ready> {
    let (b, t) = ready.texts.ids.dims2()?;
    let vocabulary = ready.model.input().text.vocabulary as u32;
    let n_tokens: Vec<usize> = (0..b)
        .map(|text| lengths[text % lengths.len()].min(t))
        .collect();
    let id = |at: usize| match at % t < n_tokens[at / t] {
        true => 4 + (at * 7) as u32 % (vocabulary - 5),
        false => 1,
    };
    let ids: Vec<u32> = (0..b * t).map(id).collect();
    let queries = ids.chunks(t).zip(&n_tokens);
    let queries: Vec<u32> = queries
        .flat_map(|(ids, &n)| query_ids(ids, n, vocabulary - 1))
        .collect();
    ready.queries = Tensor::from_vec(queries, (b, t), &Device::Cpu)?;
    ready.texts = Texts::new(ids, &n_tokens, &Device::Cpu)?;
    Ok(ready)
}

/// Batches with a text of one token, with one of two, whose second query sees nothing, and without padding.
fn batches(is_trainable: bool) -> Result<Vec<Ready>> {
    let plain = || ready(&three_streams(), is_trainable, DType::F32);
    let of = |lengths: &[usize]| of_lengths(plain(), lengths);
    Ok(vec![
        plain(),
        of(&[1, 4])?,
        of(&[2, 5])?,
        of(&[usize::MAX])?,
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

/// The largest difference in rows of tokens, and of a number more of each text.
fn off(ready: &Ready, more: usize, found: &Tensor, expected: &Tensor) -> Result<f32> {
    assert_eq!(found.dims(), expected.dims());
    let rows: Vec<Vec<f32>> = (found - expected)?.abs()?.max(2)?.to_vec2()?;
    let texts = rows.iter().zip(ready.lengths());
    let read = texts.flat_map(|(rows, n)| rows.iter().take(n + more));
    Ok(read.fold(0.0_f32, |a, b| a.max(*b)))
}

#[test]
fn states_are_those_of_texts_with_their_padding() -> Result<()> {
    let omission = omission();
    for ready in batches(false)? {
        let pair = Pair::new(&ready.texts, &ready.images);
        let n_queries = ready.texts.ids.elem_count();
        let spans: Vec<Span> = (0..n_queries)
            .map(|at| Span {
                extra: at % 5,
                leans_left: at % 2 == 0,
            })
            .collect();
        for is_random in [false, true] {
            let plain = match is_random {
                true => Pass::new().omitting(&omission),
                false => Pass::new(),
            };
            let padded = plain.with_padding();
            for spans in [None, Some(&spans[..])] {
                let queries = Queries {
                    ids: &ready.queries,
                    spans,
                };
                let found = ready.model.complete(&pair, queries, &plain)?;
                let expected = ready.model.complete(&pair, queries, &padded)?;
                // Of a text of one token nothing is guessed, so its reverse stream ends with it.
                let more = usize::from(!ready.lengths().contains(&1));
                let parts = [
                    off(&ready, 0, &found.forward, &expected.forward)?,
                    off(&ready, more, &found.reverse, &expected.reverse)?,
                    off(&ready, 0, &found.queries, &expected.queries)?,
                ];
                let is_blind = spans.is_some() || ready.lengths().contains(&2);
                let tolerance = if is_blind { BLIND_TOLERANCE } else { TOLERANCE };
                assert!(parts.iter().all(|&off| off <= tolerance), "{parts:?}");
            }
            let prefixes: Vec<usize> = ready.lengths().iter().map(|n| n.div_ceil(2)).collect();
            for reading in [
                Reading::Causal,
                Reading::Bidirectional,
                Reading::AfterPrefix(&prefixes),
            ] {
                let found = ready.model.read(&pair, reading, &plain)?;
                let expected = ready.model.read(&pair, reading, &padded)?;
                let off = off(&ready, 0, &found, &expected)?;
                assert!(off <= TOLERANCE, "{reading:?}: {off}");
            }
            let found = ready.model.fuse(&pair, &plain)?;
            let expected = ready.model.fuse(&pair, &padded)?;
            let off = super::largest_difference(&found.text, &expected.text);
            assert!(off <= TOLERANCE, "the first query: {off}");
        }
    }
    Ok(())
}

#[test]
fn padding_of_the_streams_is_left_out_unless_it_is_asked_for() -> Result<()> {
    let ready = of_lengths(ready(&three_streams(), false, DType::F32), &[4, 5])?;
    let pair = Pair::new(&ready.texts, &ready.images);
    let size = |pass: &Pass<'_>| -> Result<[f32; 2]> {
        let queries = Queries {
            ids: &ready.queries,
            spans: None,
        };
        let reverse = ready.model.complete(&pair, queries, pass)?.reverse;
        let row = |at| reverse.get(0)?.get(at)?.abs()?.sum_all()?.to_scalar();
        Ok([row(4)?, row(5)?])
    };
    let [last, after] = size(&Pass::new())?;
    assert!(last > 0.0 && after == 0.0);
    assert!(size(&Pass::new().with_padding())?[1] > 0.0);
    Ok(())
}

#[test]
fn gradients_of_the_streams_are_those_of_texts_with_their_padding() -> Result<()> {
    let omission = omission();
    for ready in batches(true)? {
        let variables = ready.weights.variables();
        let pair = Pair::new(&ready.texts, &ready.images);
        let kept = ready.texts.kept.to_dtype(DType::F32)?.unsqueeze(2)?;
        let run = |tape: Tape, pads: bool| -> Result<Gradients> {
            let pass = Pass::new().omitting(&omission).recorded(&tape);
            let pass = match pads {
                true => pass.with_padding(),
                false => pass,
            };
            let queries = Queries {
                ids: &ready.queries,
                spans: None,
            };
            let states = ready.model.complete(&pair, queries, &pass)?;
            let cubes = |x: &Tensor| x.powf(3.0)?.broadcast_mul(&kept)?.sum_all();
            let fused = ready.model.fuse(&pair, &pass.within("again"))?;
            let loss = (cubes(&states.forward)? + cubes(&states.reverse)?)?;
            let loss = ((loss + cubes(&states.queries)?)? + fused.text.powf(3.0)?.sum_all()?)?;
            let mut sums = Gradients::of(variables.values());
            tape.backward(&loss, &mut sums)?;
            Ok(sums)
        };
        let expected = run(Tape::new(), true)?;
        let of = |sums: &Gradients, name: &String| match sums.get(&variables[name]) {
            Some(Gradient::Host(values)) => values.to_vec(),
            _ => Vec::new(),
        };
        let all = variables.keys().flat_map(|name| of(&expected, name));
        let largest = all.fold(0.0_f32, |a, b| a.max(b.abs()));
        assert!(largest > 0.0);
        for tape in [Tape::new(), Tape::checkpointing()] {
            let found = run(tape, false)?;
            for name in variables.keys() {
                let (found, expected) = (of(&found, name), of(&expected, name));
                assert_eq!(found.len(), expected.len(), "{name}");
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
                let off = off.fold(0.0, f32::max);
                assert!(off <= TOLERANCE * largest, "{name}: {off} of {largest}");
            }
        }
    }
    Ok(())
}
