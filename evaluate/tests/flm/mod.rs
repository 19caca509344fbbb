//! The tokens that FLM's streams see, and the words that they learn, on the tiny models of the golden set.

mod learning;
mod packing;

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, DType, Device, Tensor};
use evaluate::Result;
use evaluate::batch::{Images, Pair, Texts};
use evaluate::forward::Given;
use evaluate::models::flm::Flm;
use evaluate::models::{
    Captioner, Completed, FreeLanguage, FusionEncoder, Head, Model, Queries, Reading, Stream,
    Streams,
};
use evaluate::nn::{Mask, Pass, Tap};
use evaluate::streams::{Span, query_ids};
use fixtures::{Case, Set};

use crate::flm_model::{Opened, given, open, open_weights};

/// Of gradients, relative L2 per tensor: sums in another order.
const TOLERANCE: f64 = 1e-4;

/// Of differences, relative: the third derivative times the step squared, and f32.
const DIFFERENCE_TOLERANCE: f64 = 2e-3;

/// Gradients below this share of the largest are compared absolutely.
const FLOOR: f64 = 1e-6;

/// The first case of three streams with all queries and nothing left out.
fn three_streams() -> Case {
    let cases = Set::open("flm").cases("forward");
    let plain = |case: &Case| {
        case.param("mode") == Some("three_stream")
            && case.param("batch") != Some("nlvr2")
            && case["params"]
                .as_object()
                .is_some_and(|params| params.len() == 2)
    };
    cases
        .into_iter()
        .find(plain)
        .expect("a case of three streams")
}

/// A model and its batch.
struct Ready {
    model: Flm,
    weights: evaluate::Weights,
    texts: Texts,
    images: Images,
    queries: Tensor,
}

fn ready(case: &Case, is_trainable: bool, dtype: DType) -> Ready {
    let Opened { model, weights } = open(case, is_trainable, dtype);
    let given: Given = given(case, &model, BTreeMap::new(), dtype);
    Ready {
        texts: given.texts("text_ids", "text_masks").expect("texts"),
        images: given.images("image").expect("images"),
        queries: given.tensor("text_all_masks_ids").expect("queries").clone(),
        model,
        weights,
    }
}

impl Ready {
    fn lengths(&self) -> Vec<usize> {
        let kept: Vec<Vec<u8>> = self.texts.kept.to_vec2().expect("flags");
        let count = |row: Vec<u8>| row.into_iter().filter(|&kept| kept != 0).count();
        kept.into_iter().map(count).collect()
    }

    fn complete(&self, texts: &Texts, spans: Option<&[Span]>) -> Result<Completed> {
        let pair = Pair::new(texts, &self.images);
        let queries = Queries {
            ids: &self.queries,
            spans,
        };
        self.model.complete(&pair, queries, &Pass::new())
    }
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let difference = (a - b).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
    difference.expect("a number")
}

/// Text and place of every state that differs.
fn changed(before: &Tensor, after: &Tensor) -> BTreeSet<(usize, usize)> {
    let far = (before - after).and_then(|d| d.abs()?.max(D::Minus1)?.to_vec2::<f32>());
    let rows = far.expect("numbers").into_iter().enumerate();
    rows.flat_map(|(text, row)| {
        let places = row.into_iter().enumerate();
        // A row that depends on nothing that changed is the same to the bit, wherever it stands.
        places
            .filter(|(_, far)| *far > 1e-6)
            .map(move |(place, _)| (text, place))
    })
    .collect()
}

#[test]
fn no_query_sees_its_own_token_and_each_stream_sees_one_direction() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let (lengths, t) = (ready.lengths(), ready.texts.ids.dim(1)?);
    let vocabulary = ready.model.input().text.vocabulary as u32;
    let spans: Vec<Span> = (0..lengths.len() * t)
        .map(|at| Span {
            extra: at % 4,
            leans_left: at % 3 == 0,
        })
        .collect();
    for spans in [None, Some(&spans[..])] {
        let before = ready.complete(&ready.texts, spans)?;
        let longest = lengths.iter().copied().max().unwrap_or_default();
        for token in 0..longest {
            let mut ids: Vec<Vec<u32>> = ready.texts.ids.to_vec2()?;
            let mut touched = Vec::new();
            for (text, (row, &n)) in ids.iter_mut().zip(&lengths).enumerate() {
                if token < n {
                    // Another token that is no padding.
                    row[token] = 4 + (row[token] + 7) % (vocabulary - 5);
                    touched.push(text);
                }
            }
            let ids = Tensor::new(ids, &Device::Cpu)?;
            let after = ready.complete(&ready.texts.with_ids(&ids), spans)?;
            let [forward, reverse, queries] = [
                changed(&before.forward, &after.forward),
                changed(&before.reverse, &after.reverse),
                changed(&before.queries, &after.queries),
            ];
            for text in touched {
                let n = lengths[text];
                for place in 0..n {
                    let at = &(text, place);
                    let said =
                        format!("token {token} at {place} of {n}, spans {}", spans.is_some());
                    let is_first = place == 0;
                    let forwards = is_first || (token >= 1 && place >= token);
                    assert_eq!(forward.contains(at), forwards, "forward: {said}");
                    let backwards = is_first || (token >= 1 && place <= token);
                    assert_eq!(reverse.contains(at), backwards, "reverse: {said}");
                    if spans.is_none() {
                        let seen = is_first || (token >= 1 && place != token);
                        assert_eq!(queries.contains(at), seen, "queries: {said}");
                    } else if place == token && !is_first && n > 6 {
                        // Of a shorter text a span may hide everything from a query.
                        assert!(!queries.contains(at), "queries: {said}");
                    }
                }
            }
        }
        if let Some(spans) = spans {
            assert!(
                largest_difference(
                    &before.queries,
                    &ready.complete(&ready.texts, None)?.queries
                ) > 1e-3,
                "spans hide something"
            );
            assert!(spans.iter().any(|span| span.extra > 1));
        }
    }
    Ok(())
}

