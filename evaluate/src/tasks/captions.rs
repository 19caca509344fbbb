//! Captions: a model writes one for each image, and they are judged against those of people.

use std::sync::Arc;

use super::grams::{Batch, texts_in_batches};
use super::spec::{NumberSpec, TaskOption, TaskSpec, number};
use super::{Outcome, Predictions, Runner, Task, passes};
use crate::capture::Capture;
use crate::datasets::Kind;
use crate::datasets::captions::CaptionSet;
use crate::datasets::left_out::Omission;
use crate::images::thumbnail;
use crate::metrics::captions::{Captioned, Judged, judge, sample, tokenize};
use crate::models::Model;
use crate::predictions::captions::{Caption, official_id};
use crate::reports::{Example, Item, Retrieved};
use crate::sample::Unit;
use crate::writing::{Ends, Writing, Written, write};
use crate::{Error, Result};

/// Captions that are shown of the best and of the worst.
const N_EXAMPLES: usize = 3;

/// The longer side of a picture that is shown.
const THUMBNAIL: usize = 128;

/// The row of captions.
pub const SPEC: TaskSpec = TaskSpec {
    name: "captions",
    aliases: &["captioning"],
    title: "Captions",
    about: "Captions for images",
    kind: Kind::Captions,
    reads_texts: true,
    dataset: "coco",
    default_split: "test",
    headline: "cider",
    numbers: NUMBERS,
    prediction_ending: Some("json"),
    published_experts: None,
    options: &[TaskOption::Dataset, TaskOption::Writing],
    open: Some(|options, folder| {
        let set = CaptionSet::open(folder, options.dataset, options.split)?;
        let set = set.first(options.limit.unwrap_or(usize::MAX));
        Ok(Box::new(Captioning {
            set: Arc::new(set),
            writing: options.writing,
            with_examples: options.with_examples,
        }))
    }),
};

const NUMBERS: &[NumberSpec] = &[
    number("bleu_1", "BLEU-1", Unit::Fraction, false),
    number("bleu_2", "BLEU-2", Unit::Fraction, false),
    number("bleu_3", "BLEU-3", Unit::Fraction, false),
    number("bleu_4", "BLEU-4", Unit::Fraction, true),
    number("rouge_l", "ROUGE-L", Unit::Fraction, false),
    number("meteor", "METEOR", Unit::Fraction, false),
    number("cider", "CIDEr", Unit::Tenfold, true),
];

/// Captioning of a split.
pub struct Captioning {
    set: Arc<CaptionSet>,
    writing: Writing,
    with_examples: bool,
}

impl Captioning {
    /// On an opened split.
    #[must_use]
    pub fn new(set: Arc<CaptionSet>, writing: Writing) -> Self {
        Self {
            set,
            writing,
            with_examples: true,
        }
    }

    /// A caption for every image, in order.
    ///
    /// # Errors
    /// As [`Task::run`].
    pub fn captions(&self, runner: &Runner<'_>) -> Result<Vec<String>> {
        let model = runner.model().captioner()?;
        let tokenizer = runner.tokenizer()?;
        let ends = Ends::of(tokenizer)?;
        let images: Vec<usize> = (0..self.set.n_images()).collect();
        let all: Vec<Vec<usize>> = images
            .chunks(runner.batch_size())
            .map(<[_]>::to_vec)
            .collect();
        let own = runner.own(all.clone());
        let set = Arc::clone(&self.set);
        let pixels = runner.pictures(own.clone(), move |&image| set.picture(image));
        let mut rows: Vec<u32> = Vec::new();
        for (pixels, batch) in pixels.zip(&own) {
            let images = runner.pixels(pixels?, batch.len())?;
            let written = write(model, &images, &ends, &self.writing, &runner.pass())?;
            rows.extend(written.iter().flat_map(|written| self.row(written)));
            runner.advance(batch.len())?;
        }
        let sizes: Vec<usize> = all.iter().map(Vec::len).collect();
        let rows = runner.gathered(rows, &sizes)?.concat();
        let text = |row: &[u32]| {
            let (n, ids) = row.split_first()?;
            Some(tokenizer.decode(&ids[..*n as usize]))
        };
        let rows = rows.chunks_exact(1 + self.writing.max_tokens);
        Ok(rows.filter_map(text).collect())
    }

