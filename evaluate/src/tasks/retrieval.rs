//! Retrieval: images and texts apart, then every image with every text.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use merge::layouts;

pub use super::cross::pair_scores;
use super::cross::{self, Candidates};
use super::grams::{Batch, images_in_batches, texts_in_batches};
use super::passes;
use super::reranking;
pub use super::reranking::shortlist_scores;
use super::scores::Similarities;
use super::spec::{NumberSpec, TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task};
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::captions::CaptionSet;
use crate::datasets::left_out::Omission;
use crate::images::thumbnail;
use crate::metrics::reranking::{Reranked, Rest};
use crate::metrics::retrieval::{
    Captions, ScoreMatrix, Standing, Standings, Ties, sample, standings,
};
use crate::models::{Head, Model};
use crate::predictions::retrieval::ScoreFile;
use crate::predictions::score_file::{self, Retrieved, Scores};
use crate::reports::{Example, Item, Retrieved as Shown};
use crate::sample::Unit;
use crate::text::TextRule;
use crate::{Error, Result};

/// Queries that are shown of the best and of the worst, each way.
const N_EXAMPLES: usize = 3;

/// The longer side of a picture that is shown.
const THUMBNAIL: usize = 128;

/// Items that are shown of each.
const N_SHOWN: usize = 5;

/// The experts that a merge takes for it, and its names there.
const EXPERTS: layouts::Task = layouts::Task::Retrieval;

/// The row of retrieval.
pub const SPEC: TaskSpec = TaskSpec {
    name: EXPERTS.name(),
    aliases: EXPERTS.aliases(),
    title: "Retrieval",
    about: EXPERTS.about(),
    kind: Kind::Captions,
    reads_texts: true,
    dataset: "coco",
    default_split: "test",
    headline: "rsum",
    numbers: NUMBERS,
    prediction_ending: Some("safetensors"),
    published_experts: Some(EXPERTS),
    options: &[
        TaskOption::Dataset,
        TaskOption::Ties,
        TaskOption::WithoutRepeats,
        TaskOption::Candidates,
        TaskOption::Rerank,
    ],
    open: Some(|options, folder| {
        let set = CaptionSet::open(folder, options.dataset, options.split)?;
        let set = set.first(options.limit.unwrap_or(usize::MAX));
        set.check_pictures()?;
        let set = match options.without_repeats {
            true => set.without_repeats(),
            false => set,
        };
        let candidates = options
            .candidates
            .map(|(n, path)| Candidates::open(n, path, &set));
        let task = Retrieval::new(Arc::new(set), options.ties).reranked(options.rerank);
        let mut task = task.among(candidates.transpose()?);
        task.without_repeats = options.without_repeats;
        task.candidates_from = options.candidates.map(|(n, path)| (n, path.into()));
        Ok(Box::new(match options.with_examples {
            true => task,
            false => task.without_examples(),
        }))
    }),
};

const NUMBERS: &[NumberSpec] = &[
    number("tr_r1", "TR@1", Unit::Fraction, true),
    number("tr_r5", "TR@5", Unit::Fraction, false),
    number("tr_r10", "TR@10", Unit::Fraction, false),
    number("ir_r1", "IR@1", Unit::Fraction, true),
    number("ir_r5", "IR@5", Unit::Fraction, false),
    number("ir_r10", "IR@10", Unit::Fraction, false),
    number("rsum", "RSUM", Unit::PercentSum, true),
    number("tr_median_rank", "TR median rank", Unit::Rank, false),
    number("tr_mean_rank", "TR mean rank", Unit::Rank, false),
    number("ir_median_rank", "IR median rank", Unit::Rank, false),
    number("ir_mean_rank", "IR mean rank", Unit::Rank, false),
];

/// Retrieval on a split of captioned images. An image may have any number of captions.
pub struct Retrieval {
    set: Arc<CaptionSet>,
    /// Of each image, the place of its first caption among all.
    first_texts: Vec<usize>,
    ties: Ties,
    with_examples: bool,
    candidates: Option<Candidates>,
    /// The number of candidates of each query, and the file with the scores that choose them.
    candidates_from: Option<(usize, PathBuf)>,
    /// Whether captions count once that a model reads as one text.
    without_repeats: bool,
    /// The number of items of each query that are ranked once more, and the order of the others.
    rerank: Option<(usize, Rest)>,
}

/// Features of a split: of images in order, and of the texts of each image in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `n_images × width`.
    pub images: Vec<f32>,
    /// `n_texts × width`.
    pub texts: Vec<f32>,
    /// Numbers of a feature.
    pub width: usize,
}

impl Features {
    /// The products of all images and texts.
    #[must_use]
    pub fn similarities(&self) -> Similarities {
        Similarities::new(self.images.clone(), self.texts.clone(), self.width)
    }
}

