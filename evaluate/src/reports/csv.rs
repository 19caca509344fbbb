//! One line per number, for spreadsheets and scripts (RFC 4180).
//!
//! Values are as the files have them: shares are fractions, nothing is rounded. Text that a
//! spreadsheet would run as a formula has a `'` before it.

use merge::provenance::InputFile;

use super::document::{Document, Placed};
use super::{Difference, Measurement, labels};
use crate::sample::Unit;
use crate::{Error, ReportFault, Result};

const HEADER: [&str; 24] = [
    "file",
    "name",
    "task",
    "dataset",
    "split",
    "number",
    "unit",
    "higher_is_better",
    "value",
    "low",
    "high",
    "n",
    "against",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "parameter",
    "point",
    "is_best_point",
    "seconds",
    "device",
    "checkpoint",
    "hash",
];

/// The document as comma-separated values.
///
/// # Errors
/// [`ReportFault::NoHeatMap`] when it holds distances.
pub fn csv(document: &Document) -> Result<String> {
    if let Some((label, _)) = document.distances.first() {
        return Err(Error::Report(ReportFault::NoHeatMap {
            label: label.clone(),
            format: "CSV",
        }));
    }
    let mut text = line(&HEADER.map(str::to_owned));
    for placed in &document.results {
        for measurement in &placed.result.measurements {
            text.push_str(&line(&fields(placed, measurement)));
        }
    }
    Ok(text)
}

fn fields(placed: &Placed, measurement: &Measurement) -> [String; HEADER.len()] {
    let result = &placed.result;
    let (against, difference) = match &placed.against {
        None => (None, None),
        Some((name, all)) => {
            let found = all
                .iter()
                .find(|d: &&Difference| d.name == measurement.name);
            (found.map(|_| name.clone()), found)
        }
    };
    let number = |value: Option<f64>| value.map(|v| v.to_string()).unwrap_or_default();
    let optional = |value: &Option<String>| value.as_deref().map(inert).unwrap_or_default();
    let files = result.checkpoint.iter().flat_map(|c| &c.files);
    let joined = |of: Vec<&str>| inert(&of.join("; "));
    let ends = measurement.interval;
    let difference_ends = difference.and_then(|d| d.interval);
    let point = result.point.as_ref();
    let hashes = files.clone().filter_map(InputFile::hash);
    let hashes: Vec<String> = hashes.map(|hash| hash.to_string()).collect();
    [
        inert(&placed.label),
        inert(&placed.name),
        inert(&result.task),
        optional(&result.dataset),
        optional(&result.split),
        inert(&measurement.name),
        match measurement.unit {
            Unit::Fraction => "fraction",
            Unit::Tenfold => "tenfold",
            Unit::PercentSum => "percent_sum",
            Unit::Rank => "rank",
            Unit::Plain => "plain",
        }
        .to_owned(),
        measurement.higher_is_better.to_string(),
        number(measurement.value),
        number(ends.map(|i| i.low)),
        number(ends.map(|i| i.high)),
        measurement.n.to_string(),
        optional(&against),
        number(difference.and_then(|d| d.difference)),
        number(difference_ends.map(|i| i.low)),
        number(difference_ends.map(|i| i.high)),
        number(difference.and_then(|d| d.p)),
        point.map(|p| inert(&p.parameter)).unwrap_or_default(),
        number(point.map(|p| p.value)),
        point.map(|p| p.is_best.to_string()).unwrap_or_default(),
        number(result.seconds),
        optional(&result.device),
        joined(files.clone().map(|file| file.name.as_str()).collect()),
        joined(hashes.iter().map(String::as_str).collect()),
    ]
}

/// Text of one line that no spreadsheet takes for a formula.
fn inert(text: &str) -> String {
    let text = labels::one_line(text);
    match text.chars().next() {
        Some('=' | '+' | '-' | '@' | ' ') => format!("'{text}"),
        _ => text,
    }
}

fn line(fields: &[String]) -> String {
    let quoted = fields.iter().map(|field| match field.contains([',', '"']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.clone(),
    });
    quoted.collect::<Vec<_>>().join(",") + "\r\n"
}
