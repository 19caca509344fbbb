//! Plain tables: columns two spaces apart, a header, no lines.

use std::fmt;

use crate::output::printable;

/// The alignment of a column's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// The most characters that a column is filled up to: one long name in a stranger's file must not make
/// every line as long.
const MAX_WIDTH: usize = 160;

/// A table under construction; displays with a line break after each row.
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these headings.
    pub fn new(columns: Vec<(String, Align)>) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row with a cell per column.
    pub fn row(&mut self, cells: Vec<String>) {
        let one_line = |cell: String| printable(&cell).replace('\n', "\\n");
        self.rows.push(cells.into_iter().map(one_line).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines = || std::iter::once(&headings).chain(&self.rows);
        let width = |column: usize| {
            lines()
                .filter_map(|cells| cells.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
                .min(MAX_WIDTH)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for cells in lines() {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.iter().zip(&widths).zip(&self.columns) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let room = " ".repeat(width.saturating_sub(cell.chars().count()));
                match align {
                    Align::Left => line.extend([cell.as_str(), room.as_str()]),
                    Align::Right => line.extend([room.as_str(), cell.as_str()]),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with six significant digits.
pub fn significant(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 || !size.is_finite() {
        return value.to_string();
    }
    if !(1e-4..1e7).contains(&size) {
        return format!("{value:.5e}");
    }
    let n_before_point = size.log10().floor() as i32 + 1;
    let n_decimals = (6 - n_before_point).max(0) as usize;
    format!("{value:.n_decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut table = Table::new(vec![
            ("name".to_owned(), Align::Left),
            ("n".to_owned(), Align::Right),
        ]);
        table.row(vec!["a".to_owned(), "100".to_owned()]);
        assert_eq!(table.to_string(), "name    n\na     100\n");
    }

    #[test]
    fn a_name_may_be_of_any_length() {
        let mut table = Table::new(vec![
            ("name".to_owned(), Align::Left),
            ("n".to_owned(), Align::Right),
        ]);
        table.row(vec!["a".repeat(100_000), "1".to_owned()]);
        table.row(vec!["b".to_owned(), "2".to_owned()]);
        let text = table.to_string();
        assert!(
            text.lines()
                .nth(1)
                .is_some_and(|line| line.len() == 100_003)
        );
        assert!(
            text.lines()
                .nth(2)
                .is_some_and(|line| line.len() == MAX_WIDTH + 3)
        );
    }

    #[test]
    fn numbers_have_six_significant_digits() {
        for (value, text) in [
            (0.0, "0"),
            (1.0 / 3.0, "0.333333"),
            (-12.345_678_9, "-12.3457"),
            (1_234_567.0, "1234567"),
            (0.000_012_345_678, "1.23457e-5"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(significant(value), text);
        }
    }
}
