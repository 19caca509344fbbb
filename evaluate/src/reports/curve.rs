//! A number along a parameter as SVG: line, interval band, best point.
//!
//! Made for a page whose style sheet colors the classes `axis`, `grid`, `band`, `line`, `dot`,
//! `best` and `chosen`. Legible at the width of a phone; the values stand in the description too.

use std::fmt::Write;

use merge::distance::heat_map::escape;

use super::document::{Curve, CurvePoint};
use super::labels;

/// Size in SVG units, which are pixels on a phone.
pub(super) const WIDTH: f64 = 360.0;
pub(super) const HEIGHT: f64 = 236.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 42.0;
/// About this many lines across.
const N_LINES: f64 = 4.0;
/// Half the room that the label of the best point takes.
const LABEL_HALF: f64 = 62.0;

/// The picture of a curve. `chosen` is the value that the sweep calls the best, `id` tells the
/// pictures of a page apart.
#[must_use]
pub fn svg(curve: &Curve, parameter: &str, chosen: Option<f64>, id: &str) -> String {
    let Some(frame) = Frame::of(curve) else {
        return String::new();
    };
    let title = escape(&format!("{} over {parameter}", curve.title));
    let mut body = String::new();
    frame.axes(&mut body, curve, parameter);
    if let Some(at) = chosen {
        let x = frame.x(at);
        // Writing to a string cannot fail.
        let _ = writeln!(
            body,
            "<line class=\"chosen\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
            HEIGHT - BOTTOM
        );
    }
    frame.band(&mut body, curve);
    frame.line(&mut body, curve);
    frame.dots(&mut body, curve);
    if let Some(best) = curve.best() {
        frame.mark_best(&mut body, best, curve);
    }
    format!(
        "<svg class=\"curve\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
         <desc id=\"{id}-desc\">{}</desc>\n{body}</svg>\n",
        escape(&description(curve, parameter))
    )
}

/// The picture of a number over the steps of a run: a line alone, its points too close to be seen
/// apart.
#[must_use]
pub(super) fn course(curve: &Curve, parameter: &str, id: &str) -> String {
    let Some(frame) = Frame::of(curve) else {
        return String::new();
    };
    let title = escape(&format!("{} over {parameter}", curve.title));
    let mut body = String::new();
    frame.axes(&mut body, curve, parameter);
    frame.band(&mut body, curve);
    frame.line(&mut body, curve);
    let ends = [curve.points.first(), curve.points.last()];
    let ends = ends.into_iter().flatten();
    let ends: Vec<String> = ends
        .map(|point| format!("{}: {}", point.at, labels::value(point.value, curve.unit)))
        .collect();
    format!(
        "<svg class=\"curve\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
         <desc id=\"{id}-desc\">{}</desc>\n{body}</svg>\n",
        escape(&format!("{parameter} and value: {}", ends.join(" to ")))
    )
}

/// The curve in words.
pub(super) fn description(curve: &Curve, parameter: &str) -> String {
    let points = curve.points.iter().map(|point| {
        let value = labels::value(point.value, curve.unit);
        match point.interval {
            Some(i) => format!(
                "{}: {value} ({})",
                point.at,
                labels::interval(i, curve.unit)
            ),
            None => format!("{}: {value}", point.at),
        }
    });
    let points = points.collect::<Vec<_>>().join("; ");
    match curve.best() {
        None => points,
        Some(best) => format!("{parameter} and value: {points}. Best at {}.", best.at),
    }
}

/// The part of the plane in view, in the units of the values.
pub(super) struct Frame {
    x: (f64, f64),
    y: (f64, f64),
    y_step: f64,
}

impl Frame {
    fn of(curve: &Curve) -> Option<Self> {
        Self::around(&[curve])
    }

