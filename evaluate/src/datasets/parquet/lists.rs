//! Lists of values, by the levels of their pages.

use super::super::arrow::Column;
use super::footer::Leaf;
use super::pages::Body;

/// Lengths of the lists of a column.
pub(super) struct Lists {
    definition: u32,
    /// From which definition level on a list has an item, the outermost first.
    from: Vec<u32>,
    lengths: Vec<Vec<usize>>,
    n_rows: usize,
}

/// Why a column has no such lists.
pub(super) enum Null {
    /// A value is null, in this row.
    Value {
        /// The row, from the first that was added.
        row: usize,
    },
    /// The levels fit no lists.
    Damaged,
}

impl Lists {
    pub(super) fn new(leaf: &Leaf) -> Self {
        Self {
            definition: leaf.definition,
            from: leaf.lists.clone(),
            lengths: vec![Vec::new(); leaf.lists.len()],
            n_rows: 0,
        }
    }

    /// Adds the values of a page. A list that is null has no items.
    pub(super) fn add(&mut self, body: &Body, n_values: usize) -> Result<(), Null> {
        if self.from.is_empty() {
            let null = (body.definitions.iter()).position(|level| *level < self.definition);
            if let Some(index) = null {
                let row = self.n_rows + index;
                return Err(Null::Value { row });
            }
            self.n_rows += n_values;
            return Ok(());
        }
        for index in 0..n_values {
            let repetition = body.repetitions.get(index).ok_or(Null::Damaged)?;
            let definition = body.definitions.get(index).ok_or(Null::Damaged)?;
            self.add_one(*repetition as usize, *definition)?;
        }
        Ok(())
    }

    fn add_one(&mut self, repetition: usize, definition: u32) -> Result<(), Null> {
        let depth = self.from.len();
        if repetition == 0 {
            self.lengths[0].push(0);
            self.n_rows += 1;
        }
        // Which list goes on: the one that begins here, or an earlier one with another item.
        let mut at = repetition.saturating_sub(1);
        if repetition > 0 && self.from.get(at).is_none_or(|from| definition < *from) {
            return Err(Null::Damaged);
        }
        while at < depth && definition >= self.from[at] {
            let last = self.lengths[at].last_mut().ok_or(Null::Damaged)?;
            *last += 1;
            at += 1;
            if at < depth {
                self.lengths[at].push(0);
            }
        }
        match at == depth && definition < self.definition {
            true => Err(Null::Value {
                row: self.n_rows.saturating_sub(1),
            }),
            false => Ok(()),
        }
    }

    /// The column with its lists around the values, and its rows.
    pub(super) fn around(self, items: Column) -> (Column, usize) {
        let lengths = self.lengths.into_iter().rev();
        let column = lengths.fold(items, |items, lengths| {
            Column::Lists(lengths, Box::new(items))
        });
        (column, self.n_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::parquet::footer::Physical;

    #[test]
    fn lists_of_lists_are_put_together_by_levels() {
        let leaf = Leaf {
            path: vec!["a".into()],
            physical: Physical::Int64,
            is_text: false,
            definition: 5,
            lists: vec![2, 4],
        };
        let mut lists = Lists::new(&leaf);
        // [[1, 2], [3]], [], null, [[], [4]]
        let body = Body {
            bytes: Vec::new(),
            values: 0..0,
            repetitions: vec![0, 2, 1, 0, 0, 0, 1],
            definitions: vec![5, 5, 5, 1, 0, 3, 5],
            n_present: 4,
        };
        assert!(lists.add(&body, 7).is_ok());
        let (column, n_rows) = lists.around(Column::Integers(vec![1, 2, 3, 4]));
        assert_eq!(n_rows, 4);
        let inner = Column::Lists(
            vec![2, 1, 0, 1],
            Box::new(Column::Integers(vec![1, 2, 3, 4])),
        );
        assert_eq!(column, Column::Lists(vec![2, 0, 0, 2], Box::new(inner)));
        let mut lists = Lists::new(&leaf);
        let body = |repetition: u32, definition: u32| Body {
            bytes: Vec::new(),
            values: 0..0,
            repetitions: vec![repetition],
            definitions: vec![definition],
            n_present: 1,
        };
        assert!(matches!(lists.add(&body(1, 5), 1), Err(Null::Damaged)));
        assert!(matches!(
            lists.add(&body(0, 4), 1),
            Err(Null::Value { row: 0 })
        ));
    }
}
