//! What FLM's streams see and what they learn, on the tiny models of the golden set.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{D, DType, Device, Tensor, Var};
use evaluate::Result;
use evaluate::batch::{Images, Pair, Texts};
use evaluate::forward::Given;
use evaluate::models::flm::Flm;
use evaluate::models::{
    Captioner, Completed, FreeLanguage, FusionEncoder, Head, Model, Queries, Reading, Stream,
    Streams,
};
use evaluate::nn::{Gradient, Gradients, Mask, Omission, Pass, Tap, Tape};
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
        // What depends on nothing that changed is the same to the bit, in whatever row it stands.
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
    let expected = model.guess(Stream::Queries, &states)?; // (b, t, vocabulary)
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

fn omission() -> Omission {
    Omission {
        drop_path: 0.5,
        dropout: 0.2,
        seed: 5,
        name: "3/a.pass".into(),
        ..Omission::default()
    }
}

/// A scalar in which every state of every stream has a part, its own in each place.
fn loss(model: &Flm, ready: &Ready, pass: &Pass<'_>) -> Result<Tensor> {
    let pair = Pair::new(&ready.texts, &ready.images);
    let queries = Queries {
        ids: &ready.queries,
        spans: None,
    };
    let completed = model.complete(&pair, queries, pass)?;
    let both_ways = model.guessed_from(&pair, &pass.within("again"))?;
    let parts = [
        model.guess(Stream::Queries, &completed.queries)?,
        model.guess(Stream::Forward, &completed.forward)?,
        model.guess(Stream::Reverse, &completed.reverse)?,
        both_ways,
    ];
    let mut sum: Option<Tensor> = None;
    for part in parts {
        let n = part.elem_count();
        let places: Vec<f32> = (0..n).map(|at| (at as f32 * 0.7).sin()).collect();
        let places = Tensor::from_vec(places, part.shape(), &Device::Cpu)?;
        let part = (part.sqr()? * places.to_dtype(part.dtype())?)?.sum_all()?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    Ok(sum.expect("parts"))
}

type Found = BTreeMap<String, Vec<f64>>;

/// All gradients, through `tape`, or candle's graph of everything.
fn gradients(tape: Option<Tape>, is_random: bool) -> (f64, Found) {
    let ready = ready(&three_streams(), true, DType::F32);
    let omission = omission();
    let mut pass = Pass::new();
    if is_random {
        pass = pass.omitting(&omission);
    }
    if let Some(tape) = &tape {
        pass = pass.recorded(tape);
    }
    let loss = loss(&ready.model, &ready, &pass).expect("a loss");
    let value = loss.to_scalar::<f32>().expect("a number");
    let variables = ready.weights.variables();
    let mut sums = Gradients::of(variables.values());
    match tape {
        Some(tape) => tape.backward(&loss, &mut sums).expect("gradients"),
        None => {
            let found = loss.backward().expect("gradients");
            sums.absorb(&found).expect("gradients");
        }
    }
    let list = |(name, variable): (&String, &Var)| match sums.get(variable) {
        Some(Gradient::Host(values)) => {
            let values = values.iter().map(|&value| f64::from(value)).collect();
            Some((name.clone(), values))
        }
        Some(Gradient::Device(_)) => panic!("the processor's gradients are in memory"),
        None => None,
    };
    (
        f64::from(value),
        variables.iter().filter_map(list).collect(),
    )
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn largest(gradients: &Found) -> f64 {
    let norms = gradients
        .values()
        .map(|values| norm(values.iter().copied()));
    norms.fold(0.0, f64::max)
}

#[test]
fn flm_learns_on_slices_and_by_segments_what_it_learns_by_one_graph() {
    type Make = fn() -> Tape;
    let tapes: [(&str, Make); 4] = [
        ("slices", Tape::new),
        ("slices, computed again", Tape::checkpointing),
        ("graphs", || Tape::new().of_graphs()),
        ("graphs, computed again", || {
            Tape::checkpointing().of_graphs()
        }),
    ];
    for is_random in [false, true] {
        let (expected_loss, expected) = gradients(None, is_random);
        let floor = FLOOR * largest(&expected);
        for (how, tape) in tapes {
            let (loss, found) = gradients(Some(tape()), is_random);
            let error = (loss - expected_loss).abs();
            assert!(error <= 1e-5 * expected_loss.abs(), "{how}");
            assert_eq!(found.len(), expected.len(), "{how}");
            for (name, expected) in &expected {
                let error = norm(found[name].iter().zip(expected).map(|(a, b)| a - b));
                let tolerance = TOLERANCE * norm(expected.iter().copied());
                assert!(
                    error <= tolerance.max(floor),
                    "{how}: {name} is off by {error}"
                );
            }
        }
    }
}

#[test]
fn every_variable_of_three_streams_gets_a_gradient_and_padding_rows_none() {
    let (_, found) = gradients(Some(Tape::new()), false);
    let ready = ready(&three_streams(), true, DType::F32);
    // Poolers are no part of this loss; a bias of all keys is not seen by softmax.
    let is_out = |name: &str| name.contains("_pooler");
    for name in ready.weights.variables().keys() {
        assert_eq!(found.contains_key(name), !is_out(name), "{name}");
    }
    for (name, gradient) in &found {
        let size = norm(gradient.iter().copied());
        assert!(
            size.is_finite() && (size > 0.0 || name.ends_with("key.bias")),
            "{name}"
        );
    }
    for table in ["word_embeddings", "position_embeddings"] {
        let gradient = &found[&format!("text_transformer.embeddings.{table}.weight")];
        let width = ready.model.config().text.width;
        assert!(
            gradient[width..2 * width].iter().all(|&g| g == 0.0),
            "{table}"
        );
    }
}

#[test]
fn gradients_of_flm_on_slices_are_those_of_central_differences() {
    let (_, found) = gradients(Some(Tape::new()), true);
    let floor = 1e-4 * largest(&found);
    let exact = ready(&three_streams(), true, DType::F64);
    let config = exact.model.config().clone();
    let omission = omission();
    let pass = Pass::new().omitting(&omission);
    let value = || -> f64 {
        exact.weights.recast();
        let model = Flm::load(&exact.weights, config.clone()).expect("the model");
        let loss = loss(&model, &exact, &pass).expect("a loss");
        loss.to_scalar().expect("a number")
    };
    value(); // the variables are there
    for (name, variable) in exact.weights.variables() {
        let Some(gradient) = found.get(&name) else {
            continue;
        };
        let size = norm(gradient.iter().copied());
        if size <= floor {
            continue; // nothing but rounding: the bias of keys
        }
        // Along the gradient, a step that f32 variables can take.
        let values: Vec<f32> = (variable.flatten_all().and_then(|x| x.to_vec1())).expect("f32");
        let step = 1e-4 * norm(values.iter().map(|&x| f64::from(x))).max(0.03);
        let at = |sign: f64| -> (f64, Vec<f64>) {
            let moved: Vec<f32> = (values.iter().zip(gradient))
                .map(|(&x, g)| (f64::from(x) + sign * step * g / size) as f32)
                .collect();
            let exactly = moved.iter().map(|&x| f64::from(x)).collect();
            let moved = Tensor::from_vec(moved, variable.shape(), &Device::Cpu);
            variable.set(&moved.expect("a tensor")).expect("it is set");
            (value(), exactly)
        };
        let ((above, high), (below, low)) = (at(1.0), at(-1.0));
        let back = Tensor::from_vec(values, variable.shape(), &Device::Cpu);
        variable.set(&back.expect("a tensor")).expect("it is set");
        // What the steps that f32 took are expected to change.
        let path = high.iter().zip(&low).zip(gradient);
        let expected: f64 = path.map(|((high, low), g)| (high - low) * g).sum();
        let error = (above - below - expected).abs();
        assert!(
            error <= DIFFERENCE_TOLERANCE * expected.abs(),
            "{name}: {} instead of {expected}",
            above - below
        );
    }
}

#[test]
fn a_part_of_a_batch_drops_what_the_whole_batch_drops() -> Result<()> {
    let ready = ready(&three_streams(), false, DType::F32);
    let read = |texts: &Texts, images: &Images, queries: &Tensor, first| -> Result<Completed> {
        let omission = Omission {
            first,
            ..omission()
        };
        let queries = Queries {
            ids: queries,
            spans: None,
        };
        let pass = Pass::new().omitting(&omission);
        ready
            .model
            .complete(&Pair::new(texts, images), queries, &pass)
    };
    let whole = read(&ready.texts, &ready.images, &ready.queries, 0)?;
    for example in 0..ready.texts.ids.dim(0)? {
        let row = Tensor::new(&[example as u32], &Device::Cpu)?;
        let part = read(
            &ready.texts.select(&row)?,
            &ready.images.select(&row)?,
            &ready.queries.index_select(&row, 0)?,
            example,
        )?;
        for (part, whole) in [
            (part.forward, &whole.forward),
            (part.reverse, &whole.reverse),
            (part.queries, &whole.queries),
        ] {
            assert!(largest_difference(&part, &whole.narrow(0, example, 1)?) < 1e-5);
        }
    }
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
