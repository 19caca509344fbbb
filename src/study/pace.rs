//! The duration of a training run, by its log, and the number of steps that take as long as those of another run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use train::log::{self, LINES_FILE, Record};

use super::step::Place;

/// The clock that counts the seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// The time that processors spend on the training process: what else runs on the machine counts little.
    #[default]
    Processor,
    /// The time that passes.
    Wall,
}

/// As many steps as take as long as `steps` of another training.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    /// Steps of the other training.
    pub steps: u64,
    /// Folders of timed runs of the other training.
    pub of: Vec<Place>,
    /// Folders of timed runs of this one.
    pub own: Vec<Place>,
    /// The clock that counts the seconds.
    pub clock: Clock,
}

impl Clock {
    /// The name of the seconds in a training log.
    fn number(self) -> &'static str {
        match self {
            Self::Processor => "processor_seconds",
            Self::Wall => "seconds",
        }
    }

    /// For people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Processor => "seconds of processor time",
            Self::Wall => "seconds",
        }
    }

    /// The seconds of each step of a run.
    fn seconds_of_steps(self, folder: &Path) -> Result<Vec<f64>> {
        let path = folder.join(LINES_FILE);
        let of_step = |record: &Record| {
            let seconds = record.values.get(self.number()).copied();
            seconds.with_context(|| {
                let (path, name) = (path.display(), self.number());
                format!("{path}: step {} has no `{name}`", record.step)
            })
        };
        log::read(&path)?.iter().map(of_step).collect()
    }

    /// The steps of a run, and the seconds of all of them together: neither its start, nor the time in which
    /// states are kept, is one.
    pub fn of_run(self, folder: &Path) -> Result<(u64, f64)> {
        let seconds = self.seconds_of_steps(folder)?;
        Ok((seconds.len() as u64, seconds.iter().sum()))
    }

    /// The seconds of a step: the mean of the second half of each of several timed runs, all together.
    pub fn pace(self, folders: &[PathBuf]) -> Result<f64> {
        let mut halves = Vec::new();
        for folder in folders {
            let seconds = self.seconds_of_steps(folder)?;
            halves.extend_from_slice(&seconds[seconds.len() / 2..]);
        }
        let pace = halves.iter().sum::<f64>() / halves.len() as f64;
        match pace.is_finite() && pace > 0.0 {
            true => Ok(pace),
            false => bail!("timed runs of no length say nothing"),
        }
    }
}

impl Quota {
    /// Places that it is counted from.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        self.of.iter().chain(&self.own)
    }

    /// The settings that it depends on beside those.
    pub fn identity(&self) -> Value {
        json!([self.steps, self.of.len(), self.own.len(), self.clock])
    }

    /// The number of steps. `path` gives the path of a place.
    pub fn steps(&self, path: impl Fn(&Place) -> PathBuf) -> Result<u64> {
        let pace = |places: &[Place]| {
            let folders: Vec<PathBuf> = places.iter().map(&path).collect();
            self.clock.pace(&folders)
        };
        Ok(as_long(self.steps, pace(&self.of)?, pace(&self.own)?))
    }
}

/// Whole steps of `own` seconds in the time of `steps` steps of `other` seconds; at least one.
fn as_long(steps: u64, other: f64, own: f64) -> u64 {
    ((steps as f64 * other / own).floor() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path, name: &str, seconds: &[f64]) -> Place {
        let run = folder.join(name);
        std::fs::create_dir_all(&run).expect("a folder");
        let lines = seconds.iter().enumerate().map(|(at, seconds)| {
            let wall = 10.0 * seconds;
            format!(
                "{{\"step\":{},\"examples\":0,\"values\":{{\"seconds\":{wall},\"processor_seconds\":{seconds}}}}}\n",
                at + 1
            )
        });
        std::fs::write(run.join(LINES_FILE), lines.collect::<String>()).expect("written");
        Place::Outside(run)
    }

    fn path(place: &Place) -> PathBuf {
        match place {
            Place::Outside(path) => path.clone(),
            _ => PathBuf::new(),
        }
    }

    #[test]
    fn as_many_steps_are_made_as_take_as_long() {
        let folder = tempfile::tempdir().expect("a folder");
        let run = |name: &str, seconds: &[f64]| log(folder.path(), name, seconds);
        let quota = Quota {
            steps: 100,
            // Of each run the second half: 3, 3, 5 and 5 seconds, so 4 on average.
            of: vec![
                run("a1", &[90.0, 1.0, 3.0, 3.0]),
                run("a2", &[1.0, 1.0, 5.0, 5.0]),
            ],
            own: vec![run("b1", &[50.0, 3.0, 3.0])],
            clock: Clock::Processor,
        };
        // 100 steps of 4 seconds are 133 steps of 3, and a third of one.
        assert_eq!(quota.steps(path).expect("counted"), 133);
        let wall = Quota {
            clock: Clock::Wall,
            own: quota.of.clone(),
            ..quota
        };
        assert_eq!(wall.steps(path).expect("counted"), 100);
        assert_eq!(as_long(3, 1.0, 10.0), 1);
    }

    #[test]
    fn logs_that_do_not_tell_are_errors() {
        let folder = tempfile::tempdir().expect("a folder");
        let empty = log(folder.path(), "empty", &[]);
        assert!(Clock::Wall.pace(&[path(&empty)]).is_err());
        let line = "{\"step\":1,\"examples\":8,\"values\":{\"seconds\":2.0}}\n";
        std::fs::write(folder.path().join(LINES_FILE), line).expect("written");
        assert_eq!(Clock::Wall.of_run(folder.path()).expect("read"), (1, 2.0));
        let said = Clock::Processor.of_run(folder.path()).expect_err("unknown");
        assert!(
            said.to_string()
                .contains("step 1 has no `processor_seconds`")
        );
    }
}
