//! Passes of a dual encoder over images and over texts, in batches, shared by ranks.

use std::collections::HashMap;

use candle_core::Tensor;

use super::Runner;
use super::grams::Batch;
use super::runner::by_length;
use crate::Result;
use crate::batch::Images;
use crate::capture::Capture;
use crate::images::Rgb;
use crate::models::{Branch, image_features, text_features};
use crate::nn::Pass;
use crate::text::Encoded;

/// What is computed of a batch of images: `(b, width)`.
type OfImages<'a> = &'a dyn Fn(&Images, &Pass<'_>) -> Result<Tensor>;

/// Features of `n` images, `n × width`; `picture` decodes the image of a number.
pub(super) fn features_of_images(
    runner: &Runner<'_>,
    n: usize,
    picture: impl Fn(usize) -> Result<Rgb> + Send + Sync + 'static,
) -> Result<Vec<f32>> {
    of_images(runner, n, picture, &|images, pass| {
        image_features(runner.model(), images, Branch::Apart, pass)
    })
}

/// What `compute` gives of `n` images, `n × width`; `picture` decodes the image of a number.
pub(super) fn of_images(
    runner: &Runner<'_>,
    n: usize,
    picture: impl Fn(usize) -> Result<Rgb> + Send + Sync + 'static,
    compute: OfImages<'_>,
) -> Result<Vec<f32>> {
    runner.progress().start_items("images", n as u64);
    let features = run_images(runner, n, picture, compute);
    runner.progress().finish();
    features
}

fn run_images(
    runner: &Runner<'_>,
    n: usize,
    picture: impl Fn(usize) -> Result<Rgb> + Send + Sync + 'static,
    compute: OfImages<'_>,
) -> Result<Vec<f32>> {
    let images: Vec<usize> = (0..n).collect();
    let batches: Vec<Vec<usize>> = images
        .chunks(runner.batch_size())
        .map(<[_]>::to_vec)
        .collect();
    let all_sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
    let batches = runner.own(batches);
    let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
    let pixels = runner.pictures(batches, move |&image| picture(image));
    let mut features = Vec::new();
    for (pixels, n) in pixels.zip(sizes) {
        let images = runner.pixels(pixels?, n)?;
        let found = compute(&images, &Pass::new())?;
        features.extend(runner.rows(&found)?);
        runner.advance(n)?;
    }
    Ok(runner.gathered(features, &all_sizes)?.concat())
}

/// Features of texts in order, `n × width`, computed once for each distinct one.
pub(super) fn of_texts<'t>(
    runner: &Runner<'_>,
    texts: impl Iterator<Item = &'t str>,
) -> Result<Vec<f32>> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut distinct: Vec<&str> = Vec::new();
    let mut of_texts = Vec::new();
    for text in texts {
        let place = *places.entry(text).or_insert_with(|| {
            distinct.push(text);
            distinct.len() - 1
        });
        of_texts.push(place);
    }
    runner
        .progress()
        .start_items("texts", distinct.len() as u64);
    let features = run_texts(runner, &distinct);
    runner.progress().finish();
    let features = features?;
    let width = features.len() / distinct.len().max(1);
    let rows = of_texts
        .iter()
        .flat_map(|&place| &features[place * width..][..width]);
    Ok(rows.copied().collect())
}

/// Runs a batch of images or of texts for gram matrices.
pub(super) fn gram_batch<'t>(
    runner: &Runner<'_>,
    batch: &Batch,
    capture: &Capture,
    picture: impl Fn(usize) -> Result<Rgb> + Sync,
    text: impl Fn(usize) -> &'t str,
) -> Result<()> {
    match batch {
        Batch::Images { examples, times } => {
            let images = runner.picture_batch(examples, |&image| picture(image))?;
            let tap = capture.times(*times);
            let pass = Pass::tapped(&tap);
            runner.model().dual()?.pass_images(&images, &pass)?;
        }
        Batch::Texts(examples) => {
            let encoded = runner.encode_captions(examples.iter().map(|&example| text(example)))?;
            let texts = capture.texts(runner, &encoded)?;
            let tap = capture.times(1);
            let pass = Pass::tapped(&tap);
            runner.model().dual()?.pass_texts(&texts, &pass)?;
        }
    }
    Ok(())
}

fn run_texts(runner: &Runner<'_>, texts: &[&str]) -> Result<Vec<f32>> {
    let encoded = runner.encode_captions(texts.iter().copied())?;
    let batches = by_length(&encoded, runner.batch_size());
    let mut own = Vec::new();
    for batch in runner.own(batches.clone()) {
        let texts: Vec<&Encoded> = batch.iter().map(|&index| &encoded[index]).collect();
        let texts = runner.texts(&texts)?;
        let found = text_features(runner.model(), &texts, Branch::Apart, &Pass::new())?;
        own.extend(runner.rows(&found)?);
        runner.advance(batch.len())?;
    }
    let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
    let mut features = Vec::new();
    for (batch, rows) in batches.iter().zip(runner.gathered(own, &sizes)?) {
        let width = rows.len() / batch.len().max(1);
        features.resize(encoded.len() * width, 0.0);
        for (&index, row) in batch.iter().zip(rows.chunks_exact(width.max(1))) {
            features[index * width..][..width].copy_from_slice(row);
        }
    }
    Ok(features)
}
