//! Trials that fail: each is kept in the journal with its reason, and the search goes on until too many fail in a row.

use std::sync::Mutex;

use anyhow::Result;
use evaluate::measure::{Finished, Journal, key_of};
use evaluate::reports::FailedPoint;
use merge::Progress;
use serde_json::{Value, json};

use super::command::{NotStarted, ProgramFault};
use crate::measuring::Point;
use crate::output::{Output, message};

/// Flags about trials that fail.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Failures")]
pub struct FailureArgs {
    /// End the search when this many trials fail one after the other; 1 ends it at the first
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = crate::args::number::parse_positive)]
    pub stop_after_failures: usize,
    /// Do not try again the trials that failed before the search was stopped
    #[arg(long)]
    pub skip_failed: bool,
}

/// A place of the search: its recipe as text, and what reports say of it.
pub struct Candidate {
    /// Its name and place.
    pub point: Point,
    /// Its recipe.
    pub recipe: merge::MergeRecipe,
    /// The recipe as text.
    pub text: String,
}

/// A result, or a failure.
pub type Outcome = std::result::Result<Finished, FailedPoint>;

/// Failures of a search so far.
pub struct Failures<'a> {
    journal: Journal,
    args: FailureArgs,
    /// Everything but the recipe that a failure may come from.
    identity: Value,
    /// Failures since the last success.
    n_in_a_row: Mutex<usize>,
    output: &'a Output,
}

impl<'a> Failures<'a> {
    /// None yet. Those of a search that was stopped are in the journal.
    pub fn new(journal: Journal, args: FailureArgs, identity: Value, output: &'a Output) -> Self {
        Self {
            journal,
            args,
            identity,
            n_in_a_row: Mutex::new(0),
            output,
        }
    }

    /// Tries a candidate. Its failure is an outcome; an error ends the search.
    pub fn tried(&self, of: &Candidate, run: impl FnOnce() -> Result<Finished>) -> Result<Outcome> {
        let key = key_of(&json!({ "failed": of.text, "frame": self.identity }));
        if self.args.skip_failed
            && let Some(kept) = self.journal.get::<FailedPoint>(&key)?
        {
            return Ok(Err(FailedPoint {
                name: of.point.target.name(),
                point: of.point.at.clone(),
                ..kept
            }));
        }
        let error = match run() {
            Ok(finished) => {
                self.journal.forget(&key)?;
                self.count(|_| 0);
                return Ok(Ok(finished));
            }
            Err(error) => error,
        };
        let name = of.point.target.name();
        // No fault of a candidate: the user stops the search, or its program does not exist.
        if self.output.is_cancelled() || error.is::<NotStarted>() {
            return Err(error.context(name));
        }
        let program = error.downcast_ref::<ProgramFault>();
        let failed = FailedPoint {
            name: name.clone(),
            point: of.point.at.clone(),
            reason: program.map_or_else(|| message(&error), |fault| fault.how.clone()),
            stderr: program.map_or_else(Vec::new, |fault| fault.stderr.clone()),
        };
        self.journal.put(&key, &failed)?;
        let n = self.count(|n| n + 1);
        if n < self.args.stop_after_failures {
            return Ok(Err(failed));
        }
        let what = match n {
            1 => format!("{name} failed"),
            n => format!("{n} trials failed one after the other, {name} last"),
        };
        Err(error.context(format!(
            "{what}; the same command keeps the scores so far and goes on, and --stop-after-failures N allows more"
        )))
    }

    fn count(&self, next: impl FnOnce(usize) -> usize) -> usize {
        let mut n = match self.n_in_a_row.lock() {
            Ok(n) => n,
            // A number is whole, whoever panicked.
            Err(poisoned) => poisoned.into_inner(),
        };
        *n = next(*n);
        *n
    }
}
