//! Re-ranking: a dual encoder chooses items, and the same model, reading image and text together, ranks them.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::Runner;
use super::retrieval::Features;
use crate::batch::{Images, Pair, Texts};
use crate::datasets::captions::CaptionSet;
use crate::metrics::reranking::{Reranked, Rest, Shortlist};
use crate::models::{FusionEncoder, Head, LookedAt, Model, ReadText};
use crate::nn::Pass;
use crate::text::Encoded;
use crate::{Error, Result};

/// Queries whose pairs are kept on disk together, where features are: what a stopped run computes again.
const QUERIES_AT_ONCE: usize = 64;

/// The class of pairs that match.
const MATCHES: usize = 1;

/// Ranks the `k` best texts of each image and the `k` best images of each text once more.
///
/// # Errors
/// [`crate::ShortlistFault::TooLong`], when the model cannot judge a pair, a picture cannot be read or decoded, a score is not
/// a number, the user stops it, or the device fails.
pub(super) fn rerank(
    runner: &Runner<'_>,
    set: &Arc<CaptionSet>,
    features: &Features,
    k: usize,
    rest: Rest,
) -> Result<Reranked> {
    let shortlist = Shortlist::new(k, &features.similarities())?;
    let captions =
        (0..set.n_images()).flat_map(|image| set.captions(image).iter().map(String::as_str));
    let texts = runner.encode_captions(captions)?;
    let passes = Passes {
        runner,
        set,
        texts: &texts,
        k,
    };
    let (of_images, of_texts) = match runner.model().is_swayed_by_batch() {
        false => passes.each_pair_once(&shortlist)?,
        true => passes.query_by_query(&shortlist)?,
    };
    Reranked::new(shortlist, of_images, of_texts, rest)
}

/// Whether a model both compares images and texts apart and says how well they match.
///
/// # Errors
/// [`crate::ModelFault::Incapable`] where its family does not, [`Error::NoHead`] where the checkpoint lacks a head.
pub(super) fn check(model: &dyn Model) -> Result<()> {
    model.dual()?;
    model.fusion()?;
    match model.n_classes(Head::Ranking) {
        Ok(_) => Ok(()),
        Err(_) => model.n_classes(Head::Matching).map(drop),
    }
}

/// The scores of texts with an image: `(texts, 1)`, by the ranking head or else by the matching head's logit of the
/// class for a match, which is no probability.
fn judged(model: &dyn FusionEncoder, texts: &Texts, image: &LookedAt) -> Result<Tensor> {
    if model.n_classes(Head::Ranking).is_ok() {
        let read = model.read_text(texts)?;
        let read: Vec<&ReadText> = read.iter().collect();
        return model.rank_read(texts, &read, image);
    }
    let images = image.images.of_texts(texts.ids.dim(0)?)?;
    matched(model, texts, &images)
}

/// The same for texts that have an image each.
fn judged_pairs(model: &dyn FusionEncoder, texts: &Texts, images: &Images) -> Result<Tensor> {
    match model.n_classes(Head::Ranking) {
        Ok(_) => model.rank(&[texts], images, &[Pass::new()]),
        Err(_) => matched(model, texts, images),
    }
}

fn matched(model: &dyn FusionEncoder, texts: &Texts, images: &Images) -> Result<Tensor> {
    let state = model.matched(&Pair::new(texts, images), &Pass::new())?;
    let logits = model.score(Head::Matching, &state)?;
    Ok(logits.narrow(D::Minus1, MATCHES, 1)?)
}

/// Scores of the pairs of a shortlist, those of the texts of each image and those of the images of each text, in its
/// order; each list is a batch, as published. Without gradients.
///
/// # Errors
/// When the model cannot judge a pair, shapes do not fit or the device fails.
pub fn shortlist_scores(
    model: &dyn FusionEncoder,
    images: &Images,
    texts: &Texts,
    shortlist: &Shortlist,
) -> Result<[Vec<f32>; 2]> {
    let numbers = |found: Tensor| -> Result<Vec<f32>> {
        Ok(found.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    };
    let rows = |list: &[u32]| Tensor::new(list, texts.ids.device());
    let (mut of_images, mut of_texts) = (Vec::new(), Vec::new());
    for (image, list) in shortlist
        .of_images()
        .chunks_exact(shortlist.k())
        .enumerate()
    {
        let looked = model.look_at(&images.narrow(image, 1)?)?;
        let found = judged(model, &texts.select(&rows(list)?)?, &looked)?;
        of_images.extend(numbers(found)?);
    }
    for (text, list) in shortlist.of_texts().chunks_exact(shortlist.k()).enumerate() {
        let same = vec![text as u32; list.len()];
        let images = images.select(&rows(list)?)?;
        let found = judged_pairs(model, &texts.select(&rows(&same)?)?, &images)?;
        of_texts.extend(numbers(found)?);
    }
    Ok([of_images, of_texts])
}

/// Fused passes over the pairs of a shortlist.
struct Passes<'a> {
    runner: &'a Runner<'a>,
    set: &'a Arc<CaptionSet>,
    texts: &'a [Encoded],
    k: usize,
}

