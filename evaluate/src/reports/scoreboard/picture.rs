//! The means of a scoreboard as a picture: a dot with its interval for each row, the best first.

use std::fmt::Write;

use merge::distance::heat_map::escape;

use super::{RowKind, Score, ScoreRow, Scoreboard};
use crate::reports::curve::{decimals, step};
use crate::reports::labels;

/// Sizes in SVG units.
const WIDTH: f64 = 640.0;
const NAMES: f64 = 190.0;
const VALUES: f64 = 52.0;
const TOP: f64 = 34.0;
const ROW: f64 = 21.0;
const BOTTOM: f64 = 26.0;
/// About this many lines up.
const N_LINES: f64 = 5.0;

/// Colors of a picture that stands alone; those of the page's style sheet are the same.
const STYLE: &str = "<style>
svg { --page: #fff; --ink: #14161f; --muted: #525666; --rule: #e1e3ea; --accent: #5b3db5; background: var(--page); }
@media (prefers-color-scheme: dark) {
  svg { --page: #12131a; --ink: #eeeef4; --muted: #a9adbd; --rule: #2a2d3a; --accent: #b9a7ff; }
}
text { font: 12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; fill: var(--ink); }
.axis { fill: var(--muted); } .end { text-anchor: end; } .middle { text-anchor: middle; }
.name { font-size: 13px; font-weight: 650; }
.grid { stroke: var(--rule); } .end-of { stroke: var(--muted); stroke-dasharray: 3 4; }
.span { stroke: var(--accent); stroke-width: 2; } .other .span { stroke: var(--muted); }
.dot { fill: var(--page); stroke: var(--accent); stroke-width: 2; } .apart .dot { fill: var(--accent); }
.other .dot { fill: var(--muted); stroke: var(--muted); }
</style>\n";

/// The picture for a page whose style sheet has its colors.
#[must_use]
pub fn figure(board: &Scoreboard) -> String {
    drawn(board, "")
}

/// The picture as a file of its own.
#[must_use]
pub fn svg(board: &Scoreboard) -> String {
    drawn(board, STYLE)
}

fn drawn(board: &Scoreboard, style: &str) -> String {
    let mut rows: Vec<&ScoreRow> = board
        .rows
        .iter()
        .filter(|row| row.kind != RowKind::Copy)
        .collect();
    rows.sort_by(|one, other| other.mean.value.total_cmp(&one.mean.value));
    let Some(axis) = Axis::around(&rows) else {
        return String::new();
    };
    let height = TOP + ROW * rows.len() as f64 + BOTTOM;
    let n = board.tasks.len();
    let title = format!("Mean accuracy over {n} tasks");
    let mut body = String::new();
    axis.lines(&mut body, height);
    for kind in [RowKind::Pretrained, RowKind::FineTuned] {
        if let Some(mean) = board.mean_of(kind) {
            let x = axis.x(mean);
            // Writing to a string cannot fail.
            let _ = writeln!(
                body,
                "<line class=\"end-of\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\"/>",
                TOP - 6.0,
                height - BOTTOM
            );
        }
    }
    for (at, row) in rows.iter().enumerate() {
        let name = match row.name == board.baseline {
            true => format!("{} (baseline)", row.name),
            false => row.name.clone(),
        };
        axis.dot(&mut body, row, &name, TOP + ROW * (at as f64 + 0.5));
    }
    let described = rows
        .iter()
        .map(|row| format!("{}: {}", row.name, said(&row.mean)));
    let described = described.collect::<Vec<_>>().join("; ");
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"curve scores\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"scores-title scores-desc\">\n{style}<title id=\"scores-title\">{title}</title>\n\
         <desc id=\"scores-desc\">{}.</desc>\n<text class=\"name\" x=\"0\" y=\"14\">{title}\
         <tspan class=\"axis\"> in %, 95% intervals; filled: differs from the baseline (Holm)</tspan></text>\n{body}</svg>\n",
        escape(&described)
    )
}

fn said(score: &Score) -> String {
    let unit = crate::sample::Unit::Fraction;
    match score.interval {
        Some(interval) => format!(
            "{} ({})",
            labels::value(score.value, unit),
            labels::interval(interval, unit)
        ),
        None => labels::value(score.value, unit),
    }
}

/// The shares on the axis, in percent.
struct Axis {
    low: f64,
    high: f64,
    step: f64,
}

impl Axis {
    fn around(rows: &[&ScoreRow]) -> Option<Self> {
        let ends = rows.iter().flat_map(|row| {
            let interval = row.mean.interval;
            [
                100.0 * interval.map_or(row.mean.value, |i| i.low),
                100.0 * interval.map_or(row.mean.value, |i| i.high),
            ]
        });
        let (low, high) = ends.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), end| {
            (low.min(end), high.max(end))
        });
        let step = step((high - low).max(0.1) / N_LINES);
        let axis = Self {
            low: (low / step).floor() * step,
            high: (high / step).ceil().max((low / step).floor() + 1.0) * step,
            step,
        };
        (axis.low.is_finite() && axis.high.is_finite()).then_some(axis)
    }

    fn x(&self, share: f64) -> f64 {
        let along = (100.0 * share - self.low) / (self.high - self.low);
        NAMES + along * (WIDTH - NAMES - VALUES)
    }

    fn lines(&self, body: &mut String, height: f64) {
        let n_decimals = decimals(self.step);
        let n_lines = ((self.high - self.low) / self.step).round() as usize;
        for line in 0..=n_lines {
            let value = self.low + line as f64 * self.step;
            let (x, end) = (self.x(value / 100.0), height - BOTTOM);
            let _ = writeln!(
                body,
                "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{end:.1}\"/>\
                 <text class=\"axis middle\" x=\"{x:.1}\" y=\"{:.1}\">{value:.n_decimals$}</text>",
                end + 16.0
            );
        }
    }

    fn dot(&self, body: &mut String, row: &ScoreRow, name: &str, y: f64) {
        let class = match (row.kind, row.mean.is_surprising()) {
            (RowKind::Merge, true) => "apart",
            (RowKind::Merge, false) => "alike",
            _ => "other",
        };
        let _ = writeln!(
            body,
            "<g class=\"{class}\"><text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            NAMES - 12.0,
            y + 4.0,
            escape(name)
        );
        if let Some(interval) = row.mean.interval {
            let _ = write!(
                body,
                "<line class=\"span\" x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\"/>",
                self.x(interval.low),
                self.x(interval.high)
            );
        }
        let _ = writeln!(
            body,
            "<circle class=\"dot\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"4\"/>\
             <text class=\"axis end\" x=\"{WIDTH}\" y=\"{:.1}\">{:.1}</text></g>",
            self.x(row.mean.value),
            y + 4.0,
            100.0 * row.mean.value
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::board;
    use super::*;

    #[test]
    fn the_best_row_stands_first_and_what_differs_is_filled() {
        let svg = svg(&board());
        let place = |text: &str| svg.find(text).unwrap_or_else(|| panic!("no {text}: {svg}"));
        assert!(place(">fine-tuned</text>") < place(">a&lt;b</text>"));
        assert!(place(">a&lt;b</text>") < place(">mean (baseline)</text>"));
        assert_eq!(svg.matches("<g class=\"apart\">").count(), 2);
        assert_eq!(svg.matches("class=\"dot\"").count(), 5);
        assert!(svg.contains("a&lt;b: 60.00 (55.00–65.00)"));
        assert!(svg.starts_with("<svg xmlns") && svg.contains("prefers-color-scheme"));
        assert!(!svg.contains("NaN") && !figure(&board()).contains("<style>"));
    }
}
