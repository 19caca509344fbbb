//! One page that holds everything: no other file, no script, no network.

use askama::Template;
use merge::distance::heat_map;

use super::course::{Chapter, Course};
use super::document::{Cell, Chart, Document, Grid, Placed, RowKind};
use super::published::Status;
use super::scoreboard::{self, ScoreTable, Scoreboard};
use super::{Example, Item, chart, curve, document, labels};
use crate::{Error, ReportFault, Result};

const STYLE: &str = include_str!("../../templates/report.css");

/// The document as an HTML page.
///
/// # Errors
/// [`ReportFault::Thumbnail`] when a picture is anything but an embedded PNG or JPEG file, and
/// [`ReportFault::NoCells`] when distances were measured of other things than modules within blocks.
pub fn html(document: &Document) -> Result<String> {
    for example in document.results.iter().flat_map(|p| &p.result.examples) {
        check_pictures(example)?;
    }
    let maps = document.distances.iter().map(|(label, report)| {
        let mut maps = Vec::new();
        for metric in &report.metrics {
            let map = report.heat_map(metric).ok_or_else(|| {
                Error::Report(ReportFault::NoCells {
                    label: label.clone(),
                })
            })?;
            maps.push((map.title.clone(), map.notes.clone(), map.to_figure()));
        }
        Ok(maps)
    });
    let page = Page {
        document,
        maps: maps.collect::<Result<Vec<_>>>()?.concat(),
        style: STYLE,
        heat_style: match document.distances.is_empty() {
            true => String::new(),
            false => heat_map::page_style(),
        },
        version: env!("CARGO_PKG_VERSION"),
    };
    Ok(page.render()?)
}

/// Whether an address is a PNG or JPEG file in itself: everything else could reach for the network
/// or hold a script.
#[must_use]
pub fn is_embedded_picture(address: &str) -> bool {
    let kinds = ["data:image/png;base64,", "data:image/jpeg;base64,"];
    let data = kinds.iter().find_map(|kind| address.strip_prefix(kind));
    let is_base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
    data.is_some_and(|data| !data.is_empty() && data.bytes().all(is_base64))
}

fn check_pictures(example: &Example) -> Result<()> {
    let retrieved = example.retrieved.iter().map(|r| &r.item);
    for item in retrieved.chain([&example.query]).chain(&example.right) {
        if let Item::Image { id, thumbnail } = item
            && !is_embedded_picture(thumbnail)
        {
            return Err(Error::Report(ReportFault::Thumbnail { id: id.clone() }));
        }
    }
    Ok(())
}

/// The page. Text that is not escaped here (`safe`) is made in this crate and escapes its text itself:
/// the style sheets, the curves and the heat maps.
#[derive(Template)]
#[template(path = "report.html", whitespace = "minimize")]
struct Page<'a> {
    document: &'a Document,
    maps: Vec<(String, Vec<String>, String)>,
    style: &'a str,
    heat_style: String,
    version: &'a str,
}

/// The source of a published row, as a clause.
fn source(kind: &RowKind) -> Option<String> {
    match kind {
        RowKind::Measured { .. } => None,
        RowKind::Published { status, source } => Some(match status {
            Status::Sourced => source.clone(),
            Status::Secondary => format!("as cited in {source}"),
            Status::NotSourced => format!("not at hand: {source}"),
        }),
    }
}

/// A run of columns of the same data.
struct Span<'a> {
    group: &'a str,
    n: usize,
}

/// One key and its value in the details of a result.
struct Fact {
    key: String,
    value: String,
    is_code: bool,
}

