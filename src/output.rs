//! Output for people: progress on stderr, results on stdout, errors with a hint.

use std::io::{self, ErrorKind, IsTerminal, StdoutLock, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

pub use merge::printable;
pub use merge::remote::fetched_bytes;

use crate::args::global::Global;

/// Set by SIGINT and SIGTERM; long operations look at it between chunks.
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// The exit code of a program that a signal ended, as shells have it.
const INTERRUPTED: i32 = 130;

/// Wrong arguments or a wrong recipe: exit code 2, as clap's own.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

impl UsageError {
    /// The error of a build without models where `what` comes with them.
    pub fn no_models(what: &str) -> Self {
        Self(format!(
            "this build has no models, and {what} comes with them; `cargo install --path .` builds vlmerge with models"
        ))
    }
}

/// The reader of stdout has closed it, as `head` does when it has enough: no fault, and nothing to report.
#[derive(Debug, thiserror::Error)]
#[error("the reader of stdout has closed it")]
struct ClosedStdout;

/// Prints results, notes and progress bars.
pub struct Output {
    /// Results as JSON.
    pub json: bool,
    /// The number of threads from the flags.
    #[cfg_attr(
        not(feature = "models"),
        allow(dead_code, reason = "studies pass it on")
    )]
    pub threads: Option<usize>,
    quiet: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Output {
    /// Applies the global flags: thread count, bars.
    pub fn new(global: &Global) -> Result<Self> {
        if global.threads == Some(0) {
            return Err(UsageError("--threads must be at least 1".into()).into());
        }
        let threads = global.threads.map(|threads| threads.min(most_threads()));
        if let Some(threads) = threads {
            of_models::restart_with(threads)?;
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build_global()
                .context("cannot start the thread pool")?;
        }
        install_remote(global);
        let output = Self {
            json: global.json,
            threads,
            quiet: global.quiet,
            bar: Mutex::new(None),
        };
        if let (Some(used), Some(asked)) = (threads, global.threads)
            && used < asked
        {
            output.note(format!(
                "note: {used} threads are used; {asked} would not be faster here"
            ));
        }
        Ok(output)
    }

    /// Prints a line of results to stdout.
    pub fn line(&self, text: impl AsRef<str>) -> Result<()> {
        print(|stdout| writeln!(stdout, "{}", printable(text.as_ref())))
    }

    /// Prints text that ends with its own line break to stdout.
    pub fn text(&self, text: &str) -> Result<()> {
        print(|stdout| write!(stdout, "{text}"))
    }

    /// Prints a result as JSON to stdout.
    pub fn json(&self, value: &impl Serialize) -> Result<()> {
        print(|stdout| {
            serde_json::to_writer_pretty(&mut *stdout, value)?;
            writeln!(stdout)
        })
    }

    /// Prints a note to stderr, unless `--quiet`.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            // A closed stderr is no reason to fail a merge.
            let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
        }
    }

    /// Prints what users should know of how a checkpoint was found and read.
    pub fn notes_of(&self, checkpoint: &merge::Checkpoint) {
        self.say_notes(checkpoint.notes());
    }

    /// Prints what users should know.
    pub fn say_notes(&self, notes: &[String]) {
        for note in notes {
            self.note(format!("note: {}", printable(note)));
        }
    }
}

/// For verbs with models.
#[cfg(feature = "models")]
impl Output {
    /// Says nothing but errors.
    pub fn silent() -> Self {
        Self {
            json: false,
            threads: None,
            quiet: true,
            bar: Mutex::new(None),
        }
    }

    /// The number of threads.
    pub fn n_threads(&self) -> usize {
        rayon::current_num_threads()
    }
}

/// Writes to stdout; the one place that does.
fn print(write: impl FnOnce(&mut StdoutLock<'_>) -> io::Result<()>) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match write(&mut stdout).and_then(|()| stdout.flush()) {
        Err(fault) if fault.kind() == ErrorKind::BrokenPipe => Err(ClosedStdout.into()),
        done => done.context("cannot write to stdout"),
    }
}

/// Threads beyond which no more helps on this machine: more only wait for each other.
fn most_threads() -> usize {
    let n_cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (4 * n_cores).max(16)
}

/// Applies the flags for remote files.
#[cfg(feature = "remote")]
fn install_remote(global: &Global) {
    let mut options = merge::remote::RemoteOptions::from_env();
    options.offline |= global.offline;
    options.allow_http = global.allow_http;
    options.timeout = Duration::from_secs(global.timeout);
    if let Some(folder) = &global.cache_dir {
        options.cache.clone_from(folder);
    }
    merge::remote::Remote::new(options).install();
}

/// Without remote files there is nothing to apply; their addresses are refused when they are opened.
#[cfg(not(feature = "remote"))]
fn install_remote(_: &Global) {}

/// A bar over bytes.
const BYTES: &str = "{msg}{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}";

