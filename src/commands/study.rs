//! `vlmerge study`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use evaluate::reports::html;
use serde_json::json;

use crate::args::number::parse_positive;
use crate::output::{Output, UsageError};
use crate::result_table;
use crate::study::{self, Runner, Standing, Store, Study, dependencies};

const EXAMPLES: &str = "\
Examples:
  vlmerge study docs/recipes/study-smallest.yaml
  vlmerge study docs/recipes/study-mini.yaml --out mini --jobs 2
  vlmerge study docs/recipes/study-flm.yaml --out ways
  vlmerge study docs/recipes/study-clip.yaml --out table
  vlmerge study docs/recipes/study-base.yaml --out base --device cuda --launcher 'mpirun -n 8'
  vlmerge study docs/recipes/study-base.yaml --out base --dry-run

Each step is a command of this program, and its result is kept. Start a study again after Ctrl-C, a
kill or a change: it runs the steps that are not finished, and those that the change concerns.";

/// Flags of `vlmerge study`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The recipe
    recipe: PathBuf,
    /// Folder of the study [default: the recipe's name without its ending]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Change a setting of the recipe, e.g. budget_steps=2000; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Steps that run at once; each gets its share of the threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = parse_positive)]
    jobs: usize,
    /// cpu, cuda or cuda:N, for steps that run a model
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// Command that starts the steps that train, e.g. 'mpirun -n 4'
    #[arg(long, value_name = "WORDS")]
    launcher: Option<String>,
    /// Print the steps and their commands, and run none
    #[arg(long)]
    dry_run: bool,
}

/// Runs the verb.
pub fn run(args: Args, output: &Output) -> Result<ExitCode> {
    let study = study::open(&args.recipe, &args.settings)?;
    let folder = args.folder()?;
    let runner = args.runner(output)?;
    study.check(&runner)?;
    if args.dry_run {
        return dry_run(study.as_ref(), &folder, output);
    }
    let store = Store::open(&folder)?;
    let tally = runner.run(study.steps(), &store, output)?;
    let findings = study.join(&store)?;
    let page = folder.join("report.html");
    let text = html::html(&findings.document)?;
    merge::io::write_file(&page, text.as_bytes(), true)?;
    for (name, text) in &findings.files {
        merge::io::write_file(&folder.join(name), text.as_bytes(), true)?;
    }
    if output.json {
        let mut document = json!({
            "report": page,
            "steps": { "kept": tally.n_kept, "run": tally.n_run, "seconds": tally.seconds },
            "test": findings.tests,
        });
        for (name, value) in findings.more {
            document[name] = value;
        }
        output.json(&document)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(table) = &findings.table {
        output.text(table)?;
        output.line("")?;
    }
    let shown = match findings.table {
        Some(_) => &[][..],
        None => &findings.tests[..],
    };
    for report in shown {
        if let Some(first) = report.results.first() {
            let data = [first.dataset.as_deref(), first.split.as_deref()];
            let data: Vec<&str> = data.into_iter().flatten().collect();
            output.line(data.join(" "))?;
        }
        output.text(&result_table::by_result(report).to_string())?;
        output.line("")?;
    }
    for statement in &findings.statements {
        output.line(statement)?;
    }
    output.note(format!(
        "{} steps run, {} kept from before; {:.0} s of work in all",
        tally.n_run, tally.n_kept, tally.seconds
    ));
    output.line(page.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn folder(&self) -> Result<PathBuf> {
        if let Some(out) = &self.out {
            return Ok(out.clone());
        }
        let stem = self.recipe.file_stem().map(PathBuf::from);
        stem.ok_or_else(|| UsageError("name the folder of the study with --out".into()).into())
    }

    fn runner(&self, output: &Output) -> Result<Runner> {
        let words = self.launcher.as_deref().unwrap_or_default();
        let n_threads = output.n_threads();
        Ok(Runner {
            program: std::env::current_exe().context("cannot find this program")?,
            launcher: words.split_whitespace().map(str::to_owned).collect(),
            device: self.device.clone(),
            jobs: self.jobs,
            threads: (self.jobs > 1 || output.threads.is_some())
                .then(|| (n_threads / self.jobs).max(1)),
        })
    }
}

fn dry_run(study: &dyn Study, folder: &Path, output: &Output) -> Result<ExitCode> {
    let steps = study.steps();
    let depends_on = dependencies(steps)?;
    let store = Store::at(folder);
    let standing = |step| match store.standing(step, &depends_on[&step.name]) {
        Standing::Finished => "finished",
        Standing::Begun => "begun",
        Standing::New => "to do",
    };
    if output.json {
        let step = |step| {
            let commands = store.lines(step);
            json!({ "name": step.name, "standing": standing(step), "commands": commands })
        };
        output.json(&steps.iter().map(step).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    for step in steps {
        output.line(format!("{} ({})", step.name, standing(step)))?;
        for line in store.lines(step) {
            output.line(format!("    {line}"))?;
        }
    }
    output.note(format!("{} steps", steps.len()));
    Ok(ExitCode::SUCCESS)
}