    /// The frame that shows several curves of one number whole.
    pub(super) fn around(curves: &[&Curve]) -> Option<Self> {
        let unit = curves.first()?.unit;
        let places = curves.iter().flat_map(|curve| &curve.points);
        let places = places.map(|point| point.at);
        let first = places.clone().reduce(f64::min)?;
        let last = places.reduce(f64::max)?;
        let scaled = |value| labels::scaled(value, unit);
        let ends = curves.iter().flat_map(|curve| &curve.points);
        let ends = ends.flat_map(|point| {
            let interval = point.interval;
            [
                scaled(interval.map_or(point.value, |i| i.low.min(point.value))),
                scaled(interval.map_or(point.value, |i| i.high.max(point.value))),
            ]
        });
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| {
            (low.min(end), high.max(end))
        });
        let y_step = step((high - low).max(1e-6 * high.abs()).max(1e-9) / N_LINES);
        let x = match last - first > 0.0 {
            true => (first, last),
            false => (first - 0.5, first + 0.5),
        };
        let y = (
            (low / y_step).floor() * y_step,
            (high / y_step).ceil().max((low / y_step).floor() + 1.0) * y_step,
        );
        let is_drawable = [x.0, x.1, y.0, y.1, y_step]
            .iter()
            .all(|end| end.is_finite());
        is_drawable.then_some(Self { x, y, y_step })
    }

    fn x(&self, at: f64) -> f64 {
        LEFT + (at - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    pub(super) fn axes(&self, body: &mut String, curve: &Curve, parameter: &str) {
        let right = WIDTH - RIGHT;
        let n_decimals = decimals(self.y_step);
        let n_lines = ((self.y.1 - self.y.0) / self.y_step).round() as usize;
        for line in 0..=n_lines {
            let value = self.y.0 + line as f64 * self.y_step;
            let y = self.y(value);
            let _ = writeln!(
                body,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>\
                 <text class=\"axis end\" x=\"{:.1}\" y=\"{:.1}\">{value:.n_decimals$}</text>",
                LEFT - 7.0,
                y + 4.0
            );
        }
        let x_step = step((self.x.1 - self.x.0) / 5.0);
        let n_decimals = decimals(x_step);
        let mut at = (self.x.0 / x_step - 1e-9).ceil() * x_step;
        let y = HEIGHT - BOTTOM;
        while at <= self.x.1 + 1e-9 * x_step {
            // Neither −0 nor a sum that just misses it.
            let at_shown = if at.abs() < 1e-9 * x_step { 0.0 } else { at };
            let _ = writeln!(
                body,
                "<line class=\"tick\" x1=\"{0:.1}\" y1=\"{y}\" x2=\"{0:.1}\" y2=\"{1}\"/>\
                 <text class=\"axis middle\" x=\"{0:.1}\" y=\"{2}\">{at_shown:.n_decimals$}</text>",
                self.x(at),
                y + 4.0,
                y + 17.0
            );
            at += x_step;
        }
        let unit = labels::unit(curve.unit);
        let _ = writeln!(
            body,
            "<line class=\"tick\" x1=\"{LEFT}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\"/>\
             <text class=\"name\" x=\"0\" y=\"13\">{}<tspan class=\"axis\"> {unit}</tspan></text>\
             <text class=\"axis middle\" x=\"{:.1}\" y=\"{}\">{}</text>",
            escape(&curve.title),
            f64::midpoint(LEFT, right),
            HEIGHT - 7.0,
            escape(parameter)
        );
    }

    fn place(&self, at: f64, value: f64, curve: &Curve) -> String {
        let (x, y) = (self.x(at), self.y(labels::scaled(value, curve.unit)));
        format!("{x:.1},{y:.1}")
    }

    pub(super) fn band(&self, body: &mut String, curve: &Curve) {
        let points = curve.points.iter();
        let ends: Vec<_> = points.filter_map(|p| Some((p.at, p.interval?))).collect();
        if ends.len() < 2 {
            return;
        }
        let upper = ends.iter().map(|(at, i)| self.place(*at, i.high, curve));
        let lower = ends
            .iter()
            .rev()
            .map(|(at, i)| self.place(*at, i.low, curve));
        let corners: Vec<String> = upper.chain(lower).collect();
        let _ = writeln!(
            body,
            "<polygon class=\"band\" points=\"{}\"/>",
            corners.join(" ")
        );
    }

    pub(super) fn line(&self, body: &mut String, curve: &Curve) {
        let places = curve
            .points
            .iter()
            .map(|p| self.place(p.at, p.value, curve));
        let places: Vec<String> = places.collect();
        let _ = writeln!(
            body,
            "<polyline class=\"line\" points=\"{}\"/>",
            places.join(" ")
        );
    }

    pub(super) fn dots(&self, body: &mut String, curve: &Curve) {
        for point in &curve.points {
            let (x, y) = (
                self.x(point.at),
                self.y(labels::scaled(point.value, curve.unit)),
            );
            let value = labels::value(point.value, curve.unit);
            let _ = writeln!(
                body,
                "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\">\
                 <title>{}: {value}</title></circle>",
                point.at
            );
        }
    }

    fn mark_best(&self, body: &mut String, best: &CurvePoint, curve: &Curve) {
        let (x, y) = (
            self.x(best.at),
            self.y(labels::scaled(best.value, curve.unit)),
        );
        let text = format!(
            "best {} at {}",
            labels::value(best.value, curve.unit),
            best.at
        );
        let middle = x.clamp(LEFT + LABEL_HALF, WIDTH - RIGHT - LABEL_HALF);
        // Above the point, unless that is outside.
        let baseline = if y - 12.0 > TOP { y - 12.0 } else { y + 22.0 };
        let _ = writeln!(
            body,
            "<circle class=\"best\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5.5\"/>\
             <text class=\"best-text middle\" x=\"{middle:.1}\" y=\"{baseline:.1}\">{text}</text>"
        );
    }
}

/// The next larger of 1, 2 and 5 times a power of ten.
pub(super) fn step(least: f64) -> f64 {
    let power = 10f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|factor| factor * power);
    let found = steps.into_iter().find(|step| *step >= least * (1.0 - 1e-9));
    found.unwrap_or(10.0 * power)
}

