//! `vlmerge data stats`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::datasets::overview::{self, FileOverview, Range};
use evaluate::text::Tokenizer;
use serde_json::json;

use crate::output::{Output, UsageError};
use crate::table::{Align, Table};

const EXAMPLES: &str = "\
Examples:
  vlmerge data stats arrow
  vlmerge data stats arrow --tokenizer bert-base-uncased --json
  vlmerge data stats arrow/coco_caption_karpathy_test.arrow --sheet samples.html

Ranges are smallest/median/largest. White space separates words; tokens include the special ones.
The sheet is one HTML file with small copies of the pictures; it loads nothing else. The exit code
is 1 if the header of a picture cannot be read.";

/// Flags of `vlmerge data stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A folder of arrow files, or one such file
    #[arg(value_name = "DIR")]
    path: PathBuf,
    /// Count tokens too: a vocab.txt, a tokenizer.json, a folder with one, or a name on the hub
    #[arg(long, value_name = "NAME")]
    tokenizer: Option<String>,
    /// Write a page with some pictures and texts of each file
    #[arg(long, value_name = "FILE")]
    sheet: Option<PathBuf>,
    /// Rows of each file on the page
    #[arg(long, value_name = "N", default_value_t = 12)]
    samples: usize,
}

/// Runs the verb.
pub fn run(args: &Args, output: &Output) -> Result<ExitCode> {
    if let Some(sheet) = &args.sheet
        && sheet.is_dir()
    {
        return Err(UsageError(format!("--sheet {}: is a folder", sheet.display())).into());
    }
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::open).transpose()?;
    let files = overview::files(&args.path)?;
    let overviews = (files.iter())
        .map(|file| overview::overview(file, tokenizer.as_ref(), output))
        .collect::<evaluate::Result<Vec<_>>>()?;
    if let Some(sheet) = &args.sheet {
        let page = overview::sheet(&files, args.samples)?;
        std::fs::write(sheet, page).with_context(|| format!("cannot write {}", sheet.display()))?;
        output.note(format!("wrote {}", sheet.display()));
    }
    if output.json {
        output.json(&json!({ "files": overviews }))?;
    } else {
        print(&overviews, tokenizer.is_some(), output)?;
    }
    let n_damaged: usize = overviews.iter().map(|file| file.pictures.n_damaged).sum();
    Ok(match n_damaged {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn print(files: &[FileOverview], has_tokens: bool, output: &Output) -> Result<()> {
    let mut columns = vec![("file".to_owned(), Align::Left)];
    let mut headings = vec!["rows", "batches", "texts", "distinct", "per row", "words"];
    if has_tokens {
        headings.push("tokens");
    }
    headings.extend(["pictures", "width", "height", "bytes"]);
    columns.extend(
        headings
            .iter()
            .map(|name| ((*name).to_owned(), Align::Right)),
    );
    columns.push(("formats".to_owned(), Align::Left));
    let mut table = Table::new(columns);
    for file in files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let mut cells = vec![
            name.into_owned(),
            file.rows.to_string(),
            file.batches.to_string(),
        ];
        let texts = file.texts.as_ref();
        let count = |n: Option<usize>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
        cells.push(count(texts.map(|texts| texts.n)));
        cells.push(count(texts.map(|texts| texts.n_distinct)));
        cells.push(range(texts.and_then(|texts| texts.per_row)));
        cells.push(range(texts.and_then(|texts| texts.words)));
        if has_tokens {
            cells.push(range(texts.and_then(|texts| texts.tokens)));
        }
        let pictures = &file.pictures;
        cells.push(pictures.n.to_string());
        cells.extend([pictures.width, pictures.height, pictures.bytes].map(range));
        let formats = pictures.formats.iter();
        let mut formats: Vec<String> = formats.map(|(name, n)| format!("{n} {name}")).collect();
        if pictures.n_damaged > 0 {
            formats.push(format!("{} damaged", pictures.n_damaged));
        }
        cells.push(formats.join(", "));
        table.row(cells);
    }
    output.text(&table.to_string())?;
    for file in files {
        for omission in &file.left_out {
            output.line(format!("{}: {omission}", file.path.display()))?;
        }
        for (row, fault) in &file.pictures.damaged {
            output.line(format!("{}: row {row}: {fault}", file.path.display()))?;
        }
    }
    Ok(())
}

fn range(range: Option<Range>) -> String {
    match range {
        None => "-".into(),
        Some(Range { min, max, .. }) if min == max => min.to_string(),
        Some(Range { min, median, max }) => format!("{min}/{median}/{max}"),
    }
}
