//! ZeroVL's model against numbers that the published program printed: fixtures/zerovl.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use candle_core::{D, DType, Device, Tensor};
use evaluate::batch::{Images, Texts};
use evaluate::capture::Capture;
use evaluate::models::two_towers::{Config, Temperature, TwoTowers};
use evaluate::models::{Branch, DualEncoder, Overrides, open};
use evaluate::nn::{Mask, Pass, Tap, Tape};
use evaluate::{Result, Weights};
use fixtures::{Case, Set, number};
use merge::io::OpenOptions;

fixtures::golden_tests! {
    package: "evaluate", set: "zerovl",
    golden_zerovl_features_and_hidden_states_are_those_of_the_published_program: "forward" => forward,
}

/// A case with its model.
struct Opened {
    model: TwoTowers,
    weights: Weights,
    images: Images,
    texts: Texts,
    expected: BTreeMap<String, Tensor>,
}

/// Heads of the towers, which weights do not tell.
fn overrides(set: &Set) -> Overrides {
    let config = set.json("config.json");
    Overrides {
        image_heads: Some(number(&config["vision"]["heads"]) as usize),
        text_heads: Some(number(&config["text"]["heads"]) as usize),
        ..Overrides::default()
    }
}

fn opened(case: &Case, is_trainable: bool) -> Result<Opened> {
    let file = merge::io::open(&case.file("model"), &OpenOptions::default())?;
    let file = Arc::new(file);
    let layout = merge::layouts::detect(&file)?;
    let config = Config::read(&file, layout.as_ref(), &overrides(case.set()))?;
    let weights = Weights::new(
        file,
        layout.as_ref(),
        str::to_owned,
        &Device::Cpu,
        DType::F32,
    )?;
    let weights = if is_trainable {
        weights.trainable()
    } else {
        weights
    };
    let inputs = case.tensors("input");
    let tensors = case.tensors("expected").into_iter();
    Ok(Opened {
        model: TwoTowers::load(&weights, config)?,
        weights,
        images: Images::new(inputs["image"].tensor()),
        texts: Texts::of_tensors(
            inputs["input_ids"].tensor(),
            inputs["attention_mask"].tensor(),
        )?,
        expected: tensors.map(|(name, raw)| (name, raw.tensor())).collect(),
    })
}

impl Opened {
    /// The features of the images and of the texts.
    fn features(&self, pass: &Pass<'_>) -> Result<[Tensor; 2]> {
        let mut images = (self.model).image_features(&self.images, &[Branch::Apart], pass)?;
        let mut texts = (self.model).text_features(&self.texts, &[Branch::Apart], pass)?;
        Ok([images.remove(0), texts.remove(0)])
    }
}

fn any_case() -> Case {
    let mut cases = Set::open("zerovl").cases("forward").into_iter();
    cases.next().expect("a forward case")
}

/// Everything that a pass shows.
#[derive(Default)]
struct Everything {
    outputs: Mutex<BTreeMap<String, Tensor>>,
    layers: Mutex<BTreeMap<String, Tensor>>,
}

impl Tap for Everything {
    fn linear_input(&self, key: &str, input: &Tensor, _: Option<&Mask>) -> candle_core::Result<()> {
        let mut layers = self.layers.lock().expect("not poisoned");
        let twice = layers.insert(key.to_owned(), input.clone());
        assert!(twice.is_none(), "{key} is shown twice");
        Ok(())
    }

    fn block_output(&self, block: &str, parts: &[Tensor]) -> candle_core::Result<()> {
        self.output(block, &Tensor::cat(parts, 1)?)
    }

    fn wants(&self, _: &str) -> bool {
        true
    }

    fn output(&self, name: &str, tensor: &Tensor) -> candle_core::Result<()> {
        let mut outputs = self.outputs.lock().expect("not poisoned");
        let twice = outputs.insert(name.to_owned(), tensor.clone());
        assert!(twice.is_none(), "{name} is shown twice");
        Ok(())
    }
}

fn list(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).and_then(|x| x.flatten_all());
    x.and_then(|x| x.to_vec1()).expect("numbers")
}

fn assert_close(name: &str, found: &Tensor, expected: &Tensor, absolute: f64, relative: f64) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    for (a, b) in list(found).iter().zip(list(expected)) {
        assert!(
            (a - b).abs() <= absolute + relative * b.abs(),
            "{name}: {a} instead of {b}"
        );
    }
}

