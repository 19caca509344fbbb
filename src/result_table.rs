//! Results as a table for terminals: numbers in percent.

use evaluate::Unit;
use evaluate::metrics::bootstrap::Interval;
use evaluate::reports::{Measurement, Report};

use crate::table::{Align, Table};

/// A row per number; per file its value and interval, and from the second file on the difference to
/// the first and its p.
pub fn table(report: &Report) -> Table {
    let column = |name: &str, align| (name.to_owned(), align);
    let is_single = report.results.len() == 1;
    let letter = |index: usize| match is_single {
        true => "value".to_owned(),
        false => name_of(index),
    };
    let mut columns = vec![column("%", Align::Left), column("n", Align::Right)];
    for index in 0..report.results.len() {
        columns.push(column(&letter(index), Align::Right));
        columns.push(column("95% interval", Align::Left));
        if index > 0 {
            columns.push(column(&format!("{} - A", letter(index)), Align::Right));
            columns.push(column("95% interval", Align::Left));
            columns.push(column("p", Align::Right));
        }
    }
    let mut table = Table::new(columns);
    let rows = report.results.first().map_or(&[][..], |f| &f.measurements);
    // Ranks come last; a line below the table shows them.
    let drawn = rows.iter().filter(|m| m.unit != Unit::Rank);
    for (row, measurement) in drawn.enumerate() {
        let scale = percent(measurement);
        let mut cells = vec![measurement.name.clone(), measurement.n.to_string()];
        for (index, file) in report.results.iter().enumerate() {
            let own = &file.measurements[row];
            cells.push(own.value.map_or_else(none, |v| format!("{:.2}", scale * v)));
            cells.push(interval(own.interval, scale, false));
            let Some(comparison) = index.checked_sub(1).map(|i| &report.comparisons[i]) else {
                continue;
            };
            let difference = &comparison.differences[row];
            let value = difference.difference;
            cells.push(value.map_or_else(none, |v| format!("{:+.2}", scale * v)));
            cells.push(interval(difference.interval, scale, true));
            cells.push(difference.p.map_or_else(none, |p| format!("{p:.4}")));
        }
        table.row(cells);
    }
    table
}

/// A row per result and a column per number, for more results than fit beside each other; the best
/// point of a sweep has a star.
pub fn by_result(report: &Report) -> Table {
    let numbers = report
        .results
        .first()
        .map_or(&[][..], |first| &first.measurements);
    let drawn: Vec<&str> = (numbers.iter())
        .filter(|number| number.unit != Unit::Rank)
        .map(|number| number.name.as_str())
        .collect();
    let mut columns = vec![("%".to_owned(), Align::Left)];
    columns.extend(drawn.iter().map(|name| ((*name).to_owned(), Align::Right)));
    columns.push((String::new(), Align::Left));
    let mut table = Table::new(columns);
    for result in &report.results {
        let mut cells = vec![result.name.clone()];
        for name in &drawn {
            let found = result
                .measurements
                .iter()
                .find(|number| number.name == *name);
            let value = found.and_then(|number| Some(percent(number) * number.value?));
            cells.push(value.map_or_else(none, |value| format!("{value:.2}")));
        }
        let is_best = result.point.as_ref().is_some_and(|point| point.is_best);
        cells.push(if is_best { "*" } else { "" }.to_owned());
        table.row(cells);
    }
    table
}

/// The file behind each letter of the table; nothing if there is one file.
pub fn legend(report: &Report) -> Vec<String> {
    if report.results.len() == 1 {
        return Vec::new();
    }
    let files = report.results.iter().enumerate();
    let lines = files.map(|(index, file)| format!("{}: {}", name_of(index), file.name));
    std::iter::once(String::new()).chain(lines).collect()
}

/// Median and mean of ranks, a line per file and direction.
pub fn ranks(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for result in &report.results {
        for direction in ["tr", "ir"] {
            let value = |what: &str| {
                let name = format!("{direction}_{what}_rank");
                let found = result.measurements.iter().find(|m| m.name == name);
                found.and_then(|m| m.value)
            };
            if let (Some(median), Some(mean)) = (value("median"), value("mean")) {
                let direction = direction.to_uppercase();
                lines.push(format!(
                    "{}: {direction} median rank {median}, mean rank {mean:.2}",
                    result.name
                ));
            }
        }
    }
    lines
}

/// `A` to `Z`, then numbers.
fn name_of(index: usize) -> String {
    match u8::try_from(index) {
        Ok(index @ 0..26) => char::from(b'A' + index).to_string(),
        _ => format!("file {}", index + 1),
    }
}

fn none() -> String {
    "n/a".to_owned()
}

/// The factor that turns the number into percent.
fn percent(measurement: &Measurement) -> f64 {
    match measurement.unit {
        Unit::Fraction | Unit::Tenfold => 100.0,
        Unit::PercentSum | Unit::Rank | Unit::Plain => 1.0,
    }
}

fn interval(interval: Option<Interval>, scale: f64, is_signed: bool) -> String {
    interval.map_or_else(none, |Interval { low, high }| match is_signed {
        true => format!("[{:+.2}, {:+.2}]", scale * low, scale * high),
        false => format!("[{:.2}, {:.2}]", scale * low, scale * high),
    })
}
