//! Tables of numbers.

use super::super::published::{Benchmark, Published, Status};
use super::super::{Measurement, labels};
use super::Placed;
use super::group::Group;
use crate::metrics::bootstrap::Interval;
use crate::sample::Unit;
use crate::tasks::TaskSpec;

/// A table: methods down, numbers across.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grid {
    /// The columns.
    pub columns: Vec<Column>,
    /// Ours first, then published ones.
    pub rows: Vec<Row>,
}

/// A number of a data set.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The data, in an overview; else empty.
    pub group: String,
    /// The number, as the file calls it.
    pub name: String,
    /// The number, for people.
    pub title: String,
    /// The unit of its numbers.
    pub unit: Unit,
    /// Whether more is better.
    pub higher_is_better: bool,
}

/// A method.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The kind of the row: ours, or published.
    pub kind: RowKind,
    /// One per column.
    pub cells: Vec<Cell>,
}

/// The kind of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowKind {
    /// Ours.
    Measured {
        /// Whether others were compared with it.
        is_reference: bool,
    },
    /// Those of others.
    Published {
        /// The certainty of its numbers.
        status: Status,
        /// The place where they were read.
        source: String,
    },
}

impl Row {
    /// Whether others were compared with it.
    #[must_use]
    pub fn is_reference(&self) -> bool {
        self.kind == (RowKind::Measured { is_reference: true })
    }
}

/// The content of a place in a table.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// This was not measured or not published.
    Missing,
    /// It was measured, but there was no case.
    Undefined,
    /// It is published, but not at hand.
    NotSourced,
    /// A published figure, in percent as printed.
    Printed(f64),
    /// A number of ours.
    Measured(Number),
}

/// A number of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// In `unit`.
    pub value: f64,
    /// The unit.
    pub unit: Unit,
    /// Of 95%.
    pub interval: Option<Interval>,
    /// Its difference from the reference.
    pub difference: Option<f64>,
    /// The probability of such a difference if there were none; two-sided.
    pub p: Option<f64>,
    /// Whether it is the best of ours in its column; never if none is worse.
    pub is_best: bool,
}

/// Text for [`Cell::NotSourced`].
pub const NOT_SOURCED: &str = "n/a (not sourced)";

impl Cell {
    /// The cell as text: value, interval, stars.
    #[must_use]
    pub fn parts(&self) -> (String, Option<String>, &'static str) {
        match self {
            Self::Missing => ("–".to_owned(), None, ""),
            Self::Undefined => ("n/a".to_owned(), None, ""),
            Self::NotSourced => (NOT_SOURCED.to_owned(), None, ""),
            Self::Printed(percent) => (labels::printed(*percent), None, ""),
            Self::Measured(number) => (
                labels::value(number.value, number.unit),
                number.interval.map(|i| labels::interval(i, number.unit)),
                number.p.map_or("", labels::stars),
            ),
        }
    }

    /// Whether it is the best of its column.
    #[must_use]
    pub fn is_best(&self) -> bool {
        matches!(self, Self::Measured(number) if number.is_best)
    }

    /// Whether it is published, but not at hand.
    #[must_use]
    pub fn is_not_sourced(&self) -> bool {
        *self == Self::NotSourced
    }

    /// Whether nothing stands here.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        *self == Self::Missing
    }

    /// Takes the difference out.
    fn forget_difference(&mut self) {
        if let Self::Measured(number) = self {
            (number.difference, number.p) = (None, None);
        }
    }

    /// The difference to the reference with its p, as text.
    #[must_use]
    pub fn difference(&self) -> Option<(String, Option<String>)> {
        match self {
            Self::Measured(number) => number.difference.map(|difference| {
                let text = labels::difference(difference, number.unit);
                (text, number.p.map(|p| format!("p = {p:.4}")))
            }),
            _ => None,
        }
    }
}

impl Column {
    /// The unit of its values, for headings.
    #[must_use]
    pub fn unit_text(&self) -> &'static str {
        labels::unit(self.unit)
    }
}

impl Grid {
    /// The table with numbers down and methods across: headings, and rows with their names.
    #[must_use]
    pub fn turned(&self) -> (Vec<&str>, Vec<(&str, Vec<&Cell>)>) {
        let headings = self.rows.iter().map(|row| row.name.as_str()).collect();
        let columns = self.columns.iter().enumerate();
        let rows = columns.map(|(index, column)| {
            let cells = self.rows.iter().map(|row| &row.cells[index]).collect();
            (column.title.as_str(), cells)
        });
        (headings, rows.collect())
    }
}

/// Numbers of the whole data set, with published rows of the same.
pub(super) fn whole(
    members: &[&Placed],
    benchmark: Option<Benchmark>,
    published: &Published,
) -> Grid {
    let columns = columns(members, |m| !m.name.contains('/'));
    let mut grid = of_members(members, columns);
    for figure in published.figures.iter() {
        let column = grid.columns.iter().position(|c| c.name == figure.number);
        let (Some(column), true) = (column, Some(figure.on) == benchmark) else {
            continue;
        };
        let kind = RowKind::Published {
            status: figure.status,
            source: figure.source.clone(),
        };
        let name = match figure.image_size {
            Some(size) => format!("{}, {size}\u{a0}px", figure.model),
            None => figure.model.clone(),
        };
        let known = |row: &Row| row.name == name && row.kind == kind;
        let row = match grid.rows.iter().position(known) {
            Some(row) => row,
            None => {
                let cells = vec![Cell::Missing; grid.columns.len()];
                grid.rows.push(Row { name, kind, cells });
                grid.rows.len() - 1
            }
        };
        grid.rows[row].cells[column] = figure.percent.map_or(Cell::NotSourced, Cell::Printed);
    }
    grid
}