impl Page<'_> {
    fn n_files(&self) -> usize {
        let files = self.document.results.iter().map(|placed| &placed.label);
        let maps = self.document.distances.iter().map(|(label, _)| label);
        let runs = self.document.courses.iter().map(|course| &course.label);
        files
            .chain(maps)
            .chain(runs)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
    }

    fn summary(&self) -> String {
        let plural = |n: usize, what: &str| match n {
            1 => format!("1 {what}"),
            n => format!("{n} {what}s"),
        };
        let n_results = self.document.results.len();
        let files = plural(self.n_files(), "file");
        if let Some(board) = &self.document.scoreboard {
            let (n, tasks) = (board.rows.len(), board.tasks.len());
            return format!("{} on {}.", plural(n, "row"), plural(tasks, "task"));
        }
        match n_results {
            0 => format!("From {files}."),
            n => format!("{} from {files}.", plural(n, "result")),
        }
    }

    fn spans<'a>(&self, grid: &'a Grid) -> Vec<Span<'a>> {
        let mut spans: Vec<Span<'a>> = Vec::new();
        for column in &grid.columns {
            match spans.last_mut() {
                Some(span) if span.group == column.group => span.n += 1,
                _ => spans.push(Span {
                    group: &column.group,
                    n: 1,
                }),
            }
        }
        match spans.iter().all(|span| span.group.is_empty()) {
            true => Vec::new(),
            false => spans,
        }
    }

    /// Whether a column begins the numbers of other data.
    fn is_first(&self, grid: &Grid, index: &usize) -> bool {
        *index > 0 && grid.columns[*index].group != grid.columns[index - 1].group
    }

    fn is_first_published(&self, grid: &Grid, index: &usize) -> bool {
        let is_published = |index: usize| {
            let kind = grid.rows.get(index).map(|row| &row.kind);
            matches!(kind, Some(RowKind::Published { .. }))
        };
        is_published(*index) && (*index == 0 || !is_published(*index - 1))
    }

    /// The sources of a table's published rows, each once.
    fn sources(&self, grid: &Grid) -> Vec<String> {
        let mut sources = Vec::new();
        for row in &grid.rows {
            if let Some(source) = source(&row.kind)
                && !sources.contains(&source)
            {
                sources.push(source);
            }
        }
        sources
    }

    /// The number of a row's source, from 1.
    fn source_number(&self, grid: &Grid, kind: &RowKind) -> Option<usize> {
        let source = source(kind)?;
        let found = self
            .sources(grid)
            .iter()
            .position(|known| *known == source)?;
        Some(found + 1)
    }

    /// A name in pieces between which a line may break.
    fn pieces<'a>(&self, name: &'a str) -> Vec<&'a str> {
        name.split_inclusive(['.', '_', '-', '/', '=']).collect()
    }

    fn curve(&self, sweep: &document::Sweep, index: &usize, place: &str) -> String {
        let id = format!("curve-{place}-{index}");
        curve::svg(&sweep.curves[*index], &sweep.parameter, sweep.best, &id)
    }

    fn chart(&self, chart: &Chart, place: &str) -> String {
        chart::svg(chart, &format!("chart-{place}"))
    }

    fn scores(&self, board: &Scoreboard) -> String {
        scoreboard::figure(board)
    }

    fn score_tables(&self, board: &Scoreboard) -> Vec<(&'static str, ScoreTable)> {
        board.tables()
    }

    fn chapters(&self, course: &Course, place: &usize) -> Vec<Chapter> {
        course.chapters(*place)
    }

    fn value(&self, cell: &Cell) -> String {
        cell.parts().0
    }

    fn interval(&self, cell: &Cell) -> Option<String> {
        cell.parts().1
    }

    fn stars(&self, cell: &Cell) -> &'static str {
        cell.parts().2
    }

    fn of_kind<'a>(&self, examples: &'a [Example], is_best: &bool) -> Vec<&'a Example> {
        let of_kind = |example: &&Example| example.is_best == *is_best;
        examples.iter().filter(of_kind).collect()
    }

    fn score(&self, score: &f64) -> String {
        format!("{score:.4}")
    }

    fn facts(&self, placed: &Placed) -> Vec<Fact> {
        let result = &placed.result;
        let mut facts = Vec::new();
        let mut add = |key: &str, value: String, is_code: bool| {
            facts.push(Fact {
                key: key.to_owned(),
                value: labels::one_line_per_line(&value),
                is_code,
            });
        };
        add("File", placed.label.clone(), false);
        let data = [
            Some(&result.task),
            result.dataset.as_ref(),
            result.split.as_ref(),
        ];
        let data: Vec<&str> = data.into_iter().flatten().map(String::as_str).collect();
        add("Task and data", data.join(" · "), false);
        for (what, &n) in &result.counts {
            add(what, merge::grouped(n), false);
        }
        if let Some(point) = &result.point {
            add(&point.parameter, point.value.to_string(), false);
        }
        if let Some(checkpoint) = &result.checkpoint {
            add("Layout", checkpoint.layout.clone(), false);
            for file in &checkpoint.files {
                let size = labels::bytes(file.n_bytes);
                add("Weights", format!("{} ({size})", file.name), false);
                if let Some(hash) = file.hash() {
                    add(hash.kind.title(), hash.hex, true);
                }
            }
            if let Some(recipe) = &checkpoint.recipe {
                add("Recipe", recipe.trim_end().to_owned(), true);
            }
        }
        for (name, value) in &result.settings {
            add(&name.replace('_', " "), document::plain(value), false);
        }
        if let Some(seconds) = result.seconds {
            add("Seconds", format!("{seconds:.1}"), false);
        }
        if let Some(device) = &result.device {
            add("Device", device.clone(), false);
        }
        facts
    }
}
