//! The source of each row of the output's embeddings.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::names::{ROW_PER_TOKEN, names_with_rows};
use super::view::{Row, view_rows};
use crate::beside::vocabulary::Vocabulary;
use crate::plan::checkpoints::Models;
use crate::{Checkpoint, MergeFault, Result};

/// The recipe's rule for a token.
pub(super) struct Rule {
    /// The row that models without the token get.
    pub(super) row: Option<Row>,
    /// Whether models with the token get it, too.
    pub(super) force: bool,
}

/// The rows of each source that has a tensor.
type RowsOfEach = Vec<Arc<[Row]>>;

/// Decides where rows come from.
pub(super) struct Rows<'a> {
    /// The tokens of the output.
    pub(super) wanted: &'a Vocabulary,
    /// The divisor of the number of rows.
    pub(super) multiple: Option<usize>,
    /// The recipe's rules for single tokens.
    pub(super) rules: BTreeMap<usize, Rule>,
    /// The tokens of each source.
    pub(super) models: Vec<&'a Vocabulary>,
    /// The base among the sources.
    pub(super) base: Option<usize>,
}

impl Rows<'_> {
    /// Puts views in place of the sources whose tensors have a row per token. Returns how many rows
    /// those had, and how many all have now.
    pub(super) fn rearrange(&self, models: &mut Models) -> Result<(Vec<Option<usize>>, usize)> {
        let originals = models.sources.clone();
        let names = names_with_rows(&originals);
        if names.is_empty() {
            return Err(MergeFault::NoEmbeddings {
                known: ROW_PER_TOKEN.join(", "),
            }
            .into());
        }
        // Embeddings and heads mostly have the same rows.
        let mut known: BTreeMap<Vec<(usize, usize)>, RowsOfEach> = BTreeMap::new();
        let mut rows: Vec<BTreeMap<String, Arc<[Row]>>> = vec![BTreeMap::new(); originals.len()];
        let mut n_before = vec![None; originals.len()];
        let mut n_rows = 0;
        for name in names {
            let sizes = sizes_of(&originals, &name);
            let each = known
                .entry(sizes.clone())
                .or_insert_with(|| self.of(&sizes));
            for (&(source, own_rows), rows_of) in sizes.iter().zip(each.iter()) {
                n_rows = n_rows.max(rows_of.len());
                rows[source].insert(name.clone(), Arc::clone(rows_of));
                n_before[source].get_or_insert(own_rows);
            }
        }
        view_rows(models, &originals, rows);
        Ok((n_before, n_rows))
    }

    /// The rows of each of the sources that have a tensor, given how many rows it has there.
    fn of(&self, sizes: &[(usize, usize)]) -> RowsOfEach {
        let donor = self.base.unwrap_or(0);
        let of_donor = sizes.iter().find(|(source, _)| *source == donor);
        // Rows that only fill up stay: those of the base or the first model, if it has any.
        // mergekit's `pad_to_multiple_of` counts from the tokens.
        let filled = of_donor
            .filter(|_| self.multiple.is_none())
            .filter(|(source, n)| *n > self.models[*source].n_rows());
        let n_rows = filled.map_or(0, |(_, n)| *n).max(self.wanted.n_rows());
        let n_tokens = self.wanted.n_rows();
        let n_rows = n_rows.next_multiple_of(self.multiple.unwrap_or(1));
        let taken: BTreeSet<usize> = self.wanted.0.values().copied().collect();
        let ids: Vec<BTreeSet<usize>> = (self.models.iter())
            .map(|vocabulary| vocabulary.0.values().copied().collect())
            .collect();
        let is_filling = |source: usize, row: usize| !ids[source].contains(&row);
        let mut rows = vec![vec![Row::Zero; n_rows]; sizes.len()];
        for row in (0..n_rows).filter(|row| !taken.contains(row)) {
            let fills = |&&(source, n): &&(usize, usize)| row < n && is_filling(source, row);
            let common = of_donor.filter(fills);
            for (own, rows) in sizes.iter().zip(&mut rows) {
                if let Some(&(source, _)) = Some(own).filter(fills).or(common) {
                    rows[row] = Row::Of { source, row };
                }
            }
        }
        if self.multiple.is_some() {
            // As mergekit has it, after the mean of all rows that a new token should begin with.
            for rows in &mut rows {
                rows[n_tokens..].fill(Row::MeanOfFirst(n_tokens));
            }
        }
        for (token, &id) in &self.wanted.0 {
            let found: Vec<(usize, usize)> = (sizes.iter())
                .filter_map(|&(source, n_rows)| {
                    let row = *self.models[source].0.get(token)?;
                    (row < n_rows).then_some((source, row))
                })
                .collect();
            let of_base = found.iter().find(|(source, _)| Some(*source) == self.base);
            let instead = match (found.as_slice(), of_base) {
                ([], _) => Row::Zero,
                (&[(source, row)], _) | (_, Some(&(source, row))) => Row::Of { source, row },
                (several, None) => Row::Mean(several.to_vec()),
            };
            let rule = self.rules.get(&id);
            // A row that the model does not have is nobody's.
            let has_row = |row: &Row| match row {
                &Row::Of { source, row } => sizes
                    .iter()
                    .any(|&(of, n_rows)| of == source && row < n_rows),
                _ => true,
            };
            let ruled = rule.and_then(|rule| rule.row.clone()).filter(has_row);
            let instead = ruled.unwrap_or(instead);
            let is_forced = rule.is_some_and(|rule| rule.force);
            for (&(source, _), rows) in sizes.iter().zip(&mut rows) {
                let own = found
                    .iter()
                    .find(|(of, _)| *of == source)
                    .filter(|_| !is_forced);
                rows[id] = match own {
                    Some(&(source, row)) => Row::Of { source, row },
                    None => instead.clone(),
                };
            }
        }
        rows.into_iter().map(Arc::from).collect()
    }
}

