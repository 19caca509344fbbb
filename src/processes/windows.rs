//! Processes of Windows: jobs, which the system ends as a whole.
//!
//! Nothing here asks a program to end: Windows has no signal that reaches every kind of program.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::windows::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempPath;
use win32job::{ExtendedLimitInfo, Job};

/// `CREATE_NEW_PROCESS_GROUP`: Ctrl-C does not reach such a process.
const NEW_PROCESS_GROUP: u32 = 0x200;

/// Names the file that a watcher writes its messages to.
const SAYS: &str = "VLMERGE_WATCHER_SAYS";

/// A search's end of the line between it and a watcher: a pipe to its stdin, and a file that it writes. Closed, the pipe
/// makes the watcher end its program. So does every end of this process.
pub struct Line {
    pipe: Option<ChildStdin>,
    said: TempPath,
}

impl Line {
    /// Starts a watcher at the other end.
    pub fn start(mut watcher: Command) -> Result<(Child, Self)> {
        let said = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        let said = said.into_temp_path();
        let child = watcher
            .stdin(Stdio::piped())
            .env(SAYS, &said)
            // Ctrl-C in a terminal goes to the search alone, which ends the program in good order.
            .creation_flags(NEW_PROCESS_GROUP)
            .spawn();
        let shown = || format!("cannot start {}", watcher.get_program().display());
        let mut child = child.with_context(shown)?;
        let pipe = child.stdin.take();
        Ok((child, Self { pipe, said }))
    }

    /// Tells the watcher to end its program.
    pub fn close(&mut self) {
        self.pipe = None;
    }

    /// The first bytes of all that a watcher said that has ended.
    pub fn said(&mut self, n_bytes: u64, _patience: Duration) -> String {
        let mut said = String::new();
        if let Ok(file) = File::open(&self.said) {
            // A line that was cut off is no JSON.
            let _ = file.take(n_bytes).read_to_string(&mut said);
        }
        said
    }
}

/// A watcher's end of the line.
pub struct Search(File);

impl Search {
    /// The line to the search; none if no search started this process.
    pub fn of_this_process() -> Result<Option<Self>> {
        let path: Option<OsString> = std::env::var_os(SAYS);
        let file = path.map(|path| OpenOptions::new().append(true).open(path));
        Ok(file.transpose()?.map(Self))
    }

    /// Writes a line.
    pub fn say(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.0.write_all(line)
    }

    /// A stream that ends when the search does.
    pub fn ear(&self) -> std::io::Result<impl Read + Send + use<>> {
        Ok(std::io::stdin())
    }
}

/// A program and the processes that it started: all those of the watcher's job.
#[derive(Clone, Copy)]
pub struct Group(u32);

impl Group {
    /// Starts a program.
    pub fn start(command: &mut Command) -> std::io::Result<(Child, Self)> {
        let child = command.env_remove(SAYS).spawn()?;
        let group = Self(child.id());
        Ok((child, group))
    }

    /// The number of the program's process.
    pub fn number(self) -> i32 {
        self.0.cast_signed()
    }

    /// The group of a number that [`number`](Self::number) told another process.
    pub fn of_number(number: i32) -> Option<Self> {
        Some(Self(number.cast_unsigned()))
    }

    /// Asks the group to end; whether it can be asked.
    pub fn ask(self) -> bool {
        false
    }

    /// The watcher's end ends its job, so there is nothing left to do.
    pub fn kill(self) {}
}

/// Puts this process, and those that it starts from now on, into a job that the system ends when this process ends.
pub fn adopt_descendants() -> Result<()> {
    let mut limits = ExtendedLimitInfo::new();
    limits.limit_kill_on_job_close();
    let job = Job::create_with_limit_info(&limits).context("cannot make a job")?;
    job.assign_current_process()
        .context("cannot join a job of its own")?;
    // The job ends when its last handle is closed, which the system does at the end of this process.
    let _ = job.into_handle();
    Ok(())
}

/// The job ends them when this process ends.
pub fn end_descendants() {}

/// The end of a process as a number, which [`status`] reads.
pub fn raw(status: ExitStatus) -> i32 {
    // Every end has a code here.
    status.code().unwrap_or(1)
}

/// The end of a process of which another process told the number.
pub fn status(raw: i32) -> ExitStatus {
    ExitStatus::from_raw(raw.cast_unsigned())
}

/// Ends a child, which cannot be asked to stop.
pub fn ask(child: &mut Child) {
    // It may have ended by itself a moment ago.
    let _ = child.kill();
}

/// The one that started this process holds it in its job.
pub fn end_with(_parent: Option<i32>) {}

/// Makes the system end this process's children with it.
pub fn hold_children() -> Result<()> {
    adopt_descendants()
}

/// No program can take the place of another here, so what reads the variable goes by its own number.
pub fn start_again(_variable: &str, _value: &str) -> Result<()> {
    Ok(())
}
