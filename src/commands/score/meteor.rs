//! METEOR, by the official program.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use evaluate::Unit;
use evaluate::metrics::captions::Captioned;
use evaluate::reports::Measurement;

/// The separator of the parts of a line.
const BAR: &str = " ||| ";

/// The program at work. It is ended when this is dropped.
struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Program {
    fn start(jar: &Path) -> Result<Self> {
        let jar = std::fs::canonicalize(jar)
            .with_context(|| format!("{}: cannot open", jar.display()))?;
        let mut command = Command::new("java");
        command.args(["-Xmx2G", "-jar"]).arg(&jar);
        command.args(["-", "-", "-stdio", "-l", "en", "-norm"]);
        // Its table of paraphrases lies beside it.
        if let Some(folder) = jar.parent() {
            command.current_dir(folder);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command
            .spawn()
            .context("METEOR is a Java program, and `java` cannot be run")?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Self {
                child,
                to,
                from: BufReader::new(from),
            }),
            _ => bail!("METEOR's program has no input or output"),
        }
    }

    /// The answer to a line.
    fn ask(&mut self, line: &str) -> Result<String> {
        writeln!(self.to, "{line}")?;
        self.to.flush()?;
        self.read()
    }

    fn read(&mut self) -> Result<String> {
        let mut answer = String::new();
        match self.from.read_line(&mut answer)? {
            0 => bail!("the program ended before it answered; is it meteor-1.5.jar?"),
            _ => Ok(answer.trim().to_owned()),
        }
    }

    /// A number that the program answers.
    fn number(text: &str) -> Result<f64> {
        text.parse()
            .with_context(|| format!("it answered {text:?}, not a number"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that is gone already needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// METEOR of tokenized captions, in [0, 1]: of all together, as the program weighs them.
pub fn measure(jar: &Path, captioned: &[Captioned]) -> Result<Measurement> {
    let value = run(jar, captioned).with_context(|| format!("{}", jar.display()))?;
    Ok(Measurement {
        name: "meteor".into(),
        value: Some(value),
        unit: Unit::Fraction,
        higher_is_better: true,
        n: captioned.len() as u64,
        interval: None,
    })
}

fn run(jar: &Path, captioned: &[Captioned]) -> Result<f64> {
    let mut program = Program::start(jar)?;
    let plain = |text: &str| text.replace("|||", "").replace("  ", " ");
    let mut all = "EVAL".to_owned();
    for image in captioned {
        let mut line = "SCORE".to_owned();
        let texts = image.references.iter().chain([&image.caption]);
        for text in texts {
            line.push_str(BAR);
            line.push_str(&plain(text));
        }
        all.push_str(BAR);
        all.push_str(&program.ask(&line)?);
    }
    // The score of each image, then that of all.
    let mut answer = program.ask(&all)?;
    for _ in captioned {
        Program::number(&answer)?;
        answer = program.read()?;
    }
    Program::number(&answer)
}
