//! A heat map as SVG: blocks down, modules across, one panel per comparison, one color scale.
//!
//! It is narrow enough to be read on a phone, follows the reader's light or dark theme, and prints
//! the value into every cell, so that nothing depends on telling colors apart.

mod color;

use std::fmt::Write;

use color::{Theme, css};

/// Distance from the edge of the picture, in SVG units (pixels at natural size).
const MARGIN: usize = 20;
/// Room for the names of the rows.
const ROW_LABEL: usize = 40;
const CELL_WIDTH: usize = 54;
const CELL_HEIGHT: usize = 28;
/// Empty space between neighbouring cells.
const GAP: usize = 2;
/// Narrowest picture whose title still fits.
const MIN_WIDTH: usize = 400;
/// Width of a character of the small text, on average, in hundredths of a unit.
const CHARACTER_WIDTH: usize = 610;
const FONTS: &str = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif";

/// The cells of a heat map and the words around them.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    /// The title, in a few words.
    pub title: String,
    /// Notes for the reader, one paragraph each.
    pub notes: Vec<String>,
    /// Names of the columns; a dot breaks the line.
    pub columns: Vec<String>,
    /// One grid per comparison.
    pub panels: Vec<Panel>,
    /// The quantity and its unit, e.g. `cosine dissimilarity (no unit, 0 to 2)`.
    pub quantity: String,
}

/// One grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// The compared sides.
    pub title: String,
    /// Name of the row, and a cell per column.
    pub rows: Vec<(String, Vec<Cell>)>,
}

/// A value of a grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell {
    /// There is no such tensor.
    Absent,
    /// The metric has no value there.
    Undefined,
    /// A finite value.
    Value(f64),
}

impl HeatMap {
    /// The picture as a file of its own.
    #[must_use]
    pub fn to_svg(&self) -> String {
        let mut canvas = self.canvas();
        canvas.paragraph("title", &self.title, 22, 870);
        canvas.y += 4;
        for note in &self.notes {
            canvas.paragraph("note", note, 16, CHARACTER_WIDTH);
        }
        canvas.y += 14;
        self.draw(canvas, true)
    }

    /// The grids and their legend as a part of a page that has [`page_style`] and says the title
    /// and the notes itself.
    #[must_use]
    pub fn to_figure(&self) -> String {
        let mut canvas = self.canvas();
        canvas.margin = 0;
        canvas.y = 0;
        canvas.width -= 2 * MARGIN;
        self.draw(canvas, false)
    }

    fn canvas(&self) -> Canvas {
        let grid_width = ROW_LABEL + self.columns.len() * CELL_WIDTH;
        let width = (grid_width + 2 * MARGIN).max(MIN_WIDTH);
        Canvas {
            body: String::new(),
            margin: MARGIN,
            y: MARGIN,
            width,
        }
    }

    fn draw(&self, mut canvas: Canvas, is_alone: bool) -> String {
        let scale = Scale::of(&self.panels);
        canvas.legend(&self.quantity, &scale);
        for panel in &self.panels {
            canvas.y += 26;
            canvas.panel(panel, &self.columns, &scale);
        }
        let (width, height) = (canvas.width, canvas.y + canvas.margin.max(GAP));
        let title = escape(&self.title);
        let (sizes, style) = match is_alone {
            true => (
                format!(
                    "width=\"100%\" style=\"max-width:{}px;height:auto\"",
                    width * 3 / 2
                ),
                format!("<style>\n{}</style>\n", file_style()),
            ),
            false => (
                // Narrow windows get a smaller picture before it has to be scrolled.
                format!(
                    "style=\"width:100%;min-width:{}px;max-width:{width}px\"",
                    width * 4 / 5
                ),
                String::new(),
            ),
        };
        format!(
            "<svg class=\"heat\" xmlns=\"http://www.w3.org/2000/svg\" \
             viewBox=\"0 0 {width} {height}\" {sizes} \
             preserveAspectRatio=\"xMidYMin\" role=\"img\" aria-label=\"{title}\">\n\
             <title>{title}</title>\n{style}\
             <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n{}</svg>\n",
            canvas.body,
        )
    }
}