    /// A text as numbers, as many for each: how many tokens it has, and these.
    fn row(&self, written: &Written) -> Vec<u32> {
        let mut row = vec![written.ids.len() as u32];
        row.extend(&written.ids);
        row.resize(1 + self.writing.max_tokens, 0);
        row
    }

    /// Judges captions that are at hand, one for each image.
    ///
    /// # Errors
    /// When a picture for the examples cannot be read.
    pub fn judge(&self, captions: &[String]) -> Result<Outcome> {
        let n_images = self.set.n_images();
        let captioned: Vec<Captioned> = (captions.iter().enumerate())
            .map(|(image, caption)| Captioned {
                caption: tokenize(caption),
                references: self
                    .set
                    .captions(image)
                    .iter()
                    .map(|c| tokenize(c))
                    .collect(),
            })
            .collect();
        let judged = judge(&captioned);
        let examples = match self.with_examples {
            true => self.examples(captions, &judged)?,
            false => Vec::new(),
        };
        let ids = (0..n_images).map(|image| official_id(self.set.image_id(image)));
        let official = ids.zip(captions).map(|(id, caption)| {
            Some(Caption {
                image_id: id?,
                caption: caption.clone(),
            })
        });
        let counts = [("images", n_images), ("references", self.set.n_captions())];
        Ok(Outcome {
            sample: sample(&judged),
            counts: counts.map(|(name, n)| (name.to_owned(), n as u64)).into(),
            examples,
            predictions: match official.collect() {
                Some(official) => Predictions::Captions(official),
                None => Predictions::None,
            },
        })
    }

    /// Images whose captions score best and worst by CIDEr, with people's captions.
    fn examples(&self, captions: &[String], judged: &[Judged]) -> Result<Vec<Example>> {
        let mut order: Vec<usize> = (0..judged.len()).collect();
        order.sort_by(|&a, &b| judged[b].cider.total_cmp(&judged[a].cider).then(a.cmp(&b)));
        let n = N_EXAMPLES.min(order.len() / 2);
        let ranked = order.iter().copied().enumerate();
        let best = ranked.clone().take(n).map(|place| (place, true));
        let worst = ranked.rev().take(n).map(|place| (place, false));
        let example = |((place, image), is_best): ((usize, usize), bool)| {
            Ok(Example {
                is_best,
                query: Item::Image {
                    id: self.set.image_id(image).to_owned(),
                    thumbnail: thumbnail(&self.set.picture(image)?, THUMBNAIL)?,
                },
                rank: place as u64 + 1,
                retrieved: vec![Retrieved {
                    item: Item::Text(captions[image].clone()),
                    score: judged[image].cider,
                    is_right: is_best,
                }],
                right: None,
                references: self.set.captions(image).to_vec(),
            })
        };
        best.chain(worst).map(example).collect()
    }
}

impl Task for Captioning {
    fn spec(&self) -> &'static TaskSpec {
        &SPEC
    }

    fn left_out(&self) -> Result<Vec<Omission>> {
        self.set.left_out()
    }

    fn check_predictions(&self) -> Result<()> {
        let ids = (0..self.set.n_images()).map(|image| self.set.image_id(image));
        match ids.clone().find(|id| official_id(id).is_none()) {
            None => Ok(()),
            Some(id) => Err(Error::Text(crate::TextFault::NoImageNumber {
                id: id.into(),
            })),
        }
    }

    fn run(&self, runner: &Runner<'_>) -> Result<Outcome> {
        let n_images = self.set.n_images() as u64;
        runner.progress().start_items("captions", n_images);
        let captions = self.captions(runner);
        runner.progress().finish();
        self.judge(&captions?)
    }

    /// Every caption with its image.
    fn gram_batches(&self, _: &dyn Model, size: usize) -> Vec<Batch> {
        texts_in_batches(self.set.n_captions(), size)
    }

    fn run_gram_batch(&self, runner: &Runner<'_>, batch: &Batch, capture: &Capture) -> Result<()> {
        let (Batch::Texts(examples) | Batch::Images { examples, .. }) = batch;
        passes::gram_pairs(runner, &self.set, examples, capture, passes::Whole::Text)
    }
}
