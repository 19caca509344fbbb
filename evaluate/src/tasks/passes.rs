//! Passes of a dual encoder over images and over texts, in batches, shared by ranks.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use super::Runner;
use super::grams::Batch;
use super::runner::by_length;
use crate::Result;
use crate::batch::{Images, Pair, Texts};
use crate::capture::Capture;
use crate::datasets::captions::CaptionSet;
use crate::images::Rgb;
use crate::models::{Branch, Queries, Reading, Streams, image_features, text_features};
use crate::nn::Pass;
use crate::streams::query_ids;
use crate::text::Encoded;

/// The computation for a batch of images: `(b, width)`.
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

/// The outputs of `compute` for `n` images, `n × width`; `picture` decodes the image of a number.
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
        let found = compute(&images, &runner.pass())?;
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
            runner.model().pass_images(&images, &pass)?;
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

/// The wanted states of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// Every token.
    Text,
    /// The input of classifiers and ranking.
    Pooled,
}

/// Runs captions with their images for gram matrices, each by its number among all captions of the set. A model
/// of free language reads all tokens in its own way, of three streams with a query for each.
pub(super) fn gram_pairs(
    runner: &Runner<'_>,
    set: &CaptionSet,
    captions: &[usize],
    capture: &Capture,
    whole: Whole,
) -> Result<()> {
    let all =
        (0..set.n_images()).flat_map(|image| set.captions(image).iter().map(move |c| (image, c)));
    let all: Vec<(usize, &String)> = all.collect();
    let pairs: Vec<(usize, &String)> = captions.iter().map(|&caption| all[caption]).collect();
    let images = runner.picture_batch(&pairs, |&(image, _)| set.picture(image))?;
    let encoded = runner.encode_captions(pairs.iter().map(|(_, text)| text.as_str()))?;
    let texts = capture.texts(runner, &encoded)?;
    let tap = capture.times(1);
    let (pair, pass) = (Pair::new(&texts, &images), Pass::tapped(&tap));
    let model = runner.model();
    match (whole, model.free_language()) {
        (Whole::Text, Ok(free)) => match free.streams() {
            Streams::Three => {
                let ids = queries(runner, &texts)?;
                let queries = Queries {
                    ids: &ids,
                    spans: None,
                };
                free.complete(&pair, queries, &pass)?;
            }
            Streams::Causal => drop(free.read(&pair, Reading::Causal, &pass)?),
            Streams::Bidirectional => drop(free.read(&pair, Reading::Bidirectional, &pass)?),
        },
        _ => drop(model.fusion()?.fuse(&pair, &pass)?),
    }
    Ok(())
}

/// The tokens that the query stream begins with, `(b, t)`.
fn queries(runner: &Runner<'_>, texts: &Texts) -> Result<Tensor> {
    let mask = runner.mask_token()?;
    let rows: Vec<Vec<u32>> = texts.ids.to_dtype(DType::U32)?.to_vec2()?;
    let kept: Vec<Vec<u8>> = texts.kept.to_vec2()?;
    let ids = rows.iter().zip(&kept).flat_map(|(ids, kept)| {
        let n = kept.iter().filter(|&&kept| kept != 0).count();
        query_ids(ids, n, mask)
    });
    let ids: Vec<u32> = ids.collect();
    Ok(Tensor::from_vec(ids, texts.ids.dims(), texts.ids.device())?)
}

fn run_texts(runner: &Runner<'_>, texts: &[&str]) -> Result<Vec<f32>> {
    let encoded = runner.encode_captions(texts.iter().copied())?;
    let batches = by_length(&encoded, runner.batch_size());
    let mut own = Vec::new();
    for batch in runner.own(batches.clone()) {
        let texts: Vec<&Encoded> = batch.iter().map(|&index| &encoded[index]).collect();
        let texts = runner.texts(&texts)?;
        let found = text_features(runner.model(), &texts, Branch::Apart, &runner.pass())?;
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