/// Numbers of parts of the data set.
pub(super) fn breakdown(members: &[&Placed]) -> Option<Grid> {
    let columns = columns(members, |m| m.name.contains('/'));
    (!columns.is_empty()).then(|| of_members(members, columns))
}

/// The principal numbers of all groups.
pub(super) fn overview(groups: &[Group]) -> Grid {
    let mut grid = Grid::default();
    for group in groups {
        let columns = group.grid.columns.iter().enumerate();
        let mut chosen: Vec<usize> = columns
            .filter(|(_, column)| is_in_overview(&group.task, &column.name))
            .map(|(index, _)| index)
            .collect();
        if chosen.is_empty() && !group.grid.columns.is_empty() {
            chosen.push(0);
        }
        let first = grid.columns.len();
        for &index in &chosen {
            let mut column = group.grid.columns[index].clone();
            column.group.clone_from(&group.title);
            grid.columns.push(column);
        }
        for row in &group.grid.rows {
            let RowKind::Measured { is_reference } = row.kind else {
                continue;
            };
            let place = match grid.rows.iter().position(|r| r.name == row.name) {
                Some(place) => place,
                None => {
                    grid.rows.push(Row {
                        cells: vec![Cell::Missing; first],
                        ..row.clone()
                    });
                    grid.rows.len() - 1
                }
            };
            let whole = &mut grid.rows[place];
            if let RowKind::Measured {
                is_reference: known,
            } = &mut whole.kind
            {
                *known |= is_reference;
            }
            whole.cells.resize(first, Cell::Missing);
            whole
                .cells
                .extend(chosen.iter().map(|&index| row.cells[index].clone()));
        }
    }
    let n_columns = grid.columns.len();
    for row in &mut grid.rows {
        row.cells.resize(n_columns, Cell::Missing);
    }
    grid
}

/// Whether a number of a task stands in tables of several tasks, and has a curve in sweeps.
pub(super) fn is_in_overview(task: &str, number: &str) -> bool {
    let row = TaskSpec::of(task).and_then(|task| task.number(number));
    row.is_some_and(|number| number.is_in_overview)
}

/// A table of results: all that are no points of a sweep, and its best ones.
fn of_members(members: &[&Placed], columns: Vec<Column>) -> Grid {
    let shown = members.iter().filter(|member| {
        member
            .result
            .point
            .as_ref()
            .is_none_or(|point| point.is_best)
    });
    let shown: Vec<&&Placed> = shown.collect();
    let names: Vec<&str> = shown.iter().map(|member| member.name.as_str()).collect();
    let row_of = |member: &&&Placed| {
        let mut row = row(member, &columns);
        // A difference to an absent result would pass for one to the reference that is.
        let other = member.against.as_ref().map(|(name, _)| name.as_str());
        if other.is_some_and(|other| !names.contains(&other)) {
            row.cells.iter_mut().for_each(Cell::forget_difference);
        }
        row
    };
    let rows = shown.iter().map(row_of).collect();
    let mut grid = Grid { columns, rows };
    mark_best(&mut grid);
    grid
}

/// The row of a result.
pub(super) fn row(member: &Placed, columns: &[Column]) -> Row {
    let cell = |column: &Column| {
        let mut measured = member.result.measurements.iter();
        match measured.find(|m| m.name == column.name) {
            None => Cell::Missing,
            Some(measurement) => cell(member, measurement),
        }
    };
    Row {
        name: member.name.clone(),
        kind: RowKind::Measured {
            is_reference: member.is_reference,
        },
        cells: columns.iter().map(cell).collect(),
    }
}

fn cell(member: &Placed, measurement: &Measurement) -> Cell {
    let Some(value) = measurement.value else {
        return Cell::Undefined;
    };
    let differences = member
        .against
        .iter()
        .flat_map(|(_, differences)| differences);
    let difference = differences.into_iter().find(|d| d.name == measurement.name);
    Cell::Measured(Number {
        value,
        unit: measurement.unit,
        interval: measurement.interval,
        difference: difference.and_then(|d| d.difference),
        p: difference.and_then(|d| d.p),
        is_best: false,
    })
}

/// The numbers of all results that are wanted, in the order in which they first occur.
pub(super) fn columns(members: &[&Placed], is_wanted: fn(&Measurement) -> bool) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for measurement in members.iter().flat_map(|m| &m.result.measurements) {
        if is_wanted(measurement) && !columns.iter().any(|c| c.name == measurement.name) {
            columns.push(Column {
                group: String::new(),
                name: measurement.name.clone(),
                title: labels::number(&measurement.name),
                unit: measurement.unit,
                higher_is_better: measurement.higher_is_better,
            });
        }
    }
    columns
}

/// Marks the best number of each column, equal ones alike, unless all are equal.
pub(super) fn mark_best(grid: &mut Grid) {
    for (index, column) in grid.columns.iter().enumerate() {
        let worth = |cell: &Cell| match cell {
            Cell::Measured(number) if column.higher_is_better => Some(number.value),
            Cell::Measured(number) => Some(-number.value),
            _ => None,
        };
        let values: Vec<f64> = (grid.rows.iter())
            .filter_map(|row| worth(&row.cells[index]))
            .collect();
        let Some(best) = values.iter().copied().reduce(f64::max) else {
            continue;
        };
        let is_contest = values.iter().any(|value| *value != best);
        for row in &mut grid.rows {
            let is_best = is_contest && worth(&row.cells[index]) == Some(best);
            if let Cell::Measured(number) = &mut row.cells[index] {
                number.is_best = is_best;
            }
        }
    }
}
