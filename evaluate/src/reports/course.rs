//! A training run over its steps: losses, rates, validation, speed.

use std::collections::BTreeMap;

use super::document::{Curve, CurvePoint};
use super::{curve, labels};
use crate::metrics::bootstrap::Interval;
use crate::sample::Unit;

/// Points of a curve; more are put together, with their least and largest as a band.
const MAX_POINTS: usize = 200;

/// Numbers below this are written times a power of ten.
const SMALL: f64 = 1e-2;

/// A training run.
#[derive(Clone, Debug, PartialEq)]
pub struct Course {
    /// The folder's name.
    pub label: String,
    /// Numbers by name: after how many steps, and the number.
    pub series: BTreeMap<String, Vec<(f64, f64)>>,
    /// Further facts: a name and a text.
    pub facts: Vec<(String, String)>,
}

/// A part of the page: a heading, and pictures.
pub(super) struct Chapter {
    pub(super) title: &'static str,
    pub(super) figures: Vec<String>,
}

impl Course {
    /// The steps with numbers.
    #[must_use]
    pub fn n_steps(&self) -> u64 {
        let last = |points: &Vec<(f64, f64)>| points.last().map_or(0.0, |point| point.0);
        self.series.values().map(last).fold(0.0, f64::max) as u64
    }

    /// The last number of a series, and the best if the better direction is known.
    fn ends(&self, name: &str) -> Option<(f64, f64, f64)> {
        let points = self.series.get(name)?;
        let values = points.iter().map(|point| point.1);
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        Some((points.last()?.1, low, high))
    }

    /// Name, last, least and largest number of every series.
    pub(super) fn rows(&self) -> Vec<[String; 4]> {
        let row = |name: &String| {
            let (last, low, high) = self.ends(name)?;
            let short = |value: f64| short(value);
            Some([words(name), short(last), short(low), short(high)])
        };
        self.series.keys().filter_map(row).collect()
    }

    /// The pictures; `place` tells those of several runs apart.
    pub(super) fn chapters(&self, place: usize) -> Vec<Chapter> {
        let is_of = |title: &str, name: &str| match title {
            "Validation" => name.starts_with("validation/"),
            "Losses" => name == "loss" || name.starts_with("loss/"),
            "Accuracies" => name.ends_with("_accuracy") || name == "vqa_score",
            "Rates" => matches!(name, "rate" | "gradient_norm"),
            "Speed" => name.ends_with("per_second") || name.contains("seconds"),
            _ => false,
        };
        let titles = ["Validation", "Losses", "Accuracies", "Rates", "Speed"];
        let chapters = titles.into_iter().chain(["Other numbers"]).map(|title| {
            let names = self.series.keys().filter(|name| match title {
                "Other numbers" => !titles.iter().any(|title| is_of(title, name)),
                title => is_of(title, name),
            });
            let figures = names.enumerate().map(|(at, name)| {
                let id = format!(
                    "run-{place}-{}-{at}",
                    title.to_lowercase().replace(' ', "-")
                );
                curve::course(&self.curve(name), "steps", &id)
            });
            Chapter {
                title,
                figures: figures.filter(|figure| !figure.is_empty()).collect(),
            }
        });
        chapters
            .filter(|chapter| !chapter.figures.is_empty())
            .collect()
    }

    fn curve(&self, name: &str) -> Curve {
        let points = self.series.get(name).map_or(&[][..], Vec::as_slice);
        let finite: Vec<(f64, f64)> = points.iter().filter(|p| p.1.is_finite()).copied().collect();
        let largest = finite.iter().map(|point| point.1.abs()).fold(0.0, f64::max);
        let power = match largest > 0.0 && largest < SMALL {
            true => -largest.log10().floor() as i32,
            false => 0,
        };
        let factor = 10f64.powi(power);
        let title = match power {
            0 => words(name),
            power => format!("{} × 10^{power}", words(name)),
        };
        let n_together = finite.len().div_ceil(MAX_POINTS).max(1);
        Curve {
            name: name.to_owned(),
            title,
            unit: Unit::Rank,
            higher_is_better: true,
            points: (finite.chunks(n_together))
                .map(|points| together(points, factor))
                .collect(),
        }
    }
}

/// Several points as one: the last step, the mean, and the span.
fn together(points: &[(f64, f64)], factor: f64) -> CurvePoint {
    let values = points.iter().map(|point| factor * point.1);
    let low = values.clone().fold(f64::INFINITY, f64::min);
    let high = values.clone().fold(f64::NEG_INFINITY, f64::max);
    CurvePoint {
        at: points.last().map_or(0.0, |point| point.0),
        value: values.sum::<f64>() / points.len().max(1) as f64,
        interval: (points.len() > 1).then_some(Interval { low, high }),
    }
}

/// A series' name for people.
fn words(name: &str) -> String {
    labels::one_line(&name.replace('_', " ").replace('/', ": "))
}

/// A number with four digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (1e-3..1e5).contains(&size) => {
            let n_decimals = (3.0 - size.log10().floor()).clamp(0.0, 6.0) as usize;
            format!("{value:.n_decimals$}")
        }
        _ => format!("{value:.3e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(values: impl Fn(usize) -> f64, n: usize) -> Course {
        let points = |scale: f64| (1..=n).map(|at| (at as f64, scale * values(at))).collect();
        Course {
            label: "run".into(),
            series: [
                ("loss".to_owned(), points(1.0)),
                ("rate".to_owned(), points(1e-5)),
                ("validation/rsum".to_owned(), points(100.0)),
            ]
            .into(),
            facts: Vec::new(),
        }
    }

    #[test]
    fn many_steps_are_put_together_and_keep_their_mean_and_span() {
        let curve = course(|at| at as f64, 1000).curve("loss");
        assert_eq!(curve.points.len(), 200);
        let first = curve.points[0];
        // Steps 1 to 5.
        assert_eq!((first.at, first.value), (5.0, 3.0));
        assert_eq!(
            first.interval,
            Some(Interval {
                low: 1.0,
                high: 5.0
            })
        );
        assert_eq!(
            course(|at| at as f64, 200).curve("loss").points[0].interval,
            None
        );
    }

    #[test]
    fn small_numbers_are_written_times_a_power_of_ten() {
        let curve = course(|_| 3.0, 4).curve("rate");
        assert_eq!(curve.title, "rate × 10^5");
        assert!((curve.points[0].value - 3.0).abs() < 1e-12);
        assert_eq!(short(3e-5), "3.000e-5");
        assert_eq!(
            [short(1.0), short(123.456), short(0.0)],
            ["1.000", "123.5", "0"]
        );
    }

    #[test]
    fn what_is_not_finite_is_left_out_of_the_picture() {
        let chapters = course(|at| if at == 2 { f64::NAN } else { 1.0 }, 3).chapters(0);
        let titles: Vec<&str> = chapters.iter().map(|chapter| chapter.title).collect();
        assert_eq!(titles, ["Validation", "Losses", "Rates"]);
        for chapter in chapters {
            assert!(chapter.figures[0].contains("polyline") && !chapter.figures[0].contains("NaN"));
        }
    }
}
