//! Flags that mean the same in every verb.

use std::path::PathBuf;

use clap::Args;

/// Flags that mean the same in every verb.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Threads to use, at most four for each core [default: all cores]
    #[arg(long, global = true, value_name = "N", help_heading = "Global")]
    pub threads: Option<usize>,
    /// Print results and errors only: no progress bars, no notes
    #[arg(long, short, global = true, help_heading = "Global")]
    pub quiet: bool,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// Take remote files from the cache only
    #[arg(long, global = true, help_heading = "Remote files")]
    pub offline: bool,
    /// Cache of remote files [default: vlmerge in the user's cache folder]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "VLMERGE_CACHE",
        help_heading = "Remote files"
    )]
    pub cache_dir: Option<PathBuf>,
    /// Allow http:// for other machines; without it only this machine may use it
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
