//! Tokens that hardly any training saw.
//!
//! Land and Bartolo 2024, "Fishing for Magikarp: Automatically Detecting Under-trained Tokens in Large Language Models",
//! <https://arxiv.org/abs/2405.05417>; the thresholds are those of mergekit.

use std::collections::BTreeSet;

use super::table::Table;
use super::tokens::Tokens;
use crate::Result;

/// The share of rows that are called badly trained.
const QUANTILE: f64 = 0.01;

/// The least cosine with the mean of unused rows that means anything.
const LEAST_COSINE: f64 = 0.5;

/// Texts within tokens that nobody uses.
const UNUSED: [&str; 2] = ["unused_token", "reserved_special_token"];

/// The ids of tokens that training saw. Those are left out that have no use by their names, whose embeddings are among
/// the shortest hundredth (of models with a head), or that are as near to the mean of unused rows as the nearest
/// hundredth, and at a cosine above 0.5.
pub(super) fn well_trained(
    tokens: &Tokens,
    embeddings: &Table,
    head: Option<&Table>,
) -> Result<BTreeSet<usize>> {
    let used: BTreeSet<usize> = tokens.all.iter().map(|(id, _)| *id).collect();
    let mut unused: BTreeSet<usize> = (0..embeddings.rows)
        .filter(|row| !used.contains(row))
        .collect();
    for (id, token) in &tokens.all {
        let text = token.shown();
        if UNUSED.iter().any(|part| text.contains(part)) {
            unused.insert(*id);
        }
    }
    let mut bad = unused.clone();
    if head.is_some() {
        let mut lengths = Vec::with_capacity(embeddings.rows);
        embeddings.each(|_, row| lengths.push(length(row)))?;
        let least = quantile(&lengths, QUANTILE);
        let short = lengths
            .iter()
            .enumerate()
            .filter(|(_, length)| **length < least);
        bad.extend(short.map(|(row, _)| row));
    }
    for table in [Some(embeddings), head].into_iter().flatten() {
        let own: BTreeSet<usize> = unused
            .iter()
            .copied()
            .filter(|row| *row < table.rows)
            .collect();
        if own.is_empty() {
            continue;
        }
        let mut mean = vec![0.0; table.width];
        table.each(|row, values| {
            if own.contains(&row) {
                for (mean, value) in mean.iter_mut().zip(values) {
                    *mean += value / own.len() as f64;
                }
            }
        })?;
        let of_mean = length(&mean);
        let mut cosines = Vec::with_capacity(table.rows);
        table.each(|_, row| {
            let product: f64 = row.iter().zip(&mean).map(|(a, b)| a * b).sum();
            cosines.push(product / (length(row) * of_mean).max(1e-8));
        })?;
        let most = quantile(&cosines, 1.0 - QUANTILE).max(LEAST_COSINE);
        let near = cosines
            .iter()
            .enumerate()
            .filter(|(_, cosine)| **cosine > most);
        bad.extend(near.map(|(row, _)| row));
    }
    Ok(used.difference(&bad).copied().collect())
}

pub(super) fn length(row: &[f64]) -> f64 {
    row.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// A quantile, between two neighbors by the share of the way.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = share * last as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (at - at.floor()) * (sorted[high.min(last)] - sorted[low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_lies_between_its_neighbors() {
        // As `torch.quantile` has it: 0.25 of the way through 1, 2, 4 is halfway from 1 to 2.
        assert_eq!(quantile(&[4.0, 1.0, 2.0], 0.25), 1.5);
        assert_eq!(quantile(&[4.0, 1.0, 2.0], 1.0), 4.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
