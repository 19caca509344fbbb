//! Tables in GitHub's Markdown.

use std::fmt::Write;

use super::document::{Cell, Document, Grid, Group, RowKind};
use super::labels;
use super::published::Status;
use super::scoreboard::ScoreTable;
use crate::{Error, ReportFault, Result};

/// The document as Markdown. Details of the results are left to the HTML page and the CSV.
///
/// # Errors
/// [`ReportFault::NoHeatMap`] when it holds distances.
pub fn markdown(document: &Document) -> Result<String> {
    if let Some((label, _)) = document.distances.first() {
        return Err(Error::Report(ReportFault::NoHeatMap {
            label: label.clone(),
            format: "Markdown",
        }));
    }
    let mut text = format!("# {}\n", escape(&document.title));
    if let Some(overview) = &document.overview {
        text.push('\n');
        text.push_str(&table(overview, "method"));
    }
    if let Some(board) = &document.scoreboard {
        for (_, table) in board.tables() {
            text.push('\n');
            text.push_str(&of_scores(&table));
        }
        for note in &board.notes {
            let _ = writeln!(text, "\n{}", escape(note));
        }
        return Ok(text);
    }
    for group in &document.groups {
        section(&mut text, group);
    }
    text.push('\n');
    for sentence in legend(document) {
        let _ = writeln!(text, "{}", escape(&sentence));
    }
    Ok(text)
}

/// A table of a scoreboard.
fn of_scores(table: &ScoreTable) -> String {
    let line = |cells: &[String]| {
        let cells = cells.iter().map(|cell| format!(" {} |", escape(cell)));
        format!("|{}\n", cells.collect::<String>())
    };
    let mut text = line(&table.headings);
    let _ = writeln!(text, "|{}", "---|".repeat(table.headings.len()));
    text.extend(table.rows.iter().map(|row| line(row)));
    text
}

/// Notes on reading the numbers.
pub(super) fn legend(document: &Document) -> Vec<String> {
    let mut sentences = vec![
        "In brackets: 95% interval by the bootstrap.".to_owned(),
        "Bold: the best of its column.".to_owned(),
    ];
    if document.has_tests() {
        sentences.push(
            "Stars: differs from the reference by the paired bootstrap, * p < 0.05, ** p < 0.01, \
             *** p < 0.001, each number by itself, without a correction for their count."
                .to_owned(),
        );
    }
    sentences.extend(document.remarks.iter().cloned());
    sentences
}

fn section(text: &mut String, group: &Group) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n## {}\n", escape(&group.title));
    if !group.counts.is_empty() {
        let _ = writeln!(text, "{}.\n", escape(&group.counts));
    }
    text.push_str(&table(&group.grid, "method"));
    if let Some(breakdown) = &group.breakdown {
        let _ = write!(text, "\n{}", turned(breakdown));
    }
    for sweep in &group.sweeps {
        let parameter = escape(&sweep.parameter);
        let _ = writeln!(
            text,
            "\n### Sweep of {parameter} ({})\n",
            escape(&sweep.label)
        );
        text.push_str(&table(&sweep.grid, &sweep.parameter));
        if let Some(best) = sweep.best {
            let _ = writeln!(text, "\nBest: {parameter} {best}.");
        }
        for remark in &sweep.remarks {
            let _ = writeln!(text, "\n{}", escape(remark));
        }
    }
    for remark in &group.remarks {
        let _ = writeln!(text, "\n{}", escape(remark));
    }
}

fn table(grid: &Grid, corner: &str) -> String {
    let mut text = format!("| {} |", escape(corner));
    for column in &grid.columns {
        let name = match column.group.as_str() {
            "" => column.title.clone(),
            group => format!("{group}: {}", column.title),
        };
        let _ = write!(text, " {} |", heading(&name, column.unit_text()));
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(grid.columns.len()));
    text.push('\n');
    for row in &grid.rows {
        let name = match &row.kind {
            RowKind::Measured { is_reference: true } => format!("{} (reference)", row.name),
            RowKind::Measured { .. } => row.name.clone(),
            RowKind::Published { status, source } => {
                format!("{} [published{}: {source}]", row.name, status_text(*status))
            }
        };
        let _ = write!(text, "| {} |", escape(&name));
        for cell in &row.cells {
            let _ = write!(text, " {} |", self::cell(cell));
        }
        text.push('\n');
    }
    text
}

/// A table with numbers down and methods across.
fn turned(grid: &Grid) -> String {
    let (headings, rows) = grid.turned();
    let mut text = "| part |".to_owned();
    for heading in &headings {
        let _ = write!(text, " {} |", escape(heading));
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(headings.len()));
    text.push('\n');
    for (name, cells) in rows {
        let _ = write!(text, "| {} |", escape(name));
        for cell in cells {
            let _ = write!(text, " {} |", self::cell(cell));
        }
        text.push('\n');
    }
    text
}

/// A note on the certainty of a published figure.
pub(super) fn status_text(status: Status) -> &'static str {
    match status {
        Status::Sourced => "",
        Status::Secondary => ", as cited",
        Status::NotSourced => ", not sourced",
    }
}

fn heading(name: &str, unit: &str) -> String {
    match unit {
        "%" | "" => escape(name),
        unit => format!("{} ({unit})", escape(name)),
    }
}

fn cell(cell: &Cell) -> String {
    let (value, interval, stars) = cell.parts();
    let mut text = match cell.is_best() {
        true => format!("**{value}**"),
        false => value,
    };
    if let Some(interval) = interval {
        let _ = write!(text, " \\[{interval}\\]");
    }
    if !stars.is_empty() {
        let _ = write!(text, " {}", stars.replace('*', "\\*"));
    }
    text
}

/// Text that Markdown takes as it is, in a table too.
fn escape(text: &str) -> String {
    let mut safe = String::new();
    for c in labels::one_line(text).chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '!' | '$' => {
                safe.push('\\');
                safe.push(c);
            }
            c => safe.push(c),
        }
    }
    // Bare addresses would become links.
    safe.replace("://", ":&#47;/").replace("www.", "www&#46;")
}
