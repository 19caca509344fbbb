//! Texts under way.

use rayon::prelude::*;

use super::{Ends, Writing, Written};
use crate::{Error, Result};

/// A text under way, or at its end.
#[derive(Clone, Debug)]
struct Draft {
    ids: Vec<u32>,
    log_prob: f64,
}

/// The texts of one image.
#[derive(Debug)]
struct Image {
    open: Vec<Draft>,
    done: Vec<Written>,
}

/// The texts of a batch of images: rows are the open ones of each image in turn.
pub struct Beams<'a> {
    images: Vec<Image>,
    ends: &'a Ends,
    writing: &'a Writing,
}

/// The next tokens to compute.
pub struct Step {
    /// The row that each text goes on from; none where every row goes on from itself.
    pub rows: Option<Vec<u32>>,
    /// The last token of each.
    pub ids: Vec<u32>,
}

/// A token that may come next.
#[derive(Clone, Copy)]
struct Candidate {
    log_prob: f64,
    draft: usize,
    id: u32,
}

impl<'a> Beams<'a> {
    pub fn new(n_images: usize, ends: &'a Ends, writing: &'a Writing) -> Self {
        let image = || Image {
            open: vec![Draft {
                ids: Vec::new(),
                log_prob: 0.0,
            }],
            done: Vec::new(),
        };
        Self {
            images: (0..n_images).map(|_| image()).collect(),
            ends,
            writing,
        }
    }

    /// Texts that are open.
    pub fn n_rows(&self) -> usize {
        self.images.iter().map(|image| image.open.len()).sum()
    }

    /// Goes on by one token. `logits` has a row for each open text.
    pub fn advance(&mut self, logits: &[f32], n_ids: usize) -> Result<Step> {
        let (ends, writing) = (self.ends, self.writing);
        let mut first = 0;
        let mut jobs = Vec::with_capacity(self.images.len());
        for (number, image) in self.images.iter_mut().enumerate() {
            let n = image.open.len();
            jobs.push((number, first, &logits[first * n_ids..][..n * n_ids], image));
            first += n;
        }
        let went_on: Vec<Vec<usize>> = jobs
            .into_par_iter()
            .map(|(number, first, logits, image)| {
                let drafts = image.advance(logits, n_ids, ends, writing);
                let drafts = drafts.ok_or(Error::LogitNotANumber { example: number })?;
                Ok(drafts.into_iter().map(|draft| first + draft).collect())
            })
            .collect::<Result<_>>()?;
        let rows = went_on.concat();
        let stay = rows.len() == first && rows.iter().enumerate().all(|(to, &from)| to == from);
        let last = |draft: &Draft| draft.ids.last().copied().unwrap_or(ends.first);
        let open = self.images.iter().flat_map(|image| &image.open);
        Ok(Step {
            ids: open.map(last).collect(),
            rows: (!stay).then(|| rows.iter().map(|&row| row as u32).collect()),
        })
    }

    /// The best text of each image.
    pub fn finish(self) -> Vec<Written> {
        let worth = |written: &Written| {
            let n = written.ids.len() + usize::from(written.stop.is_some());
            written.log_prob_with_stop / (n.max(1) as f64).powf(self.writing.length_penalty)
        };
        let best = |image: Image| {
            let cut = image.open.into_iter().map(|draft| Written {
                ids: draft.ids,
                stop: None,
                log_prob: draft.log_prob,
                log_prob_with_stop: draft.log_prob,
            });
            let all: Vec<Written> = match image.done.is_empty() {
                true => cut.collect(),
                false => image.done,
            };
            let nothing = Written {
                ids: Vec::new(),
                stop: None,
                log_prob: 0.0,
                log_prob_with_stop: 0.0,
            };
            // Of several the first one.
            let better = |best, other| match worth(&other) > worth(&best) {
                true => other,
                false => best,
            };
            all.into_iter().reduce(better).unwrap_or(nothing)
        };
        self.images.into_iter().map(best).collect()
    }
}

impl Image {
    /// The open texts by one token more, and of each the text that it came from; none where a logit is
    /// not a number.
    fn advance(
        &mut self,
        logits: &[f32],
        n_ids: usize,
        ends: &Ends,
        writing: &Writing,
    ) -> Option<Vec<usize>> {
        let width = writing.beams.max(1);
        // Each text may end in as many ways as there are stops, and the others go on.
        let n_best = width + width * ends.stops.len();
        let mut candidates = Vec::new();
        for (draft, logits) in logits.chunks_exact(n_ids.max(1)).enumerate() {
            if logits.iter().any(|logit| logit.is_nan()) {
                return None;
            }
            let total = log_sum(logits);
            for id in largest(logits, n_best, &ends.never) {
                candidates.push(Candidate {
                    log_prob: self.open[draft].log_prob + f64::from(logits[id as usize]) - total,
                    draft,
                    id,
                });
            }
        }
        candidates.sort_by(|a, b| b.log_prob.total_cmp(&a.log_prob));
        let mut open = Vec::with_capacity(width);
        let mut from = Vec::with_capacity(width);
        for (rank, candidate) in candidates.into_iter().enumerate() {
            let draft = &self.open[candidate.draft];
            if ends.stops.contains(&candidate.id) {
                // One that is not among the best is no end that would have been chosen.
                if rank < width {
                    self.done.push(Written {
                        ids: draft.ids.clone(),
                        stop: Some(candidate.id),
                        log_prob: draft.log_prob,
                        log_prob_with_stop: candidate.log_prob,
                    });
                }
            } else if open.len() < width {
                let mut ids = draft.ids.clone();
                ids.push(candidate.id);
                open.push(Draft {
                    ids,
                    log_prob: candidate.log_prob,
                });
                from.push(candidate.draft);
            }
        }
        if self.done.len() >= width {
            open.clear();
            from.clear();
        }
        self.open = open;
        Some(from)
    }
}

/// `ln Σ exp` of logits.
fn log_sum(logits: &[f32]) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits
        .iter()
        .map(|&logit| f64::from(logit - most).exp())
        .sum();
    f64::from(most) + sum.ln()
}

/// The ids of the `n` largest logits, largest first, of equal ones the first.
fn largest(logits: &[f32], n: usize, never: &[u32]) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(n + 1);
    for (&logit, id) in logits.iter().zip(0_u32..) {
        let is_worse = best.len() == n && best.last().is_some_and(|last| logit <= last.0);
        if is_worse || never.contains(&id) {
            continue;
        }
        let place = best.partition_point(|other| other.0 >= logit);
        best.insert(place, (logit, id));
        best.truncate(n);
    }
    best.into_iter().map(|(_, id)| id).collect()
}
