//! Numbers along a parameter of a merge.

use super::super::SweepPoint;
use super::super::published::{Published, Remark};
use super::grid::{self, Cell, Grid};
use super::{Placed, group};
use crate::metrics::bootstrap::Interval;
use crate::sample::Unit;

/// Results along one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// The file that it comes from.
    pub label: String,
    /// `ratio`, `lambda` or `shrink`.
    pub parameter: String,
    /// The value that the sweep itself calls the best.
    pub best: Option<f64>,
    /// A curve per principal number.
    pub curves: Vec<Curve>,
    /// All numbers of all points, in the order of the parameter.
    pub grid: Grid,
    /// Published remarks on such sweeps.
    pub remarks: Vec<String>,
}

/// One number along the parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// The number, as the file calls it.
    pub name: String,
    /// The number, for people.
    pub title: String,
    /// The unit of its values.
    pub unit: Unit,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// By parameter, ascending.
    pub points: Vec<CurvePoint>,
}

/// A point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// The value of the parameter.
    pub at: f64,
    /// The number.
    pub value: f64,
    /// Of 95%.
    pub interval: Option<Interval>,
}

impl Curve {
    /// The best point; the first of equal ones.
    #[must_use]
    pub fn best(&self) -> Option<&CurvePoint> {
        let worth = |point: &CurvePoint| match self.higher_is_better {
            true => point.value,
            false => -point.value,
        };
        self.points
            .iter()
            .reduce(|best, point| match worth(point) > worth(best) {
                true => point,
                false => best,
            })
    }
}

/// Results with their places in a sweep.
type Points<'a> = Vec<(&'a Placed, &'a SweepPoint)>;

/// The sweeps among the results of a group: one per file and parameter.
pub fn sweeps(members: &[&Placed], published: &Published) -> Vec<Sweep> {
    let mut found: Vec<(&str, &str, Points<'_>)> = Vec::new();
    for member in members {
        let Some(point) = &member.result.point else {
            continue;
        };
        // A value that is there already begins another sweep.
        let same = found.iter_mut().find(|(label, parameter, points)| {
            (*label, *parameter) == (&member.label, &point.parameter)
                && points.iter().all(|(_, known)| known.value != point.value)
        });
        match same {
            Some((.., points)) => points.push((member, point)),
            None => found.push((&member.label, &point.parameter, vec![(member, point)])),
        }
    }
    (found.into_iter())
        .map(|(label, parameter, mut points)| {
            points.sort_by(|(_, a), (_, b)| a.value.total_cmp(&b.value));
            let of_parameter = |r: &&Remark| r.parameter.as_deref() == Some(parameter);
            let remarks = published.remarks.iter().filter(of_parameter);
            Sweep {
                label: label.to_owned(),
                parameter: parameter.to_owned(),
                best: points.iter().find(|(_, p)| p.is_best).map(|(_, p)| p.value),
                curves: curves(&points),
                grid: table(&points),
                remarks: remarks.map(group::in_words).collect(),
            }
        })
        .collect()
}

fn table(points: &[(&Placed, &SweepPoint)]) -> Grid {
    let members: Vec<&Placed> = points.iter().map(|(member, _)| *member).collect();
    let columns = grid::columns(&members, |m| !m.name.contains('/'));
    let rows = points.iter().map(|(member, point)| {
        let mut row = grid::row(member, &columns);
        row.name = point.value.to_string();
        row
    });
    let mut grid = Grid {
        rows: rows.collect(),
        columns,
    };
    grid::mark_best(&mut grid);
    grid
}

/// Curves of the numbers that an overview of the task shows, or else of the whole table.
fn curves(points: &[(&Placed, &SweepPoint)]) -> Vec<Curve> {
    let table = table(points);
    let columns = table.columns.iter().enumerate();
    let curves: Vec<Curve> = columns
        .map(|(index, column)| {
            let point = |(row, (_, point)): (&grid::Row, &(&Placed, &SweepPoint))| {
                let Cell::Measured(number) = &row.cells[index] else {
                    return None;
                };
                Some(CurvePoint {
                    at: point.value,
                    value: number.value,
                    interval: number.interval,
                })
            };
            Curve {
                name: column.name.clone(),
                title: column.title.clone(),
                unit: column.unit,
                higher_is_better: column.higher_is_better,
                points: table.rows.iter().zip(points).filter_map(point).collect(),
            }
        })
        .filter(|curve| !curve.points.is_empty() && curve.unit != Unit::Rank)
        .collect();
    let task = points
        .first()
        .map(|(member, _)| member.result.task.as_str());
    let is_told = |curve: &Curve| grid::is_in_overview(task.unwrap_or_default(), &curve.name);
    match curves.iter().any(is_told) {
        true => curves.into_iter().filter(is_told).collect(),
        false => curves,
    }
}
