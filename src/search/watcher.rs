//! The process between a search and a program that scores, which ends the program when the search is gone.
//!
//! A search that is killed can end nothing any more. It holds one end of a socket, and the system closes that end when the
//! search ends, in whatever way. The watcher waits for that at the other end, which is its stdin, and says there what became of
//! the program.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use crate::output::UsageError;

/// The pause between two looks at the program.
const PAUSE: Duration = Duration::from_millis(20);

/// Time that a program has to end by itself after it was asked to.
pub const GRACE: Duration = Duration::from_secs(5);

/// Rounds of ending what the program left: each may lay bare the children of those that it ends.
const ROUNDS: usize = 100;

/// A watcher's messages about its program, one line of JSON each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The program could not be started, for this reason.
    NotStarted(String),
    /// The number of the program's process group.
    Started(i32),
    /// The program's wait status.
    Ended(i32),
}

/// Runs a program to its end, or until the search is gone.
pub fn watch(words: &[OsString]) -> Result<()> {
    let mut search = search()?;
    let (program, arguments) = words.split_first().context("no program is named")?;
    // A process that leaves the program's group stays a descendant of this process.
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot watch over descendants")?;
    let mut command = Command::new(program);
    // A group of its own, so that processes of the program can be ended with it.
    command
        .args(arguments)
        .stdin(Stdio::null())
        .process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(fault) => return say(&mut search, &Said::NotStarted(fault.to_string())),
    };
    let group = Pid::from_child(&child);
    // The search may be gone by now, which the thread below finds out.
    let _ = say(&mut search, &Said::Started(group.as_raw_nonzero().get()));
    let is_alone = Arc::new(AtomicBool::new(false));
    let (mut listened, told) = (search.try_clone()?, Arc::clone(&is_alone));
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
    let _ = say(&mut search, &Said::Ended(status.into_raw()));
    Ok(())
}

/// The socket to the search.
fn search() -> Result<UnixStream> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
    let search = UnixStream::from(stdin);
    if search.peer_addr().is_err() {
        let what = "`vlmerge search --score` starts this verb; it is of no use by hand";
        return Err(UsageError(what.into()).into());
    }
    Ok(search)
}

fn say(search: &mut UnixStream, said: &Said) -> Result<()> {
    let mut line = serde_json::to_vec(said)?;
    line.push(b'\n');
    Ok(search.write_all(&line)?)
}

/// Ends a program and the processes that it started: by asking, and after a while by force.
fn end(child: &mut Child, group: Pid) {
    // A group that has ended needs no signal, here and below.
    let _ = kill_process_group(group, Signal::TERM);
    let begun = Instant::now();
    while begun.elapsed() < GRACE && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(PAUSE);
    }
    // Processes of the group may be left when the first of them has ended.
    let _ = kill_process_group(group, Signal::KILL);
    let _ = child.kill();
    let _ = child.wait();
    end_descendants();
}

/// Ends processes that left the program's group, such as the workers of `torchrun`. They become children of this process
/// when their parent ends.
#[cfg(target_os = "linux")]
fn end_descendants() {
    use rustix::process::{WaitOptions, kill_process, waitpid};
    for _ in 0..ROUNDS {
        let left = children();
        if left.is_empty() {
            return;
        }
        for &child in &left {
            // It may have ended a moment ago; then there is only its status to take.
            let _ = kill_process(child, Signal::KILL);
        }
        for child in left {
            let _ = waitpid(Some(child), WaitOptions::empty());
        }
    }
}

/// Other systems have no such adoption: what left the group goes on.
#[cfg(not(target_os = "linux"))]
fn end_descendants() {}

/// The children of this process. A kernel that does not list them leaves those alone that left the group.
#[cfg(target_os = "linux")]
fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = tasks.flatten().map(|task| task.path().join("children"));
    let lists: Vec<String> = lists.flat_map(std::fs::read_to_string).collect();
    let numbers = lists.iter().flat_map(|list| list.split_whitespace());
    numbers
        .filter_map(|number| Pid::from_raw(number.parse().ok()?))
        .collect()
}
