//! A program that runs under a watcher: starting it, waiting for it, ending it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::watcher::{GRACE, Said};
use crate::processes::{self, Group, Line};

/// The pause between two looks at a watcher that was asked to end its program.
const PAUSE: Duration = Duration::from_millis(20);

/// Time that a watcher has beyond that of its program.
const MARGIN: Duration = Duration::from_secs(5);

/// Bytes that are read of what a watcher says: three short lines.
const MAX_SAID: u64 = 64 << 10;

/// A program at work.
pub struct Watched {
    watcher: Child,
    /// Closed, it makes the watcher end the program. So does every end of this process.
    line: Line,
}

/// How a program ended.
#[derive(Debug)]
pub enum Ending {
    /// It was not started, for this reason.
    NotStarted(String),
    /// By itself.
    Ended(ExitStatus),
    /// Its watcher ended before it did.
    Lost(ExitStatus),
}

impl Watched {
    /// Starts `words` under a watcher, which is a process of the program at `own`, this one. Its stdout and stderr are
    /// pipes.
    pub fn start(own: &Path, words: &[OsString]) -> Result<Self> {
        let mut watcher = Command::new(own);
        watcher
            .args(["watch", "--"])
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (watcher, line) = Line::start(watcher)?;
        Ok(Self { watcher, line })
    }

    /// The program's stdout and stderr.
    pub fn outputs(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.watcher.stdout.take(), self.watcher.stderr.take())
    }

    /// How the program ended, if it has.
    pub fn ended(&mut self) -> Result<Option<Ending>> {
        let Some(status) = self.watcher.try_wait()? else {
            return Ok(None);
        };
        let said = self.said();
        let ending = said.iter().find_map(|said| match said {
            Said::NotStarted(fault) => Some(Ending::NotStarted(fault.clone())),
            Said::Ended(status) => Some(Ending::Ended(processes::status(*status))),
            Said::Started(_) => None,
        });
        if ending.is_none() {
            kill_group(&said);
        }
        Ok(Some(ending.unwrap_or(Ending::Lost(status))))
    }

    /// Ends the program and all that it started.
    pub fn end(mut self) {
        self.line.close();
        let begun = Instant::now();
        while begun.elapsed() < GRACE + MARGIN {
            if !matches!(self.watcher.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(PAUSE);
        }
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
        kill_group(&self.said());
    }

    /// All messages of a watcher that has ended.
    fn said(&mut self) -> Vec<Said> {
        let lines = self.line.said(MAX_SAID, MARGIN);
        let said = lines.lines().map(serde_json::from_str);
        said.filter_map(Result::ok).collect()
    }
}

/// Ends the group of a program whose watcher is gone.
fn kill_group(said: &[Said]) {
    for said in said {
        if let Said::Started(group) = said
            && let Some(group) = Group::of_number(*group)
        {
            group.kill();
        }
    }
}
