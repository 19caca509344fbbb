//! A number of several models along one axis as one SVG: a line with its interval band each, told apart by color
//! and by dashes, and a legend.

use std::fmt::Write;

use merge::distance::heat_map::escape;

use super::curve::{Frame, HEIGHT, WIDTH, description};
use super::document::Chart;

/// Height of a row of the legend, and where its second column begins.
const ROW: f64 = 17.0;
const SECOND: f64 = WIDTH / 2.0;

/// Colors of the style sheet, each with dashes of its own; further lines begin again.
const N_COLORS: usize = 6;

/// The picture of a chart; `id` tells the pictures of a page apart.
#[must_use]
pub fn svg(chart: &Chart, id: &str) -> String {
    let curves: Vec<_> = chart.lines.iter().map(|(_, curve)| curve).collect();
    let (Some(frame), Some(first)) = (Frame::around(&curves), curves.first()) else {
        return String::new();
    };
    let title = escape(&format!("{} over {}", first.title, chart.parameter));
    let mut body = String::new();
    frame.axes(&mut body, first, &chart.parameter);
    let drawn = chart.lines.iter().enumerate();
    for (at, (_, curve)) in drawn.clone() {
        // Writing to a string cannot fail.
        let _ = writeln!(body, "<g class=\"way way-{}\">", at % N_COLORS);
        frame.band(&mut body, curve);
        let _ = writeln!(body, "</g>");
    }
    for (at, (_, curve)) in drawn.clone() {
        let _ = writeln!(body, "<g class=\"way way-{}\">", at % N_COLORS);
        frame.line(&mut body, curve);
        frame.dots(&mut body, curve);
        let _ = writeln!(body, "</g>");
    }
    for (at, (name, _)) in drawn.clone() {
        let x = if at % 2 == 0 { 0.0 } else { SECOND };
        let y = HEIGHT + 8.0 + ROW * (at / 2) as f64;
        let _ = writeln!(
            body,
            "<g class=\"way way-{}\"><line class=\"line\" x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\"/></g>\
             <text class=\"axis\" x=\"{}\" y=\"{}\">{}</text>",
            at % N_COLORS,
            x + 26.0,
            x + 33.0,
            y + 4.0,
            escape(name)
        );
    }
    let described = chart.lines.iter().map(|(name, curve)| {
        let said = description(curve, &chart.parameter);
        format!("{name}: {said}")
    });
    let described = described.collect::<Vec<_>>().join(" ");
    let height = HEIGHT + ROW * chart.lines.len().div_ceil(2) as f64;
    format!(
        "<svg class=\"curve\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\">\n<title id=\"{id}-title\">{title}</title>\n\
         <desc id=\"{id}-desc\">{}</desc>\n{body}</svg>\n",
        escape(&described)
    )
}

#[cfg(test)]
mod tests {
    use super::super::document::{Curve, CurvePoint};
    use super::*;
    use crate::metrics::bootstrap::Interval;
    use crate::sample::Unit;

    fn curve(values: &[(f64, f64)]) -> Curve {
        let point = |&(at, value): &(f64, f64)| CurvePoint {
            at,
            value,
            interval: Some(Interval {
                low: value - 0.1,
                high: value + 0.1,
            }),
        };
        Curve {
            name: "cider".into(),
            title: "CIDEr".into(),
            unit: Unit::Tenfold,
            higher_is_better: true,
            points: values.iter().map(point).collect(),
        }
    }

    #[test]
    fn all_lines_share_the_axes_and_each_stands_in_the_legend() {
        let chart = Chart {
            parameter: "steps".into(),
            lines: vec![
                ("a<b".into(), curve(&[(10.0, 0.5), (20.0, 0.75)])),
                ("other".into(), curve(&[(40.0, 0.2)])),
            ],
        };
        let svg = svg(&chart, "c");
        assert_eq!(svg.matches("class=\"dot\"").count(), 3);
        assert!(svg.contains("a&lt;b</text>") && svg.contains("other</text>"));
        // Values from 0.1 to 0.85, times 100, and places from 10 to 40.
        let labels = [
            "0</text>",
            "20</text>",
            "80</text>",
            "100</text>",
            ">40</text>",
        ];
        assert!(labels.iter().all(|label| svg.contains(label)), "{svg}");
        assert!(!svg.contains("NaN"));
        let empty = Chart {
            parameter: "steps".into(),
            lines: Vec::new(),
        };
        assert_eq!(super::svg(&empty, "c"), "");
    }
}
