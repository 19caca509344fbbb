//! Merges that other merges build on: made first, beside the target, and removed at the end.

use tempfile::TempPath;

use super::{Around, RunOptions, write_all};
use crate::io::folder::folder_of;
use crate::io::{OutputContainer, WriteOptions};
use crate::plan::stages::open_result;
use crate::{Error, MergePlan, Progress, Result};

/// Runs the stages of a plan. Their files are removed with `files`.
pub(super) fn write(
    plan: &MergePlan,
    write: &WriteOptions,
    run: &RunOptions,
    progress: &dyn Progress,
    files: &mut Vec<TempPath>,
) -> Result<()> {
    for stage in plan.stages() {
        let failed = |source| Error::io("create", &write.path, source);
        let file = tempfile::Builder::new()
            .prefix(".stage.")
            .suffix(".partial")
            .tempfile_in(folder_of(&write.path))
            .map_err(failed)?;
        let path = file.into_temp_path();
        let options = WriteOptions {
            container: Some(OutputContainer::Safetensors),
            max_shard_bytes: None,
            force: true,
            sync: false,
            is_folder: false,
            ..WriteOptions::new(path.to_path_buf())
        };
        let run = RunOptions { hash: None, ..*run };
        progress.start(&format!("making {}", stage.name), stage.plan.output_bytes());
        // A stage is one file, which no later run goes on with.
        let written = write_all(&stage.plan, &options, &run, &Around::default(), progress);
        progress.finish();
        written?;
        stage.finish(open_result(&path)?);
        // An open file outlives its name: nothing is left whatever happens from here on.
        files.push(path);
    }
    Ok(())
}

/// Runs the stages of a plan in memory.
pub(super) fn in_memory(plan: &MergePlan, run: &RunOptions, progress: &dyn Progress) -> Result<()> {
    let run = RunOptions { hash: None, ..*run };
    for stage in plan.stages() {
        stage.finish(super::in_memory(&stage.plan, &run, progress)?);
    }
    Ok(())
}
