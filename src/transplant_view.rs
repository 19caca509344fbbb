//! Saying what became of the rows of a model with other tokens.

use merge::MergePlan;
use merge::transplant::{HeldOut, ListedToken, Spread, TableReport};

use crate::output::{Output, printable};

/// Tokens that are named in a note.
const NAMED: usize = 5;

/// Says where the rows of each table come from, and once they are made how well it went.
pub fn say(plan: &MergePlan, output: &Output) {
    let Some(report) = plan.transplant() else {
        return;
    };
    for table in &report.tables {
        output.note(counts(table, &report.method));
        if let Some(error) = &table.donor_error {
            let worst = named(&table.worst);
            output.note(format!(
                "  left over of the donor's rows: {}; most of {worst}",
                spread(error)
            ));
        }
        if let Some(held) = &table.held_out {
            output.note(held_out(held));
        }
        if let Some(reason) = table.not_held_out {
            output.note(format!("  no shared tokens are held out: {reason}"));
        }
        if table.n_without_basis > 0 {
            output.note(format!(
                "  nothing to make them of, so they get the mean row: {}",
                named(&table.without_basis)
            ));
        }
    }
}

fn counts(table: &TableReport, method: &str) -> String {
    let copied = &table.copied;
    let mut parts = vec![format!("{} copied", copied.sum())];
    let kinds = [
        (copied.special, "special"),
        (copied.byte_match, "by byte"),
        (copied.prefix_match, "by prefix"),
    ];
    let kinds: Vec<String> = (kinds.iter())
        .filter(|(n, _)| *n > 0)
        .map(|(n, what)| format!("{n} {what}"))
        .collect();
    if !kinds.is_empty() {
        parts[0] += &format!(" ({})", kinds.join(", "));
    }
    parts.push(format!("{} made by {method}", table.n_made));
    let others = [
        (table.n_without_basis, "without a basis"),
        (table.n_padding, "padding"),
        (table.n_junk, "zero, of untrained tokens"),
    ];
    for (n, what) in others.iter().filter(|(n, _)| *n > 0) {
        parts.push(format!("{n} {what}"));
    }
    format!(
        "`{}`: {} rows: {}",
        printable(&table.name),
        table.n_rows,
        parts.join(", ")
    )
}

fn held_out(held: &HeldOut) -> String {
    format!(
        "  {} shared tokens, made as if they were not shared: cosine with their own rows {} (the mean row: {:.3}); \
         relative error {:.3} (the mean row: {:.3})",
        held.n_tokens,
        spread(&held.cosine),
        held.cosine_of_mean_row.mean,
        held.relative_error.mean,
        held.relative_error_of_mean_row.mean,
    )
}

fn spread(spread: &Spread) -> String {
    format!(
        "{:.3} on average, {:.3} to {:.3} for nine in ten",
        spread.mean, spread.p5, spread.p95
    )
}

fn named(tokens: &[ListedToken]) -> String {
    let names = tokens.iter().take(NAMED);
    let names: Vec<String> = names
        .map(|token| format!("`{}`", printable(&token.token)))
        .collect();
    names.join(" ")
}