/// The number of decimals that multiples of a step need.
pub(super) fn decimals(step: f64) -> usize {
    (-step.log10().floor()).clamp(0.0, 9.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::bootstrap::Interval;
    use crate::sample::Unit;

    fn curve(values: &[(f64, f64)]) -> Curve {
        let point = |&(at, value): &(f64, f64)| CurvePoint {
            at,
            value,
            interval: Some(Interval {
                low: value - 0.01,
                high: value + 0.01,
            }),
        };
        Curve {
            name: "tr_r1".into(),
            title: "TR@1".into(),
            unit: Unit::Fraction,
            higher_is_better: true,
            points: values.iter().map(point).collect(),
        }
    }

    #[test]
    fn the_best_point_is_named_with_its_place() {
        let svg = svg(
            &curve(&[(0.0, 0.5), (0.5, 0.75), (1.0, 0.6)]),
            "ratio",
            Some(0.5),
            "c",
        );
        assert!(svg.contains("best 75.00 at 0.5"), "{svg}");
        assert!(svg.contains("Best at 0.5."));
        assert_eq!(svg.matches("class=\"dot\"").count(), 3);
    }

    #[test]
    fn one_point_and_equal_values_are_drawn_and_none_is_not() {
        for values in [
            &[(0.5, 0.5)][..],
            &[(0.0, 0.0), (1.0, 0.0)],
            &[(0.1, 0.3), (0.2, 0.3)],
        ] {
            let svg = svg(&curve(values), "ratio", None, "c");
            assert!(svg.contains("class=\"best\"") && !svg.contains("NaN") && !svg.contains("inf"));
        }
        assert_eq!(svg(&curve(&[]), "ratio", None, "c"), "");
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(step(0.03), 0.05);
        assert_eq!(step(1.2), 2.0);
        assert_eq!(step(7.0), 10.0);
        assert_eq!([decimals(0.05), decimals(2.0), decimals(0.2)], [2, 0, 1]);
    }
}