#[test]
fn a_text_read_left_to_right_alone_has_the_states_of_the_forward_stream() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let pair = Pair::new(&ready.texts, &ready.images);
    let alone = ready.model.read(&pair, Reading::Causal, &Pass::new())?;
    let among_three = ready.complete(&ready.texts, None)?;
    assert!(largest_difference(&alone, &among_three.forward) < 1e-5);
    assert!(largest_difference(&alone, &among_three.reverse) > 1e-2);
    // A prefix of one token is the token itself; one of all tokens hides nothing but padding.
    let whole: Vec<usize> = ready.lengths();
    let whole = ready
        .model
        .read(&pair, Reading::AfterPrefix(&whole), &Pass::new())?;
    let both_ways = ready
        .model
        .read(&pair, Reading::Bidirectional, &Pass::new())?;
    assert!(largest_difference(&whole, &both_ways) < 1e-5);
    Ok(())
}

#[test]
fn classifiers_read_the_same_whether_all_queries_are_computed_or_the_first_alone() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let pair = Pair::new(&ready.texts, &ready.images);
    let first = ready.model.fuse(&pair, &Pass::new())?;
    let all = ready.complete(&ready.texts, None)?;
    assert_eq!(first.text.dim(1)?, 1);
    let difference = largest_difference(&first.text, &all.queries.narrow(1, 0, 1)?);
    assert!(difference < 1e-5, "{difference}");
    Ok(())
}

#[test]
fn one_image_serves_all_texts_as_if_it_were_there_for_each() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let n = ready.texts.ids.dim(0)?;
    let one = ready.images.narrow(0, 1)?;
    let each = Images::new(Tensor::cat(&vec![&one.pixels; n], 0)?);
    let found = ready
        .model
        .fuse(&Pair::new(&ready.texts, &one), &Pass::new())?;
    let expected = ready
        .model
        .fuse(&Pair::new(&ready.texts, &each), &Pass::new())?;
    assert!(largest_difference(&found.text, &expected.text) < 1e-6);
    Ok(())
}

#[test]
fn padding_changes_no_state_of_a_token() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let wide = |x: &Tensor, fill: u32| -> Result<Tensor> {
        let more = (x.narrow(1, 0, 3)?.zeros_like()? + f64::from(fill))?;
        Ok(Tensor::cat(&[x, &more], 1)?)
    };
    let texts = Texts::of_tensors(
        wide(&ready.texts.ids, 1)?,
        ready.texts.kept.pad_with_zeros(1, 0, 3)?,
    )?;
    let (t, pair) = (ready.texts.ids.dim(1)?, Pair::new(&texts, &ready.images));
    let ids = wide(&ready.queries, 0)?;
    let queries = Queries {
        ids: &ids,
        spans: None,
    };
    let found = ready.model.complete(&pair, queries, &Pass::new())?;
    let expected = ready.complete(&ready.texts, None)?;
    for (found, expected) in [
        (found.forward, expected.forward),
        (found.reverse, expected.reverse),
        (found.queries, expected.queries),
    ] {
        assert!(largest_difference(&found.narrow(1, 0, t)?, &expected) < 1e-5);
    }
    Ok(())
}

