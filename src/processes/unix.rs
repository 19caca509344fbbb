//! Processes of Linux and macOS: groups and signals.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Rounds of ending what the program left: each may lay bare the children of those that it ends.
#[cfg(target_os = "linux")]
const ROUNDS: usize = 100;

/// A search's end of the socket between it and a watcher. Closed, it makes the watcher end its program. So does every
/// end of this process.
pub struct Line(UnixStream);

impl Line {
    /// Starts a watcher, which has the other end as its stdin.
    pub fn start(mut watcher: Command) -> Result<(Child, Self)> {
        let (line, of_watcher) = UnixStream::pair().context("cannot make a socket")?;
        let child = watcher
            .stdin(Stdio::from(OwnedFd::from(of_watcher)))
            // Ctrl-C in a terminal goes to the search alone, which ends the program in good order.
            .process_group(0)
            .spawn();
        let shown = || format!("cannot start {}", watcher.get_program().display());
        Ok((child.with_context(shown)?, Self(line)))
    }

    /// Tells the watcher to end its program.
    pub fn close(&mut self) {
        // A watcher that has ended hears nothing, and has nothing left to end.
        let _ = self.0.shutdown(Shutdown::Write);
    }

    /// The first bytes of all that a watcher said that has ended.
    pub fn said(&mut self, n_bytes: u64, patience: Duration) -> String {
        let mut said = String::new();
        let _ = self.0.set_read_timeout(Some(patience));
        // A line that was cut off is no JSON.
        let _ = (&self.0).take(n_bytes).read_to_string(&mut said);
        said
    }
}

/// A watcher's end of the socket.
pub struct Search(UnixStream);

impl Search {
    /// The socket to the search; none if no search started this process.
    pub fn of_this_process() -> Result<Option<Self>> {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let search = UnixStream::from(stdin);
        Ok(search.peer_addr().is_ok().then_some(Self(search)))
    }

    /// Sends a line.
    pub fn say(&mut self, line: &[u8]) -> std::io::Result<()> {
        self.0.write_all(line)
    }

    /// A stream that ends when the search does.
    pub fn ear(&self) -> std::io::Result<impl Read + Send + use<>> {
        self.0.try_clone()
    }
}

/// A program and the processes that it started.
#[derive(Clone, Copy)]
pub struct Group(Pid);

impl Group {
    /// Starts a program in a group of its own, so that processes of the program can be ended with it.
    pub fn start(command: &mut Command) -> std::io::Result<(Child, Self)> {
        let child = command.process_group(0).spawn()?;
        let group = Self(Pid::from_child(&child));
        Ok((child, group))
    }

    /// The group's number.
    pub fn number(self) -> i32 {
        self.0.as_raw_nonzero().get()
    }

    /// The group of a number that [`number`](Self::number) told another process.
    pub fn of_number(number: i32) -> Option<Self> {
        Pid::from_raw(number).map(Self)
    }

    /// Asks the group to end; whether it can be asked.
    pub fn ask(self) -> bool {
        // A group that has ended needs no signal, here and below.
        let _ = kill_process_group(self.0, Signal::TERM);
        true
    }

    /// Ends the group by force.
    pub fn kill(self) {
        let _ = kill_process_group(self.0, Signal::KILL);
    }
}

/// Makes this process the parent of descendants whose own parent ends.
pub fn adopt_descendants() -> Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot watch over descendants")?;
    Ok(())
}

/// Ends processes that left the program's group, such as the workers of `torchrun`. They become children of this process
/// when their parent ends.
#[cfg(target_os = "linux")]
pub fn end_descendants() {
    use rustix::process::{WaitOptions, waitpid};
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

/// Other systems have no such adoption: processes that left the group go on.
#[cfg(not(target_os = "linux"))]
pub fn end_descendants() {}

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

/// The end of a process as a number, which [`status`] reads.
pub fn raw(status: ExitStatus) -> i32 {
    status.into_raw()
}

/// The end of a process of which another process told the number.
pub fn status(raw: i32) -> ExitStatus {
    ExitStatus::from_raw(raw)
}

/// Asks a child to stop.
pub fn ask(child: &mut Child) {
    // It may have ended by itself a moment ago.
    let _ = kill_process(Pid::from_child(child), Signal::TERM);
}

/// Ends this process when the one that started it ends, which `parent` names by its number if it is no launcher. Only
/// Linux knows this; elsewhere locks hold.
pub fn end_with(parent: Option<i32>) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getppid, set_parent_process_death_signal};
        // Where the system does not know this, locks still hold.
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have ended before that.
        if parent.is_some_and(|parent| parent != Pid::as_raw(getppid())) {
            std::process::exit(1);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
}

/// Makes the system end this process's children with it; here they do it themselves, by [`end_with`].
pub fn hold_children() -> Result<()> {
    Ok(())
}

/// Replaces this program by a fresh start of itself, with the same words and a variable more.
pub fn start_again(variable: &str, value: &str) -> Result<()> {
    let program = std::env::current_exe().context("cannot find the program itself")?;
    let mut words = std::env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let fault = command.args(words).env(variable, value).exec();
    Err(fault).context("cannot start the program again")
}
