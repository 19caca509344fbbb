//! Running the steps of a study: each command is a process of this program.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use merge::Progress;

use super::cost::Cost;
use super::step::{Kind, Step};
use super::store::{Kept, Standing, Store, dependencies, missing};
use crate::output::{Output, UsageError};
use crate::processes;

/// The pause between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(20);

/// The message after a signal.
const STOPPED: &str = "stopped; the same command goes on";

/// Tells a process of a step that it ends with the one that started it: by its number, or by anything else
/// if a launcher stands between.
const ENDS_WITH_PARENT: &str = "VLMERGE_ENDS_WITH_PARENT";

/// Runs the steps of a study.
#[derive(Clone, Debug)]
pub struct Runner {
    /// This program.
    pub program: PathBuf,
    /// The command that starts steps that train, e.g. `mpirun -n 4`.
    pub launcher: Vec<String>,
    /// `--device` of steps that run a model.
    pub device: Option<String>,
    /// Steps at once.
    pub jobs: usize,
    /// Threads of each.
    pub threads: Option<usize>,
}

/// The outcome of all steps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Those that had been finished before.
    pub n_kept: usize,
    /// Those that ran.
    pub n_run: usize,
    /// Seconds of all steps, now or before.
    pub seconds: f64,
}

/// A step at work.
struct Running<'a> {
    step: &'a Step,
    depends_on: &'a str,
    /// The command that runs, by its place.
    at: usize,
    child: Child,
    begun: Instant,
    /// The cost of its finished commands; none once one does not report it.
    cost: Option<Cost>,
}

/// Ends this process when the one that started it ends, if that one asked for it: no step goes on
/// without its study, and writes where the next one works.
pub fn end_with_parent() {
    if let Some(parent) = std::env::var_os(ENDS_WITH_PARENT) {
        processes::end_with(parent.to_str().and_then(|text| text.parse().ok()));
    }
}

impl Runner {
    /// Runs the unfinished steps. A step begins when those that it needs are finished.
    pub fn run(&self, steps: &[Step], store: &Store, output: &Output) -> Result<Tally> {
        if let Some((step, path)) = missing(steps) {
            let what = format!("{} is not there; {step} needs it", path.display());
            return Err(UsageError(what).into());
        }
        processes::hold_children()?;
        let depends_on = dependencies(steps)?;
        let mut tally = Tally::default();
        let mut finished: BTreeSet<&str> = BTreeSet::new();
        let mut waiting: Vec<(&Step, Standing)> = Vec::new();
        for step in steps {
            let standing = store.standing(step, &depends_on[&step.name]);
            // A step that runs again changes its bytes, and those of the steps after it.
            let is_kept =
                standing == Standing::Finished && step.needs().all(|n| finished.contains(n));
            if is_kept {
                finished.insert(&step.name);
                tally.n_kept += 1;
                tally.seconds += store.kept(&step.name).map_or(0.0, |kept| kept.seconds);
            } else {
                let standing = match standing {
                    Standing::Begun => Standing::Begun,
                    _ => Standing::New,
                };
                waiting.push((step, standing));
            }
        }
        let mut running: Vec<Running<'_>> = Vec::new();
        // Signals are a request to stop from here on.
        output.start_items("", 0);
        while !waiting.is_empty() || !running.is_empty() {
            while running.len() < self.jobs
                && let Some(next) = waiting
                    .iter()
                    .position(|(step, _)| step.needs().all(|need| finished.contains(need)))
            {
                let (step, standing) = waiting.remove(next);
                let depends_on = &depends_on[&step.name];
                store.begin(step, standing, depends_on)?;
                running.push(Running {
                    step,
                    depends_on,
                    at: 0,
                    child: self.start(step, 0, store)?,
                    begun: Instant::now(),
                    cost: Some(Cost::default()),
                });
            }
            if running.is_empty() {
                bail!("steps need each other in a circle");
            }
            std::thread::sleep(PAUSE);
            let mut index = 0;
            while index < running.len() {
                let Some(status) = running[index].child.try_wait()? else {
                    index += 1;
                    continue;
                };
                if !status.success() {
                    let failed = running.swap_remove(index);
                    stop(running);
                    if output.is_cancelled() {
                        bail!(STOPPED);
                    }
                    return Err(self.failure(&failed, status, store));
                }
                let of = &mut running[index];
                let told = Cost::read(&store.of(&of.step.name));
                of.cost = of.cost.zip(told).map(|(sum, cost)| sum.and(cost));
                of.at += 1;
                if of.at < of.step.commands.len() {
                    of.child = self.start(of.step, of.at, store)?;
                    continue;
                }
                let done = running.swap_remove(index);
                let seconds = done.begun.elapsed().as_secs_f64();
                self.finish(&done, seconds, store)?;
                finished.insert(&done.step.name);
                tally.n_run += 1;
                tally.seconds += seconds;
                let name = &done.step.name;
                let (n, of) = (finished.len(), steps.len());
                output.note(format!("[{n:>3}/{of}] {name} {seconds:.1} s"));
            }
            if output.is_cancelled() {
                stop(running);
                bail!(STOPPED);
            }
        }
        Ok(tally)
    }

