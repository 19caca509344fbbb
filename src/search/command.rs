//! The program that scores a model: its words, its run, and what it says.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use merge::Progress;

use super::watched::{Ending, Watched};
use crate::output::UsageError;

/// The pause between two looks at the program.
const PAUSE: Duration = Duration::from_millis(20);

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

/// A program cannot be started, so no trial can be scored.
#[derive(Debug, thiserror::Error)]
#[error("--score: cannot start {program}: {why}")]
pub struct NotStarted {
    program: String,
    why: String,
}

/// A program failed on a model.
#[derive(Debug, thiserror::Error)]
#[error("{how}{}", after(stderr))]
pub struct ProgramFault {
    /// The program and its end, as a clause.
    pub how: String,
    /// The last lines that it wrote to stderr.
    pub stderr: Vec<String>,
}

impl ProgramFault {
    /// A fault of a program with the last lines of its stderr.
    pub fn new(how: String, stderr: Vec<String>) -> Self {
        Self { how, stderr }
    }
}

/// The end of a message about a program.
fn after(stderr: &[String]) -> String {
    match stderr.is_empty() {
        true => "; it wrote nothing to stderr".to_owned(),
        false => format!("; its last lines on stderr:\n{}", stderr.join("\n")),
    }
}

/// The output of a program that succeeded.
#[derive(Debug)]
pub struct Ran {
    /// The end of its stdout.
    pub stdout: String,
    /// The last lines of its stderr.
    pub stderr: Vec<String>,
}

/// The values for the places of a command.
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

    /// Runs the command to its end under a watcher, which is a process of the program at `own`. A program that takes longer
    /// than `limit`, or is at work when the user stops the search, is ended with everything that it started.
    pub fn run(
        &self,
        own: &Path,
        places: Places<'_>,
        limit: Option<Duration>,
        progress: &dyn Progress,
    ) -> Result<Ran> {
        let words = self.filled(places);
        let program = words[0].display().to_string();
        let mut watched = Watched::start(own, &words)?;
        let (stdout, stderr) = watched.outputs();
        let stdout = Tail::of(stdout, STDOUT_BYTES);
        let stderr = Tail::of(stderr, STDERR_BYTES);
        let begun = Instant::now();
        let fault = |how: &str| ProgramFault::new(format!("{program} {how}"), last_lines(&stderr));
        let status = loop {
            match watched.ended()? {
                Some(Ending::Ended(status)) => break status,
                Some(Ending::NotStarted(why)) => {
                    let program = program.clone();
                    return Err(NotStarted { program, why }.into());
                }
                Some(Ending::Lost(status)) => {
                    let how = format!("was ended, since its watcher ended with {}", ending(status));
                    return Err(fault(&how).into());
                }
                None if progress.is_cancelled() => {
                    watched.end();
                    return Err(merge::Error::Cancelled.into());
                }
                None => {}
            }
            if let Some(limit) = limit.filter(|&limit| begun.elapsed() > limit) {
                watched.end();
                let how = format!("took longer than {} s, and was ended", limit.as_secs());
                return Err(fault(&how).into());
            }
            std::thread::sleep(PAUSE);
        };
        if !status.success() {
            return Err(fault(&format!("ended with {}", ending(status))).into());
        }
        Ok(Ran {
            stdout: stdout.text(),
            stderr: last_lines(&stderr),
        })
    }
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit code {code}"),
        None => status.to_string(),
    }
}

/// The last lines that a program wrote to stderr.
fn last_lines(stderr: &Tail) -> Vec<String> {
    let text = stderr.text();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(STDERR_LINES)..];
    last.iter().map(|&line| line.to_owned()).collect()
}

/// The last bytes of a stream, which a thread reads.
struct Tail {
    kept: Arc<Mutex<Vec<u8>>>,
    n_bytes: usize,
    ended: Receiver<()>,
}

impl Tail {
    /// Reads all of a stream and keeps its last bytes.
    fn of(stream: Option<impl Read + Send + 'static>, n_bytes: usize) -> Self {
        let (end, ended) = channel();
        let kept = Arc::new(Mutex::new(Vec::new()));
        let tail = Self {
            kept: Arc::clone(&kept),
            n_bytes,
            ended,
        };
        std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            if let Some(mut stream) = stream {
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    let Ok(mut kept) = kept.lock() else { return };
                    kept.extend_from_slice(&buffer[..n]);
                    if kept.len() > 2 * n_bytes {
                        let n_old = kept.len() - n_bytes;
                        kept.drain(..n_old);
                    }
                }
            }
            // Nobody may be waiting any more.
            let _ = end.send(());
        });
        tail
    }

    /// The bytes that were kept when the stream has ended, or [`REST`] has passed.
    fn text(&self) -> String {
        // A second call finds the thread gone, and does not wait.
        let _ = self.ended.recv_timeout(REST);
        let kept = self.kept.lock();
        kept.map_or_else(
            |_| String::new(),
            |kept| {
                let last = &kept[kept.len().saturating_sub(self.n_bytes)..];
                String::from_utf8_lossy(last).into_owned()
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
