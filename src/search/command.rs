//! The program that scores a model: its words, its run, and what it says.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use merge::Progress;

use crate::output::UsageError;

/// The pause between two looks at the program.
const PAUSE: Duration = Duration::from_millis(20);

/// Time that a program has to end by itself after it was asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Time that is waited for the rest of an output when the program has ended: a process that it left behind may hold its
/// output open.
const REST: Duration = Duration::from_secs(2);

/// Bytes that are kept of the end of stdout; a report of numbers is far shorter.
const STDOUT_BYTES: usize = 16 << 20;

/// Bytes that are kept of the end of stderr.
const STDERR_BYTES: usize = 4 << 10;

/// Lines of stderr that a message repeats.
const STDERR_LINES: usize = 12;

/// Places of a command that are filled in for each model.
const MODEL: &str = "{model}";
const OUT: &str = "{out}";
const JOB: &str = "{job}";

/// What stands in the places of a command.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The folder of the merged model.
    pub model: &'a Path,
    /// The file or folder for the program's results.
    pub out: &'a Path,
    /// The number of the job among those that run at once, from 0.
    pub job: usize,
}

/// The words of a command with places for a model.
#[derive(Clone, Debug)]
pub struct CommandLine {
    words: Vec<String>,
}

impl CommandLine {
    /// Splits a line into words as a shell does, with quotes and backslashes. No shell sees it: there are no variables,
    /// patterns or pipes.
    pub fn parse(line: &str) -> Result<Self> {
        let bad = |why: &str| UsageError(format!("--score {line}: {why}"));
        let Some(words) = shlex::split(line) else {
            return Err(bad("a quote is not closed").into());
        };
        if words.is_empty() {
            return Err(bad("names no program").into());
        }
        if !words.iter().skip(1).any(|word| word.contains(MODEL)) {
            return Err(bad("write {model} where the folder of the merged model goes").into());
        }
        Ok(Self { words })
    }

    /// The words, with their places.
    pub fn words(&self) -> &[String] {
        &self.words
    }

    /// Whether the program writes its number to a file.
    pub fn has_out(&self) -> bool {
        self.words.iter().any(|word| word.contains(OUT))
    }

    /// The words with their places filled in.
    fn filled(&self, places: Places<'_>) -> Vec<OsString> {
        let job = OsString::from(places.job.to_string());
        let fills = [
            (MODEL, places.model.as_os_str()),
            (OUT, places.out.as_os_str()),
            (JOB, job.as_os_str()),
        ];
        let fill = |word: &String| {
            let mut filled = OsString::new();
            let mut rest = word.as_str();
            let next = |rest: &str| {
                let found = fills.iter();
                let found = found.filter_map(|(place, by)| Some((rest.find(place)?, *place, *by)));
                found.min_by_key(|&(at, ..)| at)
            };
            while let Some((at, place, by)) = next(rest) {
                filled.push(&rest[..at]);
                filled.push(by);
                rest = &rest[at + place.len()..];
            }
            filled.push(rest);
            filled
        };
        self.words.iter().map(fill).collect()
    }

    /// Runs the command to its end and returns the end of its stdout. A program that takes longer than `limit`, or is at
    /// work when the user stops the search, is ended with everything that it started.
    pub fn run(
        &self,
        places: Places<'_>,
        limit: Option<Duration>,
        progress: &dyn Progress,
    ) -> Result<String> {
        let words = self.filled(places);
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own, so that processes of the program can be ended with it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let program = || words[0].display();
        let mut child = command
            .spawn()
            .with_context(|| format!("--score: cannot start {}", program()))?;
        let stdout = end_of(child.stdout.take(), STDOUT_BYTES);
        let stderr = end_of(child.stderr.take(), STDERR_BYTES);
        let begun = Instant::now();
        let status = loop {
            let waited = child.try_wait();
            let why = match waited {
                Ok(Some(status)) => break status,
                Ok(None) if progress.is_cancelled() => {
                    stop(&mut child);
                    return Err(merge::Error::Cancelled.into());
                }
                Ok(None) => match limit.filter(|&limit| begun.elapsed() > limit) {
                    Some(limit) => format!("took longer than {} s", limit.as_secs()),
                    None => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                },
                Err(error) => format!("cannot be waited for: {error}"),
            };
            stop(&mut child);
            bail!("{} {why}, and was ended{}", program(), last_words(&stderr));
        };
        if !status.success() {
            let how = ending(status);
            bail!("{} ended with {how}{}", program(), last_words(&stderr));
        }
        let rest = stdout.recv_timeout(REST).unwrap_or_default();
        Ok(String::from_utf8_lossy(&rest).into_owned())
    }
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// The last lines that a program wrote to stderr, as the end of a message.
fn last_words(stderr: &Receiver<Vec<u8>>) -> String {
    let bytes = stderr.recv_timeout(REST).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(STDERR_LINES)..];
    match last.is_empty() {
        true => "; it wrote nothing to stderr".to_owned(),
        false => format!("; its last lines on stderr:\n{}", last.join("\n")),
    }
}