/// A bar over things.
const ITEMS: &str = "{msg}{prefix} [{bar:30}] {pos}/{len} {per_sec} eta {eta}";

impl Output {
    fn show_bar(&self, what: &str, total: u64, template: &str) {
        watch_for_signals();
        if self.quiet || !io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        if let Ok(mut current) = self.bar.lock() {
            *current = Some(bar);
        }
    }
}

impl merge::Progress for Output {
    fn start(&self, what: &str, total_bytes: u64) {
        self.show_bar(what, total_bytes, BYTES);
    }

    fn start_items(&self, what: &str, total: u64) {
        self.show_bar(what, total, ITEMS);
    }

    fn advance(&self, amount: u64) {
        if let Ok(current) = self.bar.lock()
            && let Some(bar) = current.as_ref()
        {
            bar.inc(amount);
            let fetched = fetched_bytes();
            if fetched > 0 {
                bar.set_prefix(format!(" ({} fetched)", bytes(fetched)));
            }
        }
    }

    fn finish(&self) {
        if let Ok(mut current) = self.bar.lock()
            && let Some(bar) = current.take()
        {
            bar.finish_and_clear();
        }
    }

    fn is_cancelled(&self) -> bool {
        CANCELLED.load(Ordering::Relaxed)
    }
}

/// Turns SIGINT and SIGTERM into a request to stop, from the first long operation on: the handler
/// has a thread of its own, which short verbs need not wait for.
fn watch_for_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without a handler the signal ends the program at once, and no target is ever half
        // written: not worth failing for. The second signal does the same, wherever the program is.
        let _ = ctrlc::set_handler(|| {
            if CANCELLED.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED);
            }
            let mut stderr = io::stderr();
            if stderr.is_terminal() {
                // A closed stderr is no reason not to stop.
                let _ = writeln!(
                    stderr,
                    "\nstopping in good order; Ctrl-C once more stops at once"
                );
            }
        });
    });
}

/// Prints an error with its causes and, where there is one, a hint; chooses the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<ClosedStdout>() {
        return ExitCode::SUCCESS;
    }
    let mut stderr = io::stderr().lock();
    // If stderr is closed there is nowhere left to complain.
    let _ = writeln!(stderr, "error: {}", printable(&message(error)));
    if let Some(hint) = hint(error) {
        let _ = writeln!(stderr, "\nhint: {hint}");
    }
    if error.is::<UsageError>() {
        return ExitCode::from(2);
    }
    let is_usage = error
        .downcast_ref::<merge::Error>()
        .is_some_and(merge::Error::is_usage);
    if is_usage || of_models::is_usage(error) {
        return ExitCode::from(2);
    }
    ExitCode::FAILURE
}

/// An error and its causes. The libraries' errors say their own cause already; it is not repeated.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let of_merge = cause.downcast_ref::<merge::Error>();
        of_merge
            .and_then(merge::Error::hint)
            .or_else(|| of_models::hint(cause))
    })
}

/// The needs of the crates of models, and their errors.
#[cfg(feature = "models")]
mod of_models {
    use std::error::Error;

    use crate::processes;

    /// candle asks the environment alone how many threads its own pool has, so the program starts once more with the number there.
    pub fn restart_with(threads: usize) -> anyhow::Result<()> {
        const NUMBER: &str = "RAYON_NUM_THREADS";
        let number = threads.to_string();
        match std::env::var_os(NUMBER).is_some_and(|given| given == number.as_str()) {
            true => Ok(()),
            false => processes::start_again(NUMBER, &number),
        }
    }

    /// Whether the user asked for something wrong.
    pub fn is_usage(error: &anyhow::Error) -> bool {
        let of_evaluate = error.downcast_ref::<evaluate::Error>();
        let of_train = error.downcast_ref::<train::Error>();
        of_evaluate.is_some_and(evaluate::Error::is_usage)
            || of_train.is_some_and(train::Error::is_usage)
    }

    /// The next step for the user.
    pub fn hint(cause: &(dyn Error + 'static)) -> Option<String> {
        let of_evaluate = cause.downcast_ref::<evaluate::Error>();
        let of_train = cause.downcast_ref::<train::Error>();
        (of_evaluate.and_then(evaluate::Error::hint)).or_else(|| of_train?.hint())
    }
}

/// Without models nothing needs that, and there are no such errors.
#[cfg(not(feature = "models"))]
mod of_models {
    use std::error::Error;

    pub fn restart_with(_: usize) -> anyhow::Result<()> {
        Ok(())
    }

    pub fn is_usage(_: &anyhow::Error) -> bool {
        false
    }

    pub fn hint(_: &(dyn Error + 'static)) -> Option<String> {
        None
    }
}

/// A number of bytes for people, e.g. `437.2 MB`.
pub fn bytes(n_bytes: u64) -> String {
    indicatif::DecimalBytes(n_bytes).to_string()
}