/// Maps values to steps of the color scale, linearly from the smallest to the largest.
struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    fn of(panels: &[Panel]) -> Self {
        let cells = panels.iter().flat_map(|panel| &panel.rows);
        let values = cells
            .flat_map(|(_, cells)| cells)
            .filter_map(|cell| match cell {
                Cell::Value(value) => Some(*value),
                _ => None,
            });
        let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        });
        Self { low, high }
    }

    fn step(&self, value: f64) -> usize {
        let range = self.high - self.low;
        if range <= 0.0 {
            return 0;
        }
        // The largest value would otherwise open a step of its own.
        let step = (value - self.low) / range * color::STEPS as f64;
        (step as usize).min(color::STEPS - 1)
    }
}

struct Canvas {
    body: String,
    margin: usize,
    y: usize,
    width: usize,
}

impl Canvas {
    /// Text broken into lines; `character_width` in hundredths of a unit.
    fn paragraph(&mut self, class: &str, text: &str, line_height: usize, character_width: usize) {
        let room = (self.width - 2 * self.margin) * 100 / character_width;
        for line in wrap(text, room) {
            self.y += line_height;
            self.text(class, self.margin, self.y - 4, &line);
        }
    }

    fn text(&mut self, class: &str, x: usize, y: usize, text: &str) {
        let text = escape(text);
        // Writing to a string cannot fail.
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>"
        );
    }

    fn rect(&mut self, class: &str, (x, y): (usize, usize), (width, height): (usize, usize)) {
        let _ = writeln!(
            self.body,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"3\"/>"
        );
    }

    fn legend(&mut self, quantity: &str, scale: &Scale) {
        self.paragraph("label", quantity, 16, CHARACTER_WIDTH);
        if scale.low > scale.high {
            return;
        }
        let step_width = (self.width - 2 * self.margin) / color::STEPS;
        let right = self.margin + step_width * color::STEPS;
        for step in 0..color::STEPS {
            let x = self.margin + step * step_width;
            self.rect(&format!("f{step}"), (x, self.y + 4), (step_width - 1, 12));
        }
        self.y += 32;
        self.text(
            "label",
            self.margin,
            self.y,
            &format!("{} near", compact(scale.low)),
        );
        self.text(
            "label end",
            right,
            self.y,
            &format!("far {}", compact(scale.high)),
        );
    }

    fn panel(&mut self, panel: &Panel, columns: &[String], scale: &Scale) {
        self.paragraph("panel", &panel.title, 20, 720);
        let left = self.margin + ROW_LABEL;
        let middle = |column: usize| left + column * CELL_WIDTH + CELL_WIDTH / 2;
        self.text("label end", left - 8, self.y + 28, "block");
        for (column, name) in columns.iter().enumerate() {
            let (upper, lower) = name.split_once('.').unwrap_or(("", name));
            self.text("label middle", middle(column), self.y + 14, upper);
            self.text("label middle", middle(column), self.y + 28, lower);
        }
        self.y += 36;
        for (name, cells) in &panel.rows {
            self.text("label end", left - 8, self.y + 18, name);
            for (column, cell) in cells.iter().enumerate() {
                let place = (left + column * CELL_WIDTH, self.y);
                let what = format!("block {name}, {}", columns[column]);
                self.cell(*cell, scale, place, &what);
            }
            self.y += CELL_HEIGHT;
        }
    }

    /// A cell with its value; pointing at it shows the value in full.
    fn cell(&mut self, cell: Cell, scale: &Scale, (x, y): (usize, usize), what: &str) {
        let size = (CELL_WIDTH - GAP, CELL_HEIGHT - GAP);
        let (fill, ink, text, full) = match cell {
            Cell::Absent => return,
            Cell::Undefined => (
                "none".to_owned(),
                "note".to_owned(),
                "n/a".to_owned(),
                "undefined: one side is all zero".to_owned(),
            ),
            Cell::Value(value) => {
                let step = scale.step(value);
                (
                    format!("f{step}"),
                    format!("i{step}"),
                    compact(value),
                    value.to_string(),
                )
            }
        };
        let _ = writeln!(
            self.body,
            "<g><title>{}</title>",
            escape(&format!("{what}: {full}"))
        );
        self.rect(&fill, (x, y), size);
        let (middle, baseline) = (x + size.0 / 2, y + 18);
        self.text(&format!("value {ink}"), middle, baseline, &text);
        self.body.push_str("</g>\n");
    }
}