/// Reads all of a stream on a thread, and sends its last bytes when it ends.
fn end_of(stream: Option<impl Read + Send + 'static>, n_bytes: usize) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut kept: Vec<u8> = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        if let Some(mut stream) = stream {
            while let Ok(n @ 1..) = stream.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..n]);
                if kept.len() > 2 * n_bytes {
                    kept.drain(..kept.len() - n_bytes);
                }
            }
        }
        kept.drain(..kept.len().saturating_sub(n_bytes));
        // Nobody may be waiting any more.
        let _ = send.send(kept);
    });
    receive
}

/// Ends a program and the processes that it started: by asking, and after a while by force.
fn stop(child: &mut Child) {
    signal(child, false);
    let begun = Instant::now();
    while begun.elapsed() < GRACE {
        if !matches!(child.try_wait(), Ok(None)) {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    // Processes of the group may be left when the first of them has ended.
    signal(child, true);
    let _ = child.kill();
    let _ = child.wait();
}

/// Sends a signal to the group of a process.
fn signal(child: &Child, is_force: bool) {
    use rustix::process::{Pid, Signal, kill_process_group};
    let signal = if is_force { Signal::KILL } else { Signal::TERM };
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(group) = group {
        // A group that has ended needs no signal.
        let _ = kill_process_group(group, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::Output;

    fn places<'a>(model: &'a str, out: &'a str) -> Places<'a> {
        Places {
            model: Path::new(model),
            out: Path::new(out),
            job: 2,
        }
    }

    #[test]
    fn places_are_filled_after_the_words_are_split() {
        let line =
            CommandLine::parse("a 'b c' pretrained={model},x={job} \"{model}\" {other} {out}");
        let filled = line.expect("words").filled(places("/a b/{out}", "/o"));
        let expected = [
            "a",
            "b c",
            "pretrained=/a b/{out},x=2",
            "/a b/{out}",
            "{other}",
            "/o",
        ];
        assert_eq!(filled, expected.map(OsString::from));
    }

    #[test]
    fn a_line_without_a_place_for_the_model_or_with_an_open_quote_is_refused() {
        for (line, why) in [
            ("lm_eval --tasks x", "write {model}"),
            ("lm_eval '{model}", "a quote is not closed"),
            ("  ", "names no program"),
            ("{model}", "write {model}"),
        ] {
            let fault = CommandLine::parse(line).expect_err("refused").to_string();
            assert!(fault.contains(why), "{line}: {fault}");
        }
    }

    fn run(script: &str, limit: Option<u64>) -> Result<String, String> {
        let script = shlex::try_quote(script).expect("no NUL");
        let line = CommandLine::parse(&format!("sh -c {script} sh {{model}}"));
        let limit = limit.map(Duration::from_millis);
        let ran = (line.expect("words")).run(places("m", "o"), limit, &Output::silent());
        ran.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn stdout_is_returned_and_a_failure_tells_the_end_of_stderr() {
        assert_eq!(run("echo noise >&2; echo $1", None), Ok("m\n".to_owned()));
        let fault = run("seq 100 >&2; echo oops >&2; exit 3", None).expect_err("it fails");
        assert!(fault.contains("sh ended with exit code 3"), "{fault}");
        assert!(
            fault.ends_with("100\noops") && !fault.contains("\n80\n"),
            "{fault}"
        );
    }

    #[test]
    fn a_program_that_takes_too_long_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let mark = folder.path().join("mark");
        let script = format!("(sleep 1; touch {}) & sleep 60", mark.display());
        let begun = Instant::now();
        let fault = run(&script, Some(200)).expect_err("it is ended");
        assert!(fault.contains("took longer than"), "{fault}");
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!mark.exists());
    }
}
