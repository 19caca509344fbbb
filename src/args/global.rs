//! Flags that mean the same in every verb.

use std::path::PathBuf;

use clap::Args;

/// Flags that mean the same in every verb.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Threads to use, at most four for each core [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<usize>,
    /// No progress bars and no notes, only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Results as JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Remote files only as far as they are in the cache
    #[arg(long, global = true, help_heading = "Remote files")]
    pub offline: bool,
    /// Folder for what was read of remote files [default: vlmerge in the user's cache folder]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "VLMERGE_CACHE",
        help_heading = "Remote files"
    )]
    pub cache_dir: Option<PathBuf>,
    /// Read remote files without encryption from other machines too
    #[arg(long, global = true, help_heading = "Remote files")]
    pub allow_http: bool,
    /// Seconds to wait for a connection or for the next bytes. A sixth of it is the time in which a server must send
    /// 1 KiB a second on average, ten times as much is the most that one request may take
    #[arg(
        long,
        global = true,
        value_name = "SECONDS",
        env = "VLMERGE_TIMEOUT",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=3600),
        help_heading = "Remote files"
    )]
    pub timeout: u64,
}
