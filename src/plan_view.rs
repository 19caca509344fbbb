//! Showing a plan, or carrying it out and reporting the result.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use merge::MergePlan;
use merge::beside::Companion;
use merge::execute::{check, execute};
use merge::io::WriteOptions;
use merge::plan::{Action, Entry};
use serde_json::json;

use crate::args::write::WriteArgs;
use crate::output::{Output, UsageError, bytes, fetched_bytes, printable};
use crate::transplant_view;

/// Prints the plan on `--dry-run`, else runs it and prints where the result is.
pub fn carry_out(
    plan: &MergePlan,
    target: Option<PathBuf>,
    write: &WriteArgs,
    check_copies: bool,
    output: &Output,
) -> Result<ExitCode> {
    // Conversions write the file that is asked for and nothing beside it.
    let beside = plan.beside();
    let may_be_folder = !beside.ingredients.is_empty() || beside.weights.is_some();
    let of_models = (plan.beside().ingredients.iter()).filter_map(|model| model.note.as_ref());
    for note in of_models.chain(&plan.beside().notes) {
        output.note(format!("note: {}", printable(note)));
    }
    if write.dry_run {
        let options = target.map(|target| {
            let options = write.write_options(target, may_be_folder);
            (options.called_like(&plan.files())).called(beside.weights)
        });
        if let Some(options) = &options {
            check(plan, options, &write.run_options(check_copies))?;
        }
        let files = match options {
            Some(WriteOptions {
                is_folder: true, ..
            }) => plan.beside().files.as_slice(),
            _ => &[],
        };
        show(plan, files, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let no_target = || UsageError("name the checkpoint to write with --out".into());
    let options = write.write_options(target.ok_or_else(no_target)?, may_be_folder);
    let options = (options.called_like(&plan.files())).called(beside.weights);
    let start = Instant::now();
    let summary = execute(plan, &options, &write.run_options(check_copies), output)?;
    let seconds = start.elapsed().as_secs_f64();
    if output.json {
        let mut value = serde_json::to_value(&summary)?;
        value["seconds"] = json!(seconds);
        if let Some(report) = plan.alignment()? {
            value["alignment"] = serde_json::to_value(&report)?;
        }
        if let Some(report) = plan.transplant() {
            value["transplant"] = serde_json::to_value(&report)?;
        }
        value["fetched_bytes"] = json!(fetched_bytes());
        output.json(&value)?;
    } else {
        for file in &summary.files {
            output.line(file.display().to_string())?;
        }
        if summary.n_files_kept > 0 {
            output.note(format!(
                "{} files were complete before the run was stopped",
                summary.n_files_kept
            ));
        }
        say_alignment(plan, output)?;
        transplant_view::say(plan, output);
        let computed = match summary.n_computed {
            0 => String::new(),
            n => format!(
                " ({n} of them computed: an adapter, dequantization or another order of rows)"
            ),
        };
        output.note(format!(
            "{} tensors combined ({} of them unchanged), {} copied{computed}, {} left out; {} read, {} written in {seconds:.2} s",
            summary.n_combined,
            summary.n_unchanged,
            summary.n_copied,
            summary.n_dropped,
            bytes(summary.input_bytes),
            bytes(summary.output_bytes),
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(plan: &MergePlan, beside: &[Companion], output: &Output) -> Result<()> {
    let peak_bytes = plan.peak_bytes(rayon::current_num_threads());
    if output.json {
        let entries: Vec<_> = plan.entries().iter().map(entry_json).collect();
        let mut value = json!({
            "entries": entries,
            "dropped": plan.dropped(),
            "beside": beside,
            "files": plan.files(),
            "input_bytes": plan.input_bytes(),
            "output_bytes": plan.output_bytes(),
            "peak_bytes": peak_bytes,
            "alignment": plan.alignment()?,
        });
        if let Some(report) = plan.transplant() {
            value["transplant"] = serde_json::to_value(&report)?;
        }
        return output.json(&value);
    }
    for entry in plan.entries() {
        let (verb, from) = verb_and_sources(entry);
        output.line(format!(
            "{verb:8} {}  {} {:?}  <- {}  ({})",
            entry.name,
            entry.info.dtype,
            entry.info.shape,
            if from.is_empty() {
                "nothing".into()
            } else {
                from.join(", ")
            },
            entry.why
        ))?;
    }
    for dropped in plan.dropped() {
        output.line(format!(
            "drop     {}  ({})",
            dropped.tensor.key, dropped.why
        ))?;
    }
    for file in beside {
        output.line(format!("beside   {}  ({})", file.name, file.why))?;
    }
    say_alignment(plan, output)?;
    transplant_view::say(plan, output);
    output.line(format!(
        "{} tensors out, {} left out; reads {}, writes {}; peak memory for tensor data about {}",
        plan.entries().len(),
        plan.dropped().len(),
        bytes(plan.input_bytes()),
        bytes(plan.output_bytes()),
        bytes(peak_bytes),
    ))
}

/// Says which experts and units moved, if the recipe asks for that: the experts of each mixture, and the units in sum.
fn say_alignment(plan: &MergePlan, output: &Output) -> Result<()> {
    let Some(report) = plan.alignment()? else {
        return Ok(());
    };
    for matching in &report.experts {
        let order = match matching.n_moved() {
            0 => "in order".to_owned(),
            n => {
                let experts = matching.experts.iter().map(ToString::to_string);
                format!(
                    "{n} moved, in the order {}",
                    experts.collect::<Vec<_>>().join(" ")
                )
            }
        };
        output.note(format!(
            "{}: experts of `{}`: {order} (cosine {:.3}, by number {:.3})",
            printable(&matching.model),
            printable(&matching.mixture),
            matching.cosine,
            matching.cosine_in_place,
        ));
    }
    let mut models: Vec<&str> = report.units.iter().map(|of| of.model.as_str()).collect();
    models.dedup();
    for model in models {
        let own = report.units.iter().filter(|of| of.model == model);
        let (n_moved, n_units) = own.fold((0, 0), |(moved, all), of| {
            (moved + of.n_moved, all + of.n_units)
        });
        output.note(format!(
            "{}: {n_moved} of {n_units} hidden units moved",
            printable(model)
        ));
    }
    Ok(())
}

fn entry_json(entry: &Entry) -> serde_json::Value {
    let (action, from) = verb_and_sources(entry);
    json!({
        "name": entry.name,
        "dtype": entry.info.dtype,
        "shape": entry.info.shape,
        "action": action,
        "from": from,
        "why": entry.why,
    })
}

/// The action, and the tensors and gram matrices that it reads.
fn verb_and_sources(entry: &Entry) -> (&'static str, Vec<String>) {
    let verb = match entry.action {
        Action::Copy(_) | Action::Agree(_) => "copy",
        Action::Elementwise { .. } | Action::Survey { .. } | Action::Whole { .. } => "combine",
        Action::Generate(_) => "make",
        _ => "other",
    };
    let grams = entry
        .action
        .grams()
        .map(|gram| format!("gram {}", gram.key));
    let tensors = entry.action.tensors().map(|tensor| tensor.key.clone());
    (verb, tensors.chain(grams).collect())
}
