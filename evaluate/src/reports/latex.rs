//! Tables in LaTeX, for `booktabs`.

use std::fmt::Write;

use super::document::{Cell, Document, Grid, RowKind};
use super::labels;
use super::markdown::{legend, status_text};
use crate::{Error, ReportFault, Result};

/// The document as LaTeX tables, to be included in a text with `\usepackage{booktabs}`.
///
/// # Errors
/// [`ReportFault::NoHeatMap`] when it holds distances.
pub fn latex(document: &Document) -> Result<String> {
    if let Some((label, _)) = document.distances.first() {
        return Err(Error::Report(ReportFault::NoHeatMap {
            label: label.clone(),
            format: "LaTeX",
        }));
    }
    let notes: Vec<String> = legend(document).iter().map(|note| escape(note)).collect();
    let notes = notes.join(" ");
    let mut text = "% Needs \\usepackage{booktabs}.\n".to_owned();
    if let Some(overview) = &document.overview {
        let caption = format!("{}. {notes}", escape(&document.title));
        text.push_str(&table(overview, "Method", &caption));
    }
    for group in &document.groups {
        let mut caption = escape(&group.title);
        if !group.counts.is_empty() {
            let _ = write!(caption, " ({})", escape(&group.counts));
        }
        for remark in &group.remarks {
            let _ = write!(caption, ". {}", escape(remark.trim_end_matches('.')));
        }
        let grid = table(&group.grid, "Method", &format!("{caption}. {notes}"));
        text.push_str(&grid);
        for sweep in &group.sweeps {
            let title = escape(&group.title);
            let caption = format!("Sweep of {}: {title}.", escape(&sweep.parameter));
            text.push_str(&table(&sweep.grid, &sweep.parameter, &caption));
        }
    }
    Ok(text)
}

fn table(grid: &Grid, corner: &str, caption: &str) -> String {
    let n = grid.columns.len();
    let mut text = format!(
        "\n\\begin{{table}}\n\\centering\n\\caption{{{caption}}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n",
        "r".repeat(n)
    );
    // Writing to a string cannot fail.
    if grid.columns.iter().any(|column| !column.group.is_empty()) {
        let spans = spans(grid);
        for (group, range) in &spans {
            let (group, n) = (escape(group), range.len());
            let _ = write!(text, " & \\multicolumn{{{n}}}{{c}}{{{group}}}");
        }
        text.push_str(" \\\\\n");
        for (_, range) in &spans {
            let _ = write!(
                text,
                "\\cmidrule(lr){{{}-{}}}",
                range.start + 2,
                range.end + 1
            );
        }
        text.push('\n');
    }
    text.push_str(&escape(corner));
    for column in &grid.columns {
        let title = escape(&column.title);
        match column.unit_text() {
            "%" | "" => write!(text, " & {title}"),
            unit => write!(text, " & {title} ({})", escape(unit)),
        }
        .ok();
    }
    text.push_str(" \\\\\n\\midrule\n");
    let mut is_published = false;
    for row in &grid.rows {
        let name = match &row.kind {
            RowKind::Measured { is_reference: true } => format!("{} (reference)", row.name),
            RowKind::Measured { .. } => row.name.clone(),
            RowKind::Published { status, .. } => {
                format!("{} (published{})", row.name, status_text(*status))
            }
        };
        if matches!(row.kind, RowKind::Published { .. }) && !is_published {
            is_published = true;
            text.push_str("\\midrule\n");
        }
        text.push_str(&escape(&name));
        for cell in &row.cells {
            let _ = write!(text, " & {}", self::cell(cell));
        }
        text.push_str(" \\\\\n");
    }
    text.push_str("\\bottomrule\n\\end{tabular}\n\\end{table}\n");
    text
}

/// Neighbouring columns of the same data.
fn spans(grid: &Grid) -> Vec<(String, std::ops::Range<usize>)> {
    let mut spans: Vec<(String, std::ops::Range<usize>)> = Vec::new();
    for (index, column) in grid.columns.iter().enumerate() {
        match spans.last_mut() {
            Some((group, range)) if *group == column.group => range.end = index + 1,
            _ => spans.push((column.group.clone(), index..index + 1)),
        }
    }
    spans
}

fn cell(cell: &Cell) -> String {
    let (value, interval, stars) = cell.parts();
    let value = escape(&value);
    let mut text = match cell.is_best() {
        true => format!("\\textbf{{{value}}}"),
        false => value,
    };
    if !stars.is_empty() {
        let _ = write!(text, "$^{{{stars}}}$");
    }
    if let Some(interval) = interval {
        let _ = write!(text, " {{\\scriptsize {{[}}{}{{]}}}}", escape(&interval));
    }
    text
}

/// Text that LaTeX prints as it is.
fn escape(text: &str) -> String {
    let mut safe = String::new();
    for c in labels::one_line(text).chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                safe.push('\\');
                safe.push(c);
            }
            '\\' => safe.push_str("\\textbackslash{}"),
            '~' => safe.push_str("\\textasciitilde{}"),
            '^' => safe.push_str("\\textasciicircum{}"),
            '<' => safe.push_str("\\textless{}"),
            '>' => safe.push_str("\\textgreater{}"),
            '|' => safe.push_str("\\textbar{}"),
            '"' => safe.push_str("{\\char34}"),
            // After the end of a row these would be its arguments.
            '[' | ']' | '*' => {
                safe.push('{');
                safe.push(c);
                safe.push('}');
            }
            '–' => safe.push_str("--"),
            '−' => safe.push_str("$-$"),
            '±' => safe.push_str("$\\pm$"),
            '“' => safe.push_str("``"),
            '”' => safe.push_str("''"),
            c => safe.push(c),
        }
    }
    safe
}