impl Retrieval {
    /// On an opened split.
    #[must_use]
    pub fn new(set: Arc<CaptionSet>, ties: Ties) -> Self {
        let counts = (0..set.n_images()).map(|image| set.captions(image).len());
        let first_texts = counts.scan(0, |next, n| Some(std::mem::replace(next, *next + n)));
        Self {
            first_texts: first_texts.collect(),
            set,
            ties,
            with_examples: true,
            candidates: None,
            candidates_from: None,
            without_repeats: false,
            rerank: None,
        }
    }

    /// Ranks the `k` best of each query once more, by image and text together.
    #[must_use]
    pub fn reranked(self, rerank: Option<(usize, Rest)>) -> Self {
        Self { rerank, ..self }
    }

    /// Asks a ranking head of chosen pairs alone ([`Candidates`]).
    #[must_use]
    pub fn among(self, candidates: Option<Candidates>) -> Self {
        Self { candidates, ..self }
    }

    /// Numbers alone, no retrieved examples.
    #[must_use]
    pub fn without_examples(self) -> Self {
        Self {
            with_examples: false,
            ..self
        }
    }

    /// The images and captions.
    #[must_use]
    pub fn set(&self) -> &CaptionSet {
        &self.set
    }

    /// The task without captions that a model with this rule reads like another one of their image, if that
    /// is asked for and there are any: published code compares captions after its rule.
    ///
    /// # Errors
    /// When the file of candidates cannot be read.
    fn as_read(&self, rule: TextRule) -> Result<Option<Self>> {
        if !self.without_repeats || rule == TextRule::Verbatim {
            return Ok(None);
        }
        let (set, kept) = self.set.without_repeats_as(|caption| rule.apply(caption));
        if kept.len() == self.set.n_captions() {
            return Ok(None);
        }
        let candidates = (self.candidates_from.as_ref()).map(|(n, path)| {
            let scores = ScoreFile::open(path)?.all_scores()?;
            let rows = scores.chunks_exact(self.set.n_captions().max(1));
            let scores = rows.flat_map(|row| kept.iter().map(|&text| row[text]));
            Ok::<_, Error>(Candidates::new(*n, scores.collect(), kept.len()))
        });
        let task = Self {
            with_examples: self.with_examples,
            rerank: self.rerank,
            ..Self::new(Arc::new(set), self.ties)
        };
        Ok(Some(task.among(candidates.transpose()?)))
    }

    /// Features of every image, once each.
    ///
    /// # Errors
    /// As [`Task::run`].
    pub fn image_features(&self, runner: &Runner<'_>) -> Result<Vec<f32>> {
        let set = Arc::clone(&self.set);
        passes::features_of_images(runner, self.set.n_images(), move |image| set.picture(image))
    }

    /// Features of every caption, computed once for each distinct one.
    ///
    /// # Errors
    /// As [`Task::run`].
    pub fn text_features(&self, runner: &Runner<'_>) -> Result<Vec<f32>> {
        passes::of_texts(runner, self.texts())
    }

