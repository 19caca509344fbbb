//! Changes pictures by steps of ZeroVL's recipes and prints the draws, for `tests/picture_steps.py`.
//!
//! `change_pictures FOLDER` reads `FOLDER/jobs.jsonl`, each line with a `picture` in the folder, `steps`
//! as recipes have them and a `key` of the draws. Line `n` gives `FOLDER/n.rgb`, the bytes of its pixels,
//! and a line with the changes of the picture.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::PathBuf;

use evaluate::images::{Rgb, decode};
use merge::random::Draws;
use serde::Deserialize;
use serde_json::json;
use train::augment::{PictureChange, PictureStep};

#[derive(Deserialize)]
struct Job {
    picture: String,
    steps: Vec<PictureStep>,
    key: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).unwrap_or_default().into();
    let jobs = std::fs::read_to_string(folder.join("jobs.jsonl"))?;
    for (number, line) in jobs.lines().enumerate() {
        let job: Job = serde_json::from_str(line)?;
        let mut picture: Rgb = decode(&std::fs::read(folder.join(&job.picture))?)?;
        let mut draws = Draws::new(1, &job.key).sequence();
        let mut done: Vec<PictureChange> = Vec::new();
        for step in &job.steps {
            let changes = step.draw((picture.width, picture.height), &mut draws);
            let changed = changes
                .iter()
                .fold(picture, |picture, change| change.apply(picture));
            picture = changed;
            done.extend(changes);
        }
        std::fs::write(folder.join(format!("{number}.rgb")), &picture.pixels)?;
        let said = json!({ "width": picture.width, "height": picture.height, "changes": done });
        println!("{said}");
    }
    Ok(())
}
