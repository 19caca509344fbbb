//! Names of numbers, tasks and data sets in text for people, and the form of values.

use crate::datasets::DatasetSpec;
use crate::metrics::bootstrap::Interval;
use crate::sample::Unit;
use crate::tasks::{TASKS, TaskSpec};

/// A number's name for people: `tr_r1` is `TR@1`; names that are not ours stay as they are.
pub fn number(name: &str) -> String {
    let recall = |(direction, k): (&str, &str)| -> Option<String> {
        let is_count = !k.is_empty() && k.bytes().all(|byte| byte.is_ascii_digit());
        let is_known = matches!(direction, "tr" | "ir") && is_count;
        is_known.then(|| format!("{}@{k}", direction.to_uppercase()))
    };
    if let Some(recall) = name.split_once("_r").and_then(recall) {
        return recall;
    }
    let known = TASKS.iter().find_map(|task| task.number(name));
    known.map_or(name, |number| number.label).to_owned()
}

/// A task's name for people.
pub fn task(name: &str) -> String {
    TaskSpec::of(name)
        .map_or(name, |task| task.title)
        .to_owned()
}

/// A data set's name for people; after a comma it may say which of several.
pub fn dataset(name: &str) -> String {
    let (set, which) = name
        .split_once(", ")
        .map_or((name, None), |(set, which)| (set, Some(which)));
    let title = DatasetSpec::of(set).map_or(set, |set| set.title);
    which.map_or_else(|| title.to_owned(), |which| format!("{title}, {which}"))
}

/// Task, data set and split in a few words.
pub fn heading(task: &str, dataset: Option<&str>, split: Option<&str>) -> String {
    let called = self::task(task);
    let data: Vec<String> = dataset
        .map(self::dataset)
        .into_iter()
        .chain(split.map(str::to_owned))
        .collect();
    match data.join(" ") {
        data if data.is_empty() => called,
        // The data sets of these tasks are named for them.
        data if data.starts_with(&called) => data,
        data => format!("{called} on {data}"),
    }
}

/// The name of a unit for headings; empty where that is plain.
pub fn unit(unit: Unit) -> &'static str {
    match unit {
        Unit::Fraction => "%",
        Unit::Tenfold => "× 100",
        Unit::PercentSum => "sum of %",
        Unit::Rank | Unit::Plain => "",
    }
}

/// A value as people read it: shares in percent, all with two decimals.
pub fn value(value: f64, unit: Unit) -> String {
    format!("{:.2}", scaled(value, unit))
}

/// A difference, with its sign.
pub fn difference(value: f64, unit: Unit) -> String {
    let text = format!("{:+.2}", scaled(value, unit));
    // A minus before nothing says more than is known.
    match text.as_str() {
        "-0.00" | "+0.00" => "±0.00".to_owned(),
        _ => text.replace('-', "−"),
    }
}

/// Both ends of an interval.
pub fn interval(interval: Interval, unit: Unit) -> String {
    format!(
        "{}–{}",
        value(interval.low, unit),
        value(interval.high, unit)
    )
}

/// Stars for how surprising a difference is.
pub fn stars(p: f64) -> &'static str {
    match p {
        p if p < 0.001 => "***",
        p if p < 0.01 => "**",
        p if p < 0.05 => "*",
        _ => "",
    }
}

/// The number that `value` is in its unit.
pub fn scaled(value: f64, unit: Unit) -> f64 {
    match unit {
        Unit::Fraction | Unit::Tenfold => 100.0 * value,
        Unit::PercentSum | Unit::Rank | Unit::Plain => value,
    }
}

/// A published figure in percent, with at least one decimal.
pub fn printed(percent: f64) -> String {
    match percent.to_string() {
        whole if !whole.contains('.') => format!("{whole}.0"),
        text => text,
    }
}

/// A size for people, in powers of ten.
pub fn bytes(n_bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut size = n_bytes as f64;
    let mut unit = "bytes";
    for larger in units {
        if size < 1000.0 {
            break;
        }
        (size, unit) = (size / 1000.0, larger);
    }
    match unit {
        "bytes" => format!("{n_bytes} bytes"),
        _ => format!("{size:.1} {unit}"),
    }
}

/// Text of one line without control characters.
pub fn one_line(text: &str) -> String {
    let printable = |c: char| match c {
        '\n' | '\r' | '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    text.chars().map(printable).collect()
}

/// Text of several lines without other control characters.
pub fn one_line_per_line(text: &str) -> String {
    text.lines().map(one_line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_numbers_have_the_names_of_the_field_and_others_stay() {
        for (name, shown) in [
            ("tr_r1", "TR@1"),
            ("ir_r10", "IR@10"),
            ("rsum", "RSUM"),
            ("question_type/is_right", "question_type/is_right"),
            ("tr_rx", "tr_rx"),
        ] {
            assert_eq!(number(name), shown);
        }
    }

    #[test]
    fn values_are_percent_and_differences_signed() {
        assert_eq!(value(0.12345, Unit::Fraction), "12.35");
        assert_eq!(value(433.333, Unit::PercentSum), "433.33");
        assert_eq!(difference(-0.01, Unit::Fraction), "−1.00");
        assert_eq!(difference(-0.000_01, Unit::Fraction), "±0.00");
        assert_eq!(bytes(1_234_567), "1.2 MB");
        assert_eq!(bytes(999), "999 bytes");
    }
}