    /// Captions of all images, one image after the other.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let images = 0..self.set.n_images();
        images.flat_map(|image| self.set.captions(image).iter().map(String::as_str))
    }

    /// Caption `text` of [`texts`](Self::texts).
    fn text(&self, text: usize) -> &str {
        // The last image that begins at or before it; images without captions begin where the next
        // does.
        let image = self.first_texts.partition_point(|&first| first <= text) - 1;
        &self.set.captions(image)[text - self.first_texts[image]]
    }

    /// Ranks by scores that are at hand.
    ///
    /// # Errors
    /// When a score is not a number, or a picture for the examples cannot be read.
    pub fn judge(&self, scores: Scores) -> Result<Outcome> {
        let n_images = self.set.n_images();
        let image_ids: Vec<i64> = (0..n_images as i64).collect();
        let image_of_text: Vec<i64> = (0..n_images)
            .flat_map(|image| std::iter::repeat_n(image as i64, self.set.captions(image).len()))
            .collect();
        let n_texts = image_of_text.len();
        let captions = Captions::new(&image_ids, &image_of_text)?;
        let (found, examples) = match &scores {
            Scores::Features(features) => {
                self.ranked(&features.similarities(), None, &captions, &image_of_text)
            }
            Scores::Reranked(features, reranked) => {
                let matrix = features.similarities();
                self.ranked(&matrix, Some(reranked), &captions, &image_of_text)
            }
            Scores::Pairs(pairs) => {
                let matrix = score_file::pairs(pairs, n_images, n_texts)?;
                self.ranked(&matrix, None, &captions, &image_of_text)
            }
        }?;
        let counts = [("images", n_images), ("texts", n_texts)];
        let ranks = |of: &[Standing]| of.iter().map(|s| s.rank(self.ties)).collect();
        let retrieved = Retrieved {
            scores,
            image_names: (0..n_images)
                .map(|image| self.set.image_id(image).to_owned())
                .collect(),
            image_of_text,
            image_ranks: ranks(&found.of_images),
            text_ranks: ranks(&found.of_texts),
            ties: self.ties.to_string(),
        };
        Ok(Outcome {
            sample: sample(&found, &captions, self.ties),
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples,
            predictions: Predictions::Retrieved(Box::new(retrieved)),
        })
    }

    /// The standing of every query, and the examples to show of it.
    fn ranked(
        &self,
        matrix: &impl ScoreMatrix<Score = f32>,
        reranked: Option<&Reranked>,
        captions: &Captions,
        image_of_text: &[i64],
    ) -> Result<(Standings, Vec<Example>)> {
        let found = standings(matrix, captions)?;
        let found = match reranked {
            Some(reranked) => reranked.standings(&found, captions),
            None => found,
        };
        let examples = match self.with_examples {
            true => self.examples(matrix, reranked, &found.of_images, image_of_text)?,
            false => Vec::new(),
        };
        Ok((found, examples))
    }

    /// Images with the best and the worst ranks, with the texts that were found for them.
    fn examples(
        &self,
        scores: &impl ScoreMatrix<Score = f32>,
        reranked: Option<&Reranked>,
        standings: &[Standing],
        image_of_text: &[i64],
    ) -> Result<Vec<Example>> {
        let mut order: Vec<usize> = (0..standings.len()).collect();
        order.sort_by(|&a, &b| {
            let rank = |image: usize| standings[image].rank(Ties::Pessimistic);
            rank(a).total_cmp(&rank(b)).then(a.cmp(&b))
        });
        let n = N_EXAMPLES.min(order.len() / 2);
        let best = order[..n].iter().map(|&image| (image, true));
        let worst = order[order.len() - n..]
            .iter()
            .rev()
            .map(|&image| (image, false));
        let mut row = vec![0.0; image_of_text.len()];
        let texts: Vec<&str> = self.texts().collect();
        let mut examples = Vec::new();
        for (image, is_best) in best.chain(worst) {
            let found = match reranked {
                Some(reranked) => reranked.texts_of(image),
                None => {
                    scores.read(image, 0, &mut row)?;
                    let mut found: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
                    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                    found
                }
            };
            let retrieved = found.iter().take(N_SHOWN).map(|&(text, score)| Shown {
                item: Item::Text(texts[text as usize].to_owned()),
                score: f64::from(score),
                is_right: image_of_text[text as usize] == image as i64,
            });
            let retrieved: Vec<Shown> = retrieved.collect();
            let has_right = retrieved.iter().any(|item| item.is_right);
            examples.push(Example {
                is_best,
                query: Item::Image {
                    id: self.set.image_id(image).to_owned(),
                    thumbnail: thumbnail(&self.set.picture(image)?, THUMBNAIL)?,
                },
                rank: standings[image].rank(Ties::Pessimistic) as u64,
                retrieved,
                right: (!has_right).then(|| Item::Text(self.set.captions(image)[0].clone())),
                references: Vec::new(),
            });
        }
        Ok(examples)
    }
}

impl Task for Retrieval {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        if let Some(task) = self.as_read(runner.model().input().text.rule)? {
            return task.run(runner);
        }
        if self.rerank.is_some() {
            // Nothing is computed for a model that could not go on.
            reranking::check(runner.model())?;
        }
        // A model whose images and texts meet only in a ranking head is asked of every pair.
        if runner.model().dual().is_err() && runner.model().n_classes(Head::Ranking).is_ok() {
            let scores = cross::scores(runner, &self.set, self.candidates.as_ref())?;
            return self.judge(Scores::Pairs(scores));
        }
        if self.candidates.is_some() {
            return Err(runner
                .model()
                .cannot("score chosen pairs of images and texts"));
        }
        let (n_images, n_texts) = (self.set.n_images(), self.set.n_captions());
        let texts = runner.cached("texts", n_texts, || self.text_features(runner))?;
        let images = runner.cached("images", n_images, || self.image_features(runner))?;
        let features = Features {
            width: images.len() / n_images.max(1),
            images,
            texts,
        };
        self.judge(match self.rerank {
            Some((k, rest)) => {
                let reranked = reranking::rerank(runner, &self.set, &features, k, rest)?;
                Scores::Reranked(features, reranked)
            }
            None => Scores::Features(features),
        })
    }

    /// Every caption once, and every image as often as it has captions, as published code counts
    /// pairs: images of one number of captions make up a batch. Where they meet only together, every
    /// caption with its image.
    fn gram_batches(&self, model: &dyn Model, size: usize) -> Vec<Batch> {
        if model.dual().is_err() {
            return texts_in_batches(self.set.n_captions(), size);
        }
        let mut by_count: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for image in 0..self.set.n_images() {
            let count = self.set.captions(image).len() as u32;
            by_count.entry(count).or_default().push(image);
        }
        let images = by_count
            .iter()
            .flat_map(|(&times, images)| images_in_batches(images, times, size));
        let texts = texts_in_batches(self.set.n_captions(), size);
        images.chain(texts).collect()
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        if let (Err(_), Batch::Texts(examples)) = (runner.model().dual(), batch) {
            let pooled = passes::Whole::Pooled;
            return passes::gram_pairs(runner, &self.set, examples, capture, pooled);
        }
        let picture = |image| self.set.picture(image);
        let text = |text| self.text(text);
        passes::gram_batch(runner, batch, capture, picture, text)
    }
}