impl Passes<'_> {
    /// Scores of the texts of each image and of the images of each text. A pair that both lists have is computed once,
    /// and an image is decoded once for all its texts.
    fn each_pair_once(&self, shortlist: &Shortlist) -> Result<(Vec<f32>, Vec<f32>)> {
        let (n_images, k) = (self.set.n_images(), self.k);
        let mut pairs: Vec<Vec<u32>> = shortlist
            .of_images()
            .chunks_exact(k)
            .map(<[u32]>::to_vec)
            .collect();
        for (text, images) in shortlist.of_texts().chunks_exact(k).enumerate() {
            for &image in images {
                pairs[image as usize].push(text as u32);
            }
        }
        for texts in &mut pairs {
            texts.sort_unstable();
            texts.dedup();
        }
        let jobs: Vec<usize> = (0..n_images).collect();
        let sizes: Vec<usize> = pairs.iter().map(Vec::len).collect();
        let scores = self.in_parts("pairs", &jobs, &sizes, |own| {
            let pictures = Arc::clone(self.set);
            let batches = own.iter().map(|&image| vec![image]).collect();
            let pixels = (self.runner).pictures(batches, move |&image| pictures.picture(image));
            let model = self.runner.model().fusion()?;
            let mut scores = Vec::new();
            for (pixels, &image) in pixels.zip(own) {
                let looked = model.look_at(&self.runner.pixels(pixels?, 1)?)?;
                for batch in pairs[image].chunks(self.runner.batch_size()) {
                    let found = judged(model, &self.texts_of(batch)?, &looked)?;
                    scores.extend(self.runner.rows(&found)?);
                    self.runner.advance(batch.len())?;
                }
            }
            Ok(scores)
        })?;
        let score = |image: usize, text: u32| {
            let place = pairs[image].binary_search(&text);
            place.map_or(f32::NAN, |place| scores[image][place])
        };
        let of_images = shortlist.of_images().iter().enumerate();
        let of_texts = shortlist.of_texts().iter().enumerate();
        Ok((
            of_images.map(|(at, &text)| score(at / k, text)).collect(),
            of_texts
                .map(|(at, &image)| score(image as usize, (at / k) as u32))
                .collect(),
        ))
    }

    /// The same of a model whose numbers depend on the other rows of a batch: a batch is the list of one query, as published.
    fn query_by_query(&self, shortlist: &Shortlist) -> Result<(Vec<f32>, Vec<f32>)> {
        let model = self.runner.model().fusion()?;
        let advanced = |found: Tensor| {
            self.runner.advance(self.k)?;
            self.runner.rows(&found)
        };
        let picture = |&image: &usize| self.set.picture(image);
        let images: Vec<usize> = (0..self.set.n_images()).collect();
        let sizes = vec![self.k; images.len()];
        let of_images = self.in_parts("texts of images", &images, &sizes, |own| {
            let mut scores = Vec::new();
            for &image in own {
                let texts = &shortlist.of_images()[image * self.k..][..self.k];
                let looked = model.look_at(&self.runner.picture_batch(&[image], picture)?)?;
                scores.extend(advanced(judged(model, &self.texts_of(texts)?, &looked)?)?);
            }
            Ok(scores)
        })?;
        let texts: Vec<usize> = (0..self.texts.len()).collect();
        let sizes = vec![self.k; texts.len()];
        let of_texts = self.in_parts("images of texts", &texts, &sizes, |own| {
            let mut scores = Vec::new();
            for &text in own {
                let images = &shortlist.of_texts()[text * self.k..][..self.k];
                let images: Vec<usize> = images.iter().map(|&image| image as usize).collect();
                let images = self.runner.picture_batch(&images, picture)?;
                let texts = self.texts_of(&vec![text as u32; self.k])?;
                scores.extend(advanced(judged_pairs(model, &texts, &images)?)?);
            }
            Ok(scores)
        })?;
        Ok((of_images.concat(), of_texts.concat()))
    }

    fn texts_of(&self, texts: &[u32]) -> Result<Texts> {
        let texts = texts.iter().map(|&text| &self.texts[text as usize]);
        self.runner.texts(&texts.collect::<Vec<_>>())
    }

    /// The outputs of `compute` for jobs, of `sizes` numbers each: part by part, so that a stopped run goes on at its
    /// part, and shared by ranks.
    fn in_parts(
        &self,
        what: &str,
        jobs: &[usize],
        sizes: &[usize],
        compute: impl Fn(&[usize]) -> Result<Vec<f32>>,
    ) -> Result<Vec<Vec<f32>>> {
        let parts = || jobs.chunks(QUERIES_AT_ONCE);
        let of_own = |jobs: &[usize]| -> usize {
            let own = self.runner.own(jobs.to_vec());
            own.iter().map(|&job| sizes[job]).sum()
        };
        let n_own: usize = parts().map(of_own).sum();
        self.runner.progress().start_items(what, n_own as u64);
        let mut scores = Vec::with_capacity(jobs.len());
        for jobs in parts() {
            let n = of_own(jobs);
            let sizes = &sizes[jobs[0]..][..jobs.len()];
            let name = format!("{}.top{}.{}", what.replace(' ', "-"), self.k, jobs[0]);
            let mut is_kept = true;
            let found = self.runner.cached(&name, sizes.iter().sum(), || {
                is_kept = false;
                let own = compute(&self.runner.own(jobs.to_vec()))?;
                Ok(self.runner.gathered(own, sizes)?.concat())
            });
            let found = found.inspect_err(|_| self.runner.progress().finish())?;
            if is_kept {
                self.runner.advance(n)?;
            }
            let mut left = found.as_slice();
            for &size in sizes {
                let (of_job, others) = left.split_at_checked(size).ok_or(Error::LengthsDiffer {
                    what: "scores and pairs of a part",
                    left: found.len(),
                    right: sizes.iter().sum(),
                })?;
                scores.push(of_job.to_vec());
                left = others;
            }
        }
        self.runner.progress().finish();
        Ok(scores)
    }
}