/// The sources that have a tensor, each with the number of its rows there.
pub(super) fn sizes_of(sources: &[Arc<Checkpoint>], name: &str) -> Vec<(usize, usize)> {
    (sources.iter().enumerate())
        .filter_map(|(index, source)| Some((index, *source.get(name)?.shape.first()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_a_model_lacks_comes_from_the_one_the_base_or_the_mean() {
        let vocabulary = |tokens: &[&str]| {
            let pairs = tokens.iter().enumerate();
            Vocabulary(pairs.map(|(id, token)| ((*token).to_owned(), id)).collect())
        };
        let wanted = vocabulary(&["all", "base and b", "a alone", "a and b", "nobody"]);
        let of_models = [
            vocabulary(&["base and b", "all"]),
            vocabulary(&["a alone", "all", "a and b"]),
            vocabulary(&["all", "base and b", "a and b"]),
        ];
        let rows = Rows {
            wanted: &wanted,
            multiple: None,
            rules: BTreeMap::new(),
            models: of_models.iter().collect(),
            base: Some(0),
        };
        let found = rows.of(&[(0, 2), (1, 3), (2, 3)]);
        let of = |source, row| Row::Of { source, row };
        let mean = Row::Mean(vec![(1, 2), (2, 2)]);
        assert_eq!(
            found[0].to_vec(),
            [of(0, 1), of(0, 0), of(1, 0), mean, Row::Zero]
        );
        assert_eq!(found[1][1], of(0, 0));
        assert_eq!(found[2][1], of(2, 1));
        // A tokenizer may have more tokens than its embeddings have rows.
        assert_eq!(rows.of(&[(0, 2), (1, 3), (2, 2)])[2][3], of(1, 2));
        let padded = Rows {
            multiple: Some(4),
            ..rows
        };
        let found = padded.of(&[(0, 2), (1, 3), (2, 3)]);
        assert_eq!(found[1].len(), 8);
        assert!(
            found
                .iter()
                .all(|rows| rows[5..] == [const { Row::MeanOfFirst(5) }; 3])
        );
    }
}
