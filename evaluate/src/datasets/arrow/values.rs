//! Columns as vectors of Rust types.

use super::Column;

/// The types of values in a column: text, numbers, lists of them.
pub trait Value: Sized {
    /// Such a column in words.
    const EXPECTED: &'static str;
    /// The values of a column, if it is of this type.
    fn from_column(column: Column) -> Option<Vec<Self>>;
}

impl Value for String {
    const EXPECTED: &'static str = "text";
    fn from_column(column: Column) -> Option<Vec<Self>> {
        match column {
            Column::Texts(values) => Some(values),
            Column::Null(0) => Some(Vec::new()),
            _ => None,
        }
    }
}

impl Value for i64 {
    const EXPECTED: &'static str = "integers";
    fn from_column(column: Column) -> Option<Vec<Self>> {
        match column {
            Column::Integers(values) => Some(values),
            Column::Null(0) => Some(Vec::new()),
            _ => None,
        }
    }
}

impl Value for f64 {
    const EXPECTED: &'static str = "numbers";
    fn from_column(column: Column) -> Option<Vec<Self>> {
        match column {
            Column::Floats(values) => Some(values),
            Column::Integers(values) => Some(values.iter().map(|&value| value as f64).collect()),
            Column::Null(0) => Some(Vec::new()),
            _ => None,
        }
    }
}

impl<T: Value> Value for Vec<T> {
    const EXPECTED: &'static str = "lists";
    fn from_column(column: Column) -> Option<Vec<Self>> {
        match column {
            Column::Lists(lengths, items) => {
                let mut items = T::from_column(*items)?.into_iter();
                let lists = lengths.iter().map(|&n| items.by_ref().take(n).collect());
                Some(lists.collect())
            }
            Column::Null(0) => Some(Vec::new()),
            _ => None,
        }
    }
}
