//! The process between a search and a program that scores, which ends the program when the search is gone.
//!
//! A search that is killed can end nothing any more. It holds one end of a socket, and the system closes that end when the
//! search ends, in whatever way. The watcher waits for that at the other end, which is its stdin, and says there what became of
//! the program.

use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::output::UsageError;
use crate::processes::{self, Group, Search};

/// The pause between two looks at the program.
const PAUSE: Duration = Duration::from_millis(20);

/// Time that a program has to end by itself after it was asked to.
pub const GRACE: Duration = Duration::from_secs(5);

/// A watcher's messages about its program, one line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The program could not be started, for this reason.
    NotStarted(String),
    /// The number of the program's group.
    Started(i32),
    /// The program's end, as [`processes::raw`] gives it.
    Ended(i32),
}

/// Runs a program to its end, or until the search is gone.
pub fn watch(words: &[OsString]) -> Result<()> {
    let mut search = search()?;
    let (program, arguments) = words.split_first().context("no program is named")?;
    processes::adopt_descendants()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let (mut child, group) = match Group::start(&mut command) {
        Ok(started) => started,
        Err(fault) => return say(&mut search, &Said::NotStarted(fault.to_string())),
    };
    // The search may be gone by now, which the thread below finds out.
    let _ = say(&mut search, &Said::Started(group.number()));
    let is_alone = Arc::new(AtomicBool::new(false));
    let (mut listened, told) = (search.ear()?, Arc::clone(&is_alone));
    std::thread::spawn(move || {
        // The search never writes, so a read returns when its end is closed.
        while let Ok(1..) = listened.read(&mut [0; 64]) {}
        told.store(true, Ordering::Relaxed);
    });
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for the program")? {
            break status;
        }
        if is_alone.load(Ordering::Relaxed) {
            end(&mut child, group);
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    };
    // Without a search nobody hears it.
    let _ = say(&mut search, &Said::Ended(processes::raw(status)));
    Ok(())
}

/// The line to the search.
fn search() -> Result<Search> {
    let what = "`vlmerge search --score` starts this verb; it is of no use by hand";
    let search = Search::of_this_process()?;
    search.ok_or_else(|| UsageError(what.into()).into())
}

fn say(search: &mut Search, said: &Said) -> Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    Ok(search.say(&line)?)
}

/// Ends a program and the processes that it started: by asking, and after a while by force.
fn end(child: &mut Child, group: Group) {
    let is_asked = group.ask();
    let begun = Instant::now();
    while is_asked && begun.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(PAUSE);
    }
    // Processes of the group may be left when the first of them has ended.
    group.kill();
    let _ = child.kill();
    let _ = child.wait();
    processes::end_descendants();
}