/// Three significant digits in at most seven characters.
fn compact(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if (0.01..10.0).contains(&size) => format!("{value:.3}"),
        size if (10.0..100.0).contains(&size) => format!("{value:.2}"),
        size if (100.0..1000.0).contains(&size) => format!("{value:.1}"),
        size if (1000.0..100_000.0).contains(&size) => format!("{value:.0}"),
        _ => format!("{value:.1e}"),
    }
}

/// Lines of at most `room` characters, broken at spaces; longer words stay whole.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Text for the inside of a picture or of an attribute in double quotes.
#[must_use]
pub fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            // XML has no way to write these.
            c if c.is_control() => "\u{fffd}".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

/// Rules for pictures within a page; they reach nothing else there.
#[must_use]
pub fn page_style() -> String {
    format!(
        ".heat text{{font:12px {FONTS}}}\n\
         .heat .title{{font-size:18px;font-weight:600}}\n\
         .heat .panel{{font-size:14px;font-weight:600}}\n\
         .heat .end{{text-anchor:end}}\n.heat .middle{{text-anchor:middle}}\n\
         .heat .value{{text-anchor:middle;font-variant-numeric:tabular-nums}}\n\
         {}@media (prefers-color-scheme:dark){{\n{}}}\n",
        css(Theme::Light),
        css(Theme::Dark)
    )
}

fn file_style() -> String {
    format!(
        ":root{{background:{}}}\n@media (prefers-color-scheme:dark){{:root{{background:{}}}}}\n{}",
        color::page(Theme::Light),
        color::page(Theme::Dark),
        page_style()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> HeatMap {
        HeatMap {
            title: "A & B".to_owned(),
            notes: vec!["<raw>".to_owned()],
            columns: vec!["attn.qkv".to_owned(), "norm1".to_owned()],
            panels: vec![Panel {
                title: "vision vs language".to_owned(),
                rows: vec![
                    ("0".to_owned(), vec![Cell::Value(0.25), Cell::Undefined]),
                    ("1".to_owned(), vec![Cell::Value(0.75), Cell::Absent]),
                ],
            }],
            quantity: "cosine".to_owned(),
        }
    }

    #[test]
    fn the_ends_of_the_scale_get_the_ends_of_the_colors() {
        let svg = map().to_svg();
        let last = color::STEPS - 1;
        assert!(svg.contains("block 0, attn.qkv: 0.25</title>\n<rect class=\"f0\""));
        assert!(svg.contains(&format!(
            "block 1, attn.qkv: 0.75</title>\n<rect class=\"f{last}\""
        )));
        assert!(svg.contains("block 0, norm1: undefined"));
        assert!(!svg.contains("block 1, norm1"));
    }

    #[test]
    fn names_cannot_break_out_of_the_picture() {
        let svg = map().to_svg();
        assert!(svg.contains("&lt;raw&gt;") && !svg.contains("<raw>"));
        assert!(svg.contains("aria-label=\"A &amp; B\""));
    }

    #[test]
    fn equal_values_and_no_values_are_drawn_too() {
        let mut map = map();
        map.panels[0].rows.truncate(1);
        assert!(map.to_svg().contains("class=\"f0\""));
        map.panels.clear();
        assert!(map.to_svg().ends_with("</svg>\n"));
    }

    #[test]
    fn values_of_any_size_fit_a_cell() {
        for (value, text) in [
            (0.0, "0"),
            (0.1234, "0.123"),
            (1.5, "1.500"),
            (12.345, "12.35"),
            (123.45, "123.5"),
            (54_321.0, "54321"),
            (1.26e-5, "1.3e-5"),
            (1e200, "1.0e200"),
        ] {
            assert_eq!(compact(value), text);
            assert!(text.len() <= 7);
        }
    }
}