fn forward(case: &Case) {
    let run = || -> Result<()> {
        let opened = opened(case, false)?;
        let tap = Everything::default();
        let pass = Pass::tapped(&tap);
        let [image, text] = &opened.features(&pass)?;
        let mut found = tap.outputs.into_inner().expect("not poisoned");
        let similarity = opened.model.similarity(Branch::Apart)?;
        found.insert("similarity".into(), image.matmul(&text.t()?)?);
        found.insert("logits".into(), similarity.logits(image, text)?);
        let (absolute, relative) = (case.tolerance("", "atol"), case.tolerance("", "rtol"));
        for (name, expected) in &opened.expected {
            let found = found
                .get(name)
                .unwrap_or_else(|| panic!("no `{name}` comes out"));
            assert_close(name, found, expected, absolute, relative);
        }
        // Where nobody looks on, the last blocks compute one token alone.
        let [image, text] = &opened.features(&Pass::new())?;
        assert_close(
            "image.embedding",
            image,
            &opened.expected["image.embedding"],
            absolute,
            relative,
        );
        assert_close(
            "text.embedding",
            text,
            &opened.expected["text.embedding"],
            absolute,
            relative,
        );
        assert_eq!(opened.weights.report().unused, [""; 0]);
        Ok(())
    };
    run().expect("it runs");
}

#[test]
fn padding_changes_no_feature() -> Result<()> {
    let opened = opened(&any_case(), false)?;
    let kept = opened.texts.kept.to_dtype(DType::F32)?;
    let longest = kept.sum(1)?.max_all()?.to_scalar::<f32>()? as usize;
    let (ids, kept) = (&opened.texts.ids, &opened.texts.kept);
    let wide = Texts::of_tensors(ids.pad_with_zeros(1, 0, 3)?, kept.pad_with_zeros(1, 0, 3)?)?;
    let narrow = Texts::of_tensors(
        ids.narrow(1, 0, longest)?.contiguous()?,
        kept.narrow(1, 0, longest)?.contiguous()?,
    )?;
    let features = |texts: &Texts| {
        opened
            .model
            .text_features(texts, &[Branch::Apart], &Pass::new())
    };
    let expected = &features(&opened.texts)?[0];
    for texts in [&wide, &narrow] {
        assert_close("features", &features(texts)?[0], expected, 1e-6, 0.0);
    }
    Ok(())
}

#[test]
fn each_variable_gets_a_gradient_on_the_tape_and_off_it() -> Result<()> {
    let opened = opened(&any_case(), true)?;
    for tape in [None, Some(Tape::new())] {
        let mut pass = Pass::new();
        if let Some(tape) = &tape {
            pass = pass.recorded(tape);
        }
        let [image, text] = &opened.features(&pass)?;
        let logits = opened
            .model
            .similarity(Branch::Apart)?
            .logits(image, text)?;
        let loss = candle_nn::ops::log_softmax(&logits, D::Minus1)?
            .sqr()?
            .sum_all()?;
        let variables = opened.weights.variables();
        let mut sums = evaluate::nn::Gradients::of(variables.values());
        match tape {
            Some(tape) => tape.backward(&loss, &mut sums)?,
            None => sums.absorb(&loss.backward()?)?,
        }
        for (name, variable) in &variables {
            let gradient = sums.host(variable).expect("in memory");
            let size: f32 = gradient.iter().map(|x| x * x).sum();
            assert!(size.is_finite(), "{name}");
            // Softmax does not see a bias of all keys.
            assert!(
                size > 0.0 || name.ends_with("self.key.bias"),
                "{name} gets no gradient"
            );
        }
    }
    Ok(())
}

