//! Running the program.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

/// The output of a run of the program.
pub struct Said {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// The output of a finished process.
    pub fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("output is UTF-8");
        Self {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Standard output as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).expect("JSON on stdout")
    }
}

/// Runs the program in the folder of the repository.
pub fn vlmerge(arguments: &[&str]) -> Said {
    vlmerge_in(Path::new(env!("CARGO_MANIFEST_DIR")), arguments)
}

/// Runs the program with a line of words, in which `{}` stands for `folder` and `~` for a blank.
pub fn run(line: &str, folder: &TempDir) -> Said {
    let line = line.replace("{}", folder.path().to_str().expect("UTF-8"));
    let words = line.split_whitespace().map(|word| word.replace('~', " "));
    let words: Vec<String> = words.collect();
    vlmerge(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The output of a run that succeeded.
pub fn ok(said: Said) -> Said {
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    said
}

/// Runs the program in a folder.
pub fn vlmerge_in(folder: &Path, arguments: &[&str]) -> Said {
    let output = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("the program starts");
    Said::new(&output)
}

/// Starts the program in the folder of the repository; what it says goes nowhere.
pub fn start<S: AsRef<OsStr>>(arguments: &[S]) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_vlmerge"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.expect("it starts")
}

/// Waits until the program has kept this many results in a folder, or has ended.
pub fn wait_until_kept(child: &mut Child, folder: &Path, n: usize) {
    let n_kept = || {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .filter(|e| e.path().extension().is_some_and(|x| x == "json"))
            .count()
    };
    while n_kept() < n && child.try_wait().expect("asked").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
}