    fn start(&self, step: &Step, at: usize, store: &Store) -> Result<Child> {
        let folder = store.of(&step.name);
        let words = store.words(&step.name, &step.commands[at]);
        let (mut command, parent) = match (self.launcher.split_first(), step.kind) {
            (Some((launcher, rest)), Kind::Train) => {
                let mut command = Command::new(launcher);
                command.args(rest).arg(&self.program);
                (command, "a launcher".into())
            }
            _ => (Command::new(&self.program), std::process::id().to_string()),
        };
        command.args(words);
        if let (Some(device), Kind::Train | Kind::Run) = (&self.device, step.kind) {
            command.args(["--device", device]);
        }
        if let Some(threads) = self.threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let create = |name: &str| {
            let path = folder.join(name);
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))
        };
        command.stdin(Stdio::null()).stdout(create("stdout.txt")?);
        // One step at once may show its own bar.
        let shows = self.jobs == 1 && std::io::stderr().is_terminal();
        if !shows {
            command.stderr(create("log.txt")?);
        }
        command.env(ENDS_WITH_PARENT, parent);
        Cost::ask(&mut command, &folder)?;
        let program = command.get_program().to_string_lossy().into_owned();
        command
            .spawn()
            .with_context(|| format!("cannot start {program}"))
    }

    fn finish(&self, done: &Running<'_>, seconds: f64, store: &Store) -> Result<()> {
        let step = done.step;
        let folder = store.of(&step.name);
        for path in &step.outputs {
            if !folder.join(path).exists() {
                bail!("{}: the step left no {path}", folder.display());
            }
        }
        store.keep(
            &step.name,
            &Kept {
                depends_on: done.depends_on.to_owned(),
                is_finished: true,
                seconds,
                cost: done.cost,
                commands: store.lines(step),
            },
        )
    }

    /// The message about a step that failed.
    fn failure(&self, failed: &Running<'_>, status: ExitStatus, store: &Store) -> anyhow::Error {
        let step = failed.step;
        let log = store.of(&step.name).join("log.txt");
        let line = store.lines(step).swap_remove(failed.at);
        let why = match last_error(&log) {
            Some(why) => why,
            None => format!("it ended with {status}"),
        };
        let what = format!("step {}: {why}\nits command: {line}", step.name);
        // Arguments that a step cannot run with are a fault of the study's recipe.
        match status.code() {
            Some(2) => UsageError(what).into(),
            _ => anyhow::anyhow!(what),
        }
    }
}

/// The last error that a log names.
fn last_error(log: &Path) -> Option<String> {
    let file = fs::File::open(log).ok()?;
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let mut last = None;
    for line in lines {
        if let Some(error) = line.strip_prefix("error: ") {
            last = Some(error.to_owned());
        }
    }
    last
}

/// Asks processes to stop, and waits until they have.
fn stop(running: Vec<Running<'_>>) {
    for mut of in running {
        processes::ask(&mut of.child);
        let _ = of.child.wait();
    }
}