#[test]
fn a_caption_written_word_by_word_has_the_logits_of_the_whole_text() -> Result<()> {
    let set = Set::open("flm");
    let case = set
        .cases("loss")
        .into_iter()
        .find(|case| case.param("batch") == Some("caption"));
    let ready = ready(&case.expect("captions"), false, DType::F32);
    let model = &ready.model;
    let (b, t) = ready.texts.ids.dims2()?;
    let pair = Pair::new(&ready.texts, &ready.images);
    let states = model.read(&pair, Reading::Causal, &Pass::new())?;
    let expected = model.words(Stream::Queries, &states)?; // (b, t, vocabulary)
    let lengths = ready.lengths();
    let mut seen = model.see(&ready.images, &Pass::new())?;
    // The texts change places on the way, as where several beams go on from one.
    let turned: Vec<u32> = (0..b as u32).map(|row| (row + 1) % b as u32).collect();
    let turned = Tensor::new(turned, &Device::Cpu)?;
    let mut rows: Vec<usize> = (0..b).collect();
    for place in 1..t {
        if place == t / 2 {
            seen = seen.select(&turned)?;
            rows.rotate_left(1);
        }
        let ids: Vec<Vec<u32>> = ready.texts.ids.to_vec2()?;
        let words: Vec<u32> = rows.iter().map(|&row| ids[row][place]).collect();
        let found = model.next(&mut seen, &Tensor::new(words, &Device::Cpu)?)?;
        for (at, &row) in rows.iter().enumerate() {
            if place < lengths[row] {
                let found = found.get(at)?;
                let expected = expected.get(row)?.get(place)?;
                let difference = largest_difference(&found, &expected);
                assert!(
                    difference < 1e-4,
                    "word {place} of text {row}: {difference}"
                );
            }
        }
    }
    assert_eq!(seen.n_words, t - 1);
    Ok(())
}

#[test]
fn texts_with_gaps_and_files_of_another_mode_are_errors_by_name() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let mut kept: Vec<Vec<u8>> = ready.texts.kept.to_vec2()?;
    kept[0][1] = 0;
    let texts = Texts::of_tensors(ready.texts.ids.clone(), Tensor::new(kept, &Device::Cpu)?)?;
    let error = ready.complete(&texts, None).expect_err("a gap").to_string();
    assert!(error.contains("padding"), "{error}");
    let pair = Pair::new(&ready.texts, &ready.images);
    let second = ready
        .model
        .fuse(&pair.nth(1), &Pass::new())
        .expect_err("one image");
    assert!(
        second.to_string().contains("token_type_embeddings"),
        "{second}"
    );
    let masked = Tensor::zeros((1, 1), DType::U8, &Device::Cpu)?;
    assert!(
        ready
            .model
            .fuse(&pair.masked(&masked), &Pass::new())
            .is_err()
    );
    let no_head = ready
        .model
        .score(Head::Vqa, &ready.queries)
        .expect_err("no head");
    assert!(no_head.to_string().contains("vqa_classifier"), "{no_head}");
    let set = Set::open("flm");
    let baseline = set.config()["models"]["ar"]
        .as_str()
        .map(|name| set.path(name));
    let baseline = baseline.expect("a model");
    let baseline = open_weights(&set, &baseline, None, DType::F32, |weights| weights).model;
    assert_eq!(baseline.config().streams, Streams::Causal);
    let queries = Queries {
        ids: &ready.queries,
        spans: None,
    };
    let error = baseline
        .complete(&pair, queries, &Pass::new())
        .expect_err("one stream");
    assert!(error.to_string().contains("reconstructor"), "{error}");
    Ok(())
}

/// Inputs of every linear layer that passes by.
#[derive(Default)]
struct Layers(std::sync::Mutex<BTreeMap<String, usize>>);

impl Tap for Layers {
    fn linear_input(
        &self,
        key: &str,
        input: &Tensor,
        mask: Option<&Mask>,
    ) -> candle_core::Result<()> {
        if let Some(mask) = mask {
            let (b, n, _) = input.dims3()?;
            assert_eq!(mask.kept()?.len(), b * n, "{key}");
        }
        *self
            .0
            .lock()
            .expect("not poisoned")
            .entry(key.to_owned())
            .or_default() += 1;
        Ok(())
    }
}

#[test]
fn every_linear_layer_of_the_streams_is_shown_under_the_name_of_its_gram_matrix() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let layers = Layers::default();
    let queries = Queries {
        ids: &ready.queries,
        spans: None,
    };
    let pair = Pair::new(&ready.texts, &ready.images);
    ready
        .model
        .complete(&pair, queries, &Pass::tapped(&layers))?;
    let shown = layers.0.into_inner().expect("not poisoned");
    let file = ready.weights.checkpoint();
    let layout = merge::layouts::detect(file)?;
    let mut expected = BTreeSet::new();
    for (key, _) in file.tensors() {
        if let merge::Role::Shared(slot) = layout.role(key)? {
            expected.extend(layout.gram_key(&slot, None));
        }
    }
    let found: BTreeSet<String> = shown.keys().cloned().collect();
    assert_eq!(found, expected);
    Ok(())
}

#[test]
fn given_queries_are_those_that_texts_ask_for() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let mask = Set::open("flm").config()["mask_token_id"]
        .as_u64()
        .expect("an id") as u32;
    let ids: Vec<Vec<u32>> = ready.texts.ids.to_dtype(DType::U32)?.to_vec2()?;
    let expected: Vec<Vec<u32>> = (ids.iter().zip(ready.lengths()))
        .map(|(ids, n)| query_ids(ids, n, mask))
        .collect();
    assert_eq!(
        ready.queries.to_dtype(DType::U32)?.to_vec2::<u32>()?,
        expected
    );
    Ok(())
}
