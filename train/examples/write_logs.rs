//! Writes the logs of a made-up run that stops after step 9 and goes on from its state of step 6, for
//! `tests/tensorboard_opens.py`.
//!
//! `write_logs FOLDER`

use std::collections::BTreeMap;
use std::path::PathBuf;

use train::Result;
use train::log::{Log, Record};

fn main() -> Result<()> {
    let folder: PathBuf = std::env::args_os().nth(1).unwrap_or_default().into();
    run(&mut Log::open(&folder, None)?, 1..=9, 1.0)?;
    run(&mut Log::open(&folder, Some(6))?, 7..=12, 100.0)
}

/// Losses `factor / step`, and a rate.
fn run(log: &mut Log, steps: std::ops::RangeInclusive<u64>, factor: f64) -> Result<()> {
    for step in steps {
        let loss = factor / step as f64;
        log.write(&Record {
            step,
            examples: step * 300,
            values: BTreeMap::from([("loss/total".into(), loss), ("rate".into(), 1e-4)]),
        })?;
    }
    Ok(())
}