#[test]
fn grams_are_named_after_every_linear_layer_and_sum_its_inputs() -> Result<()> {
    let case = any_case();
    let opened = opened(&case, false)?;
    let file = opened.weights.checkpoint();
    let layout = merge::layouts::detect(file)?;
    let names = merge::layouts::GramNames::of(file, layout.as_ref());
    let capture = Capture::new(names).with_shared(true);
    let (everything, counted) = (Everything::default(), capture.times(1));
    for pass in [Pass::tapped(&everything), Pass::tapped(&counted)] {
        opened
            .model
            .image_features(&opened.images, &[Branch::Apart], &pass)?;
        opened
            .model
            .text_features(&opened.texts, &[Branch::Apart], &pass)?;
    }
    let mut keys = BTreeSet::new();
    for (key, _) in file.tensors() {
        if let merge::Role::Shared(slot) = layout.role(key)? {
            keys.extend(layout.gram_key(&slot, None));
        }
    }
    let grams = capture.into_grams();
    let found: BTreeSet<String> = grams.keys().cloned().collect();
    assert_eq!(found, keys);
    // The input of a layer is known from the published hidden states: that of the layer before, and of
    // the projections the features.
    let kept = list(&opened.texts.kept);
    let tokens = |name: &str| -> Vec<Vec<f64>> {
        let states = &opened.expected[name];
        let width = states.dim(D::Minus1).expect("an axis");
        let rows = list(states);
        let rows = rows.chunks_exact(width).zip(&kept);
        rows.filter(|(_, kept)| **kept > 0.0)
            .map(|(row, _)| row.to_vec())
            .collect()
    };
    let features = |name: &str| -> Vec<Vec<f64>> {
        let states = &opened.expected[name];
        let width = states.dim(D::Minus1).expect("an axis");
        list(states)
            .chunks_exact(width)
            .map(<[f64]>::to_vec)
            .collect()
    };
    let text = "text_encoder.model.model.encoder.layer";
    let mut inputs = vec![
        (
            "image_projection.linear".to_owned(),
            features("image.feature"),
        ),
        (
            "text_projection.linear".to_owned(),
            features("text.feature"),
        ),
    ];
    for part in ["query", "key", "value"] {
        let key = |layer: usize| format!("{text}.{layer}.attention.self.{part}");
        inputs.push((key(0), tokens("text.embed")));
        for layer in 1..opened.model.config().text.n_blocks {
            inputs.push((key(layer), tokens(&format!("text.layer{}", layer - 1))));
        }
    }
    for (key, rows) in inputs {
        let gram = &grams[&key];
        assert_eq!(gram.rows(), rows.len() as u64, "{key}");
        let full = gram.full();
        let width = rows[0].len();
        let sum = |i: usize, j: usize| rows.iter().map(|row| row[i] * row[j]).sum::<f64>();
        for (i, j) in (0..width * width).map(|at| (at / width, at % width)) {
            let (found, expected) = (full[[i, j]], sum(i, j));
            assert!(
                (found - expected).abs() <= 1e-3 + 1e-4 * expected.abs(),
                "{key} {i} {j}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_temperature_is_clamped_and_gets_no_gradient_outside_its_bounds() -> Result<()> {
    let opened = opened(&any_case(), true)?;
    let variables = opened.weights.variables();
    let temperature = &variables["loss.temperature"];
    for (stored, scale, gradient) in [
        (0.07, 1.0 / 0.07, Some(-1.0 / (0.07 * 0.07))),
        (0.5, 2.0, Some(-4.0)),
        (0.001, 1000.0, Some(-1e6)),
        (0.7, 2.0, None),
        (0.0005, 1000.0, None),
    ] {
        temperature.set(&Tensor::new(stored as f32, &Device::Cpu)?)?;
        let found = opened.model.similarity(Branch::Apart)?.scale;
        let value = f64::from(found.to_scalar::<f32>()?);
        assert!((value - scale).abs() <= 1e-5 * scale, "{stored}: {value}");
        let found = found.backward()?;
        let found = found
            .get(temperature)
            .map(Tensor::to_scalar::<f32>)
            .transpose()?;
        let found = found.map_or(0.0, f64::from);
        let expected = gradient.unwrap_or(0.0);
        assert!(
            (found - expected).abs() <= 1e-4 * expected.abs(),
            "{stored}: {found}"
        );
    }
    Ok(())
}

#[test]
fn a_checkpoint_opens_as_a_family_and_says_what_it_takes() -> Result<()> {
    let case = any_case();
    let file = merge::io::open(&case.file("model"), &OpenOptions::default())?;
    let opened = open(
        Arc::new(file),
        &overrides(case.set()),
        &Device::Cpu,
        DType::F32,
    )?;
    assert_eq!(opened.model.family(), "zerovl");
    let config = case.set().json("config.json");
    let input = opened.model.input();
    assert_eq!(input.image.side, number(&config["image_size"]) as usize);
    assert_eq!(
        input.text.vocabulary,
        number(&config["text"]["vocab_size"]) as usize
    );
    assert!(opened.model.fusion().is_err());
    let error = opened.model.dual()?.similarity(Branch::Fused);
    assert!(error.is_err());
    Ok(())
}

#[test]
fn a_constant_temperature_is_a_setting_of_checkpoints_without_one() -> Result<()> {
    let case = any_case();
    let file = merge::io::open(&case.file("model"), &OpenOptions::default())?;
    let layout = merge::layouts::detect(&file)?;
    let with = Overrides {
        temperature: Some(0.05),
        ..overrides(case.set())
    };
    let error = Config::read(&file, layout.as_ref(), &with).expect_err("it is learned");
    assert!(error.to_string().contains("is learned"), "{error}");
    let config = Config::read(&file, layout.as_ref(), &overrides(case.set()))?;
    assert_eq!(config.temperature, Temperature::Learned);
    Ok(())
}
