//! The cost of a step: the process of each command reports it at its end.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use cpu_time::ProcessTime;
use serde::{Deserialize, Serialize};

/// Names the file that a process of a step writes at its end.
const FILE: &str = "VLMERGE_NOTES_COST";
const NAME: &str = "cost.json";

/// The cost of a process, or of several one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The time that processors spend on it, of all threads.
    pub processor_seconds: f64,
    /// The most memory that it holds at once.
    pub peak_bytes: u64,
}

impl Cost {
    /// That of this one and then another.
    pub fn and(self, next: Self) -> Self {
        Self {
            processor_seconds: self.processor_seconds + next.processor_seconds,
            peak_bytes: self.peak_bytes.max(next.peak_bytes),
        }
    }

    /// Lets a command of a step tell its own in the step's folder.
    pub fn ask(command: &mut Command, folder: &Path) -> Result<()> {
        let path = folder.join(NAME);
        if path.exists() {
            let failed = || format!("cannot remove {}", path.display());
            fs::remove_file(&path).with_context(failed)?;
        }
        command.env(FILE, path);
        Ok(())
    }

    /// The cost that the last command of a step reported; none if it could not.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(NAME)).ok()?).ok()
    }
}

/// Writes what this process has cost, if the one that started it asked for it.
pub fn note() {
    if let Some(path) = std::env::var_os(FILE)
        && let Some(cost) = own()
        && let Ok(text) = serde_json::to_vec(&cost)
    {
        // A step whose cost is not known is no worse a step.
        let _ = fs::write(path, text);
    }
}

fn own() -> Option<Cost> {
    Some(Cost {
        processor_seconds: ProcessTime::try_now().ok()?.as_duration().as_secs_f64(),
        peak_bytes: peak_bytes(&fs::read_to_string("/proc/self/status").ok()?)?,
    })
}

/// The most memory that a process held, by what Linux tells of it.
fn peak_bytes(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_several_commands_add_their_seconds_and_hold_the_larger_memory() {
        let cost = |processor_seconds, peak_bytes| Cost {
            processor_seconds,
            peak_bytes,
        };
        assert_eq!(cost(1.5, 300).and(cost(2.0, 200)), cost(3.5, 300));
        assert_eq!(peak_bytes("Name:\tx\nVmHWM:\t    12 kB\n"), Some(12288));
        assert_eq!(peak_bytes("VmHWM:\t12 MB\n"), None);
    }
}
